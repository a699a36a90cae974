"""Which jobs start: never two on a device, in order, and nobody waits for more than it must."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from server.deployed.schedule import Queued, decide


def job(id: str, *nodes: int, lacks: bool = False) -> Queued:
    return Queued(id=id, nodes=frozenset(nodes), lacks=lacks)


def test_jobs_whose_devices_do_not_overlap_start_together() -> None:
    found = decide([job("a", 1, 2), job("b", 3), job("c", 4)], {}, at_once=4)
    assert found.starts == ["a", "b", "c"]
    assert not found.waits


def test_a_job_waits_for_those_that_it_overlaps_and_for_no_others() -> None:
    queue = [job("b", 2, 3), job("c", 3, 4), job("d", 5)]
    found = decide(queue, {"a": frozenset({1, 2}), "z": frozenset({9})}, at_once=4)
    assert found.starts == ["d"]
    assert found.waits == {"b": ("a",), "c": ("b",)}, (
        "c does not pass b, whose device it would take"
    )


def test_no_more_run_than_may() -> None:
    found = decide([job("b", 2), job("c", 3)], {"a": frozenset({1})}, at_once=2)
    assert found.starts == ["b"]
    assert found.waits == {"c": ()}


def test_a_job_that_lacks_devices_keeps_none_and_starts_where_nobody_else_would() -> None:
    lacking = job("a", 1, 2, lacks=True)
    found = decide([lacking, job("b", 2, 3)], {}, at_once=4)
    assert (found.starts, found.waits) == (["b"], {"a": ("b",)})
    found = decide([lacking, job("c", 4)], {"b": frozenset({1})}, at_once=4)
    assert (found.starts, found.waits) == (["c"], {"a": ("b",)})
    assert decide([lacking, job("c", 4)], {}, at_once=1).starts == ["c"]
    assert decide([lacking, job("c", 4)], {}, at_once=2).starts == ["c", "a"]


Nodes = st.frozensets(st.integers(0, 5), min_size=1, max_size=4)
Queue = st.lists(st.tuples(Nodes, st.booleans()), max_size=8)


@given(queue=Queue, at_once=st.integers(1, 4))
def test_devices_serve_one_job_and_the_order_holds(
    queue: Sequence[tuple[frozenset[int], bool]], at_once: int
) -> None:
    jobs = [
        Queued(id=str(number), nodes=nodes, lacks=lacks)
        for number, (nodes, lacks) in enumerate(queue)
    ]
    by_id = {each.id: each for each in jobs}
    found = decide(jobs, {}, at_once=at_once)
    assert sorted([*found.starts, *found.waits]) == sorted(by_id)
    assert len(found.starts) <= at_once
    used = [node for id in found.starts for node in by_id[id].nodes]
    assert len(used) == len(set(used))
    for id, others in found.waits.items():
        for other in others:
            assert by_id[other].nodes & by_id[id].nodes
            earlier = int(other) < int(id) or (by_id[id].lacks and not by_id[other].lacks)
            assert earlier, "nobody waits for a job that came later"
        if not others:
            assert len(found.starts) == at_once


@given(queue=st.lists(Nodes, max_size=8), late=st.lists(Nodes, max_size=8))
def test_later_jobs_delay_nobody(
    queue: Sequence[frozenset[int]], late: Sequence[frozenset[int]]
) -> None:
    """Jobs take one turn each; where as many run as fit, an earlier one begins in the same turn
    whether or not others come later: nobody starves."""
    early = [Queued(id=f"e{number}", nodes=nodes) for number, nodes in enumerate(queue)]
    more = [Queued(id=f"l{number}", nodes=nodes) for number, nodes in enumerate(late)]

    def turns(jobs: Sequence[Queued]) -> Mapping[str, int]:
        begun: dict[str, int] = {}
        left, turn = list(jobs), 0
        while left:
            starts = decide(left, {}, at_once=99).starts
            assert starts, "somebody always goes on"
            begun.update(dict.fromkeys(starts, turn))
            left = [each for each in left if each.id not in begun]
            turn += 1
        return begun

    alone, crowded = turns(early), turns([*early, *more])
    assert {id: crowded[id] for id in alone} == alone
