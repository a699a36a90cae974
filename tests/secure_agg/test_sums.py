"""Exact sums: all sizes and rings, losses at every stage, restarts, reordering, lies."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from secure_agg import RoundContext, SecAggParams, packed_sum, secure_sum
from secure_agg.errors import (
    DecodingError,
    InputError,
    QuorumNotMet,
    ResidualError,
    StageError,
    ThresholdNotMet,
)
from secure_agg.field import PRIME
from secure_agg.messages import HEADER_SIZE, Kind, frame, pack_values, unpack_values
from secure_agg.session import answer_digest
from tests.secure_agg.world import World, exact_sum, fixed_entropy, vectors

PARAMS = SecAggParams.derive(n=10, corrupt=0.1, dropout=0.2, modulus_bits=20, dimension=101)


@functools.cache
def derived(n: int, bits: int, dimension: int = 1003) -> SecAggParams:
    chosen = {2: (0.0, 0.0), 3: (0.0, 0.33), 10: (0.1, 0.3)}
    corrupt, dropout = chosen.get(n, (0.1, 0.1))
    return SecAggParams.derive(
        n=n, corrupt=corrupt, dropout=dropout, modulus_bits=bits, dimension=dimension
    )


def losses(params: SecAggParams, ids: list[int]) -> dict[str, set[int]]:
    """Members lost at every stage: a third of what the cohort may lose at each."""
    third = (params.n - params.min_included) // 3
    if params.n < 10:
        return {"upload": set(ids[: params.n - params.min_included])}
    return {
        "upload": set(ids[:: params.n // third][:third]),
        "endorse": set(ids[1 :: max(2, params.n // third)][:third]),
        "answer": set(ids[2 :: max(3, params.n // third)][:third]),
    }


SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]
CASES: list[Any] = [
    *((n, bits) for n in (2, 3, 5, 10, 50, 100, 300) for bits in (16, 20, 24, 32)),
    *(pytest.param(1000, bits, marks=SLOW) for bits in (16, 20, 24, 32)),
]


@pytest.mark.parametrize(("n", "bits"), CASES)
def test_sums_are_exact_with_losses_at_every_stage(n: int, bits: int) -> None:
    params = derived(n, bits)
    ids = list(range(7, 7 + 3 * n, 3))
    inputs = vectors(ids, params)
    dropped = losses(params, ids)
    result = secure_sum(inputs, params, dropped=dropped, entropy=fixed_entropy("sums"))
    left = [id_ for id_ in ids if id_ not in dropped["upload"]]
    assert result.included == tuple(left)
    assert result.total.tolist() == exact_sum(inputs, left, bits)
    assert result.total.tolist() == packed_sum([inputs[id_] for id_ in left], params).tolist()
    assert not result.blamed
    assert not result.left_out
    assert result.dropped.get("upload", ()) == tuple(sorted(dropped["upload"]))
    if n >= 10:
        assert result.dropped["endorse"]
        assert result.dropped["answer"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("n", "dimension", "bits"), [(300, 1_000_000, 20), (1000, 100_000, 32), (10_000, 10_000, 20)]
)
def test_large_sums_are_exact(n: int, dimension: int, bits: int) -> None:
    params = derived(n, bits, dimension)
    few = vectors(range(n), dataclasses.replace(params, dimension=4096))
    inputs = {id_: np.resize(one, dimension) for id_, one in few.items()}
    lost = set(range(0, n, 20))
    result = secure_sum(inputs, params, dropped={"upload": lost})
    left = [id_ for id_ in range(n) if id_ not in lost]
    expected = np.zeros(dimension, np.uint64)
    for id_ in left:
        expected += inputs[id_]
    expected &= np.uint64(2**bits - 1)
    assert np.array_equal(result.total, expected)


@pytest.mark.parametrize("held", [1, 30_000, 1 << 40])
def test_the_sum_does_not_depend_on_how_many_uploads_wait(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of large uploads fewer wait to be added together."""
    monkeypatch.setattr("secure_agg.collection._HELD", held)
    params = derived(30, 20)
    inputs = vectors(range(30), params)
    result = secure_sum(inputs, params, dropped={"upload": {3}})
    assert result.total.tolist() == exact_sum(inputs, sorted(set(range(30)) - {3}), 20)


def test_suite_2_sums_exactly() -> None:
    params = SecAggParams.derive(
        n=5, corrupt=0.2, dropout=0.2, modulus_bits=20, dimension=33, suite=2
    )
    inputs = vectors(range(5), params)
    result = secure_sum(inputs, params, dropped={"upload": {0}})
    assert result.total.tolist() == exact_sum(inputs, range(1, 5), 20)


def test_a_sum_that_wraps_is_the_packed_sum() -> None:
    """Beyond the ring a low digit carries into its neighbour, in both sums alike."""
    inputs = {i: np.full(101, 2**19 - 1 - i, np.uint32) for i in range(10)}
    result = secure_sum(inputs, PARAMS)
    assert result.total.tolist() == packed_sum(inputs.values(), PARAMS).tolist()
    assert result.total.tolist() != exact_sum(inputs, range(10), 20)


def test_messages_may_come_in_any_order_and_twice() -> None:
    world = World(PARAMS)
    messages: Mapping[int, bytes] = world.server.begin()
    rng = np.random.default_rng(3)
    while messages:
        for id_ in rng.permutation(list(messages)).tolist():
            reply = world.members[id_].handle(messages[id_])
            assert world.members[id_].handle(messages[id_]) == reply
            world.server.receive(id_, reply)
        assert not world.server.waiting
        messages = world.server.close_stage()
    assert world.server.result.total.tolist() == world.exact()


def test_several_rounds_of_a_job_and_of_two_jobs() -> None:
    world = World(PARAMS)
    for number, job in ((1, b"job"), (2, b"job"), (1, b"other"), (5, b"job")):
        world.open(RoundContext(job=job, round=number))
        assert world.finish(world.server.begin()).tolist() == world.exact()
    assert {member.participations for member in world.members.values()} == {4}


def test_every_member_restarts_between_all_messages() -> None:
    world = World(PARAMS)
    messages: Mapping[int, bytes] = world.server.begin()
    while messages:
        for id_ in messages:
            world.restart(id_)
            reply = world.members[id_].handle(messages[id_])
            assert world.restart(id_).handle(messages[id_]) == reply
            world.server.receive(id_, reply)
        messages = world.server.close_stage()
    assert world.server.result.total.tolist() == world.exact()


def test_an_ordinary_member_may_vanish_after_its_upload() -> None:
    params = derived(300, 20, 10)
    world = World(params, shared=True)
    ordinary = set(world.ids) - set(world.committee)
    total = world.finish(world.until(Kind.DELIVERY), ordinary)
    assert total.tolist() == world.exact()
    assert "endorse" not in world.server.result.dropped


def test_a_committee_member_without_an_upload_serves() -> None:
    world = World(PARAMS)
    late = world.member(3)
    late._vector = None
    world.members[3] = late
    messages: Mapping[int, bytes] = world.server.begin()
    with pytest.raises(InputError, match="no input was provided"):
        late.handle(messages[3])
    messages = world.step(messages, {3})
    assert 3 in messages
    total = world.finish(messages)
    assert total.tolist() == world.exact([id_ for id_ in world.ids if id_ != 3])
    assert not late.uploaded
    assert world.server.result.dropped == {"upload": (3,)}


def test_members_without_a_sealing_key_are_lost_to_the_committee_alone() -> None:
    world = World(PARAMS)
    del world.prekeys[0], world.prekeys[9]
    world.server = world.aggregator()
    assert world.finish(world.server.begin()).tolist() == world.exact()


def test_too_few_sealing_keys_end_the_round_before_it_begins() -> None:
    world = World(PARAMS)
    few = dict(list(world.prekeys.items())[: PARAMS.needed - 1])
    with pytest.raises(ThresholdNotMet, match=f"{PARAMS.needed} are needed"):
        world.aggregator(prekeys=few).begin()


def lie(world: World, reply: bytes, id_: int) -> bytes:
    """A wrong answer, well signed."""
    values = unpack_values(reply[HEADER_SIZE + 4 : -64]).astype(np.int64)
    wrong = pack_values((values + 1 + id_) % PRIME)
    digest = world.server._collection._digest
    position = world.committee.index(id_)
    signature = world.identities[id_].sign(answer_digest(digest, position, wrong))
    return frame(Kind.ANSWER, reply[2:HEADER_SIZE], bytes(4), wrong, signature)


def answer_with(world: World, liars: set[int], absent: set[int]) -> None:
    messages = world.until(Kind.CERTIFICATE)
    for id_, reply in world.deliver(messages, absent).items():
        world.server.receive(id_, lie(world, reply, id_) if id_ in liars else reply)
    world.server.close_stage()


def test_wrong_answers_are_corrected_and_blamed() -> None:
    world = World(SecAggParams.derive(
        n=30, corrupt=0.1, dropout=0.1, modulus_bits=16, dimension=50
    ))  # fmt: skip
    liars = set(range(4, 4 + world.params.errors))
    assert len(liars) >= 3
    answer_with(world, liars, {0, 1, 2})
    assert world.server.result.total.tolist() == world.exact()
    assert set(world.server.result.blamed) == liars


def test_more_wrong_answers_than_can_be_corrected_spend_the_round() -> None:
    world = World(SecAggParams.derive(
        n=30, corrupt=0.1, dropout=0.1, modulus_bits=16, dimension=50
    ))  # fmt: skip
    most = (30 - world.params.threshold) // 2
    with pytest.raises(DecodingError, match="wrong: none can be trusted"):
        answer_with(world, set(range(most + 1)), set())
    with pytest.raises(StageError, match="no result"):
        _ = world.server.result


def test_without_redundancy_the_residual_shows_a_wrong_answer() -> None:
    world = World(PARAMS)
    absent = set(world.ids[PARAMS.threshold :])
    with pytest.raises(ResidualError):
        answer_with(world, {0}, absent)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Kind.OPENING, ThresholdNotMet),
        (Kind.DELIVERY, QuorumNotMet),
        (Kind.PROPOSAL, QuorumNotMet),
        (Kind.CERTIFICATE, ThresholdNotMet),
    ],
)
def test_too_few_answers_end_the_round(kind: Kind, error: type[Exception]) -> None:
    keep = {
        Kind.OPENING: PARAMS.min_included,
        Kind.DELIVERY: PARAMS.needed,
        Kind.PROPOSAL: PARAMS.quorum,
        Kind.CERTIFICATE: PARAMS.threshold,
    }[kind]
    world = World(PARAMS)
    with pytest.raises(error):
        world.until(None, {kind: world.ids[keep - 1 :]})
    with pytest.raises(StageError, match="no stage to close"):
        world.server.close_stage()
    enough = World(PARAMS)
    if kind is Kind.OPENING:
        enough.until(Kind.DELIVERY, {kind: world.ids[keep:]})
    else:
        enough.until(None, {kind: world.ids[keep:]})
        assert enough.server.result.total.tolist() == enough.exact()
