"""Who of a job of buffered rounds is at work, and who is asked next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.deployed.crowd import Asked, Crowd, Training

CLIENTS = range(6)


def at(round: int = 1, version: int = 0, closes: float = 10.0) -> Training:
    return Training(round=round, version=version, closes=closes)


def ready(crowd: Crowd, client: int) -> None:
    crowd.begin(client, at())
    assert crowd.done(client, round=1, version=0)


def ask(crowd: Crowd, client: int, closes: float = 10.0) -> None:
    ready(crowd, client)
    crowd.ask(client, Asked(staleness=0, message=b"next", closes=closes))


def test_those_begin_first_that_had_the_fewest_turns() -> None:
    crowd = Crowd(concurrency=2)
    for client in crowd.next_idle([3, 1, 2]):
        crowd.begin(client, at())
    assert list(crowd.training) == [3, 1]
    assert crowd.next_idle([3, 1, 2]) == []
    crowd.drop(3)
    assert crowd.next_idle([3, 1, 2]) == [2]


def test_nobody_is_done_that_was_not_asked_to_train_this() -> None:
    crowd = Crowd(concurrency=2)
    crowd.begin(1, at(round=2, version=1))
    assert not crowd.done(2, round=2, version=1)
    assert not crowd.done(1, round=1, version=1)
    assert not crowd.done(1, round=2, version=0)
    assert crowd.done(1, round=2, version=1)
    assert not crowd.done(1, round=2, version=1)


def test_a_turn_ends_when_its_time_is_over() -> None:
    crowd = Crowd(concurrency=4)
    crowd.begin(0, at(closes=5.0))
    ready(crowd, 1)
    ask(crowd, 2, closes=4.0)
    crowd.begin(3, at(closes=6.0))
    assert crowd.deadlines() == [5.0, 6.0, 4.0]
    assert crowd.expire(5.0) == [0, 2]
    assert crowd.spent == {0, 2}
    assert crowd.next_idle(CLIENTS) == [4, 5]
    crowd.begin_buffer()
    assert crowd.next_idle(CLIENTS) == [4, 5]  # 0 and 2 had their turn
    assert crowd.next_idle([0, 2]) == [0, 2]


def test_what_was_trained_and_lost_may_begin_once_more() -> None:
    crowd = Crowd(concurrency=2)
    ask(crowd, 1)
    crowd.lose(1)
    assert crowd.next_idle([1]) == [1]
    ask(crowd, 1)
    crowd.lose(1)
    assert crowd.next_idle([1]) == []
    crowd.begin(2, at())
    crowd.lose(2)  # it failed while it trained
    assert crowd.next_idle([2]) == []


def test_a_client_that_comes_back_goes_on_with_what_it_was_at() -> None:
    crowd = Crowd(concurrency=3)
    crowd.begin(1, at(closes=3.0))
    crowd.returned(1, at(closes=9.0), done=False, versions=0, rounds=1)
    assert crowd.training[1].closes == 3.0
    crowd.returned(1, at(closes=9.0), done=True, versions=0, rounds=1)
    assert list(crowd.trained) == [1]
    crowd.returned(1, None, done=False, versions=0, rounds=1)
    assert not crowd.at_work(1)


def test_what_began_before_a_restart_goes_on_if_it_can_have_begun() -> None:
    crowd = Crowd(concurrency=3)
    crowd.returned(1, at(round=2, version=1), done=True, versions=1, rounds=2)
    assert list(crowd.trained) == [1]
    crowd.returned(2, at(round=2, version=2), done=False, versions=1, rounds=2)
    crowd.returned(3, at(round=3, version=1), done=False, versions=1, rounds=2)
    crowd.returned(4, at(round=0, version=0), done=False, versions=1, rounds=2)
    assert not crowd.training


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(
                ["begin", "done", "ask", "drop", "fail", "lose", "expire", "back", "buffer"]
            ),
            st.integers(0, 5),
        ),
        max_size=60,
    )
)
def test_nobody_is_ever_at_two_things_and_no_more_than_may_work(
    steps: list[tuple[str, int]],
) -> None:
    crowd = Crowd(concurrency=3)
    for step, client in steps:
        if step == "begin":
            for each in crowd.next_idle([client]):
                assert each not in crowd.spent
                crowd.begin(each, at())
        elif step == "done":
            crowd.done(client, round=1, version=0)
        elif step == "ask" and client in crowd.trained:
            crowd.ask(client, Asked(staleness=0, message=b"", closes=float(client)))
        elif step == "drop":
            crowd.drop(client)
        elif step == "fail":
            crowd.fail(client)
        elif step == "lose":
            crowd.lose(client)
        elif step == "expire":
            crowd.expire(float(client))
        elif step == "back" and client not in crowd.asked:
            crowd.returned(client, None, done=False, versions=0, rounds=1)
        elif step == "buffer":
            crowd.begin_buffer()
        tables = [set(crowd.training), set(crowd.trained), set(crowd.asked)]
        assert sum(map(len, tables)) == len(set().union(*tables)) <= 3
