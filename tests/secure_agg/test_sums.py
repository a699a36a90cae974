"""Sums are exact, whoever vanishes, restarts, repeats itself or comes late."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secure_agg import (
    STAGES,
    Aggregator,
    Floor,
    Identity,
    Participant,
    Roster,
    RoundContext,
    SecAggParams,
    Shared,
    secure_sum,
)
from secure_agg.errors import (
    LateMessage,
    NonceWithheld,
    ParameterError,
    QuorumNotMet,
    SecureAggError,
    StageError,
    ThresholdNotMet,
)
from secure_agg.messages import Kind
from secure_agg.prg import stream
from secure_agg.ring import Ring, ring
from tests.secure_agg.world import World, exact_sum, fixed_entropy, vectors

ASKED = {
    Kind.BEGIN: "advertise", Kind.COHORT: "reveal", Kind.NONCES: "share_keys",
    Kind.DELIVERY: "masked_input", Kind.ALIVE: "consistency", Kind.UNMASK: "unmask",
}  # fmt: skip
IN_THE_SUM = ("consistency", "unmask")


def sizes() -> list[object]:
    few = [(n, b) for n in (2, 3, 10, 50, 100) for b in (16, 20, 32, 64)]
    many = [(n, b) for n in (300, 1000) for b in (16, 20, 32, 64)]
    return [*few, *(pytest.param(n, b, marks=pytest.mark.slow) for n, b in many)]


@pytest.mark.parametrize(("n", "bits"), sizes())
def test_sums_are_exact_with_dropouts_at_every_stage(n: int, bits: int) -> None:
    corrupt, dropout = {2: (0.0, 0.0), 3: (0.0, 0.33)}.get(n, (0.1, 0.3))
    params = SecAggParams.derive(n=n, corrupt=corrupt, dropout=dropout, modulus_bits=bits)
    ids = [7 * i + 2**31 for i in range(n)]
    inputs = vectors(ids, 33, bits)
    lost = [s for s in STAGES if s != "reveal"][: params.dropouts]
    dropped = {stage: [ids[3 * i]] for i, stage in enumerate(reversed(lost))}
    result = secure_sum(inputs, params, dropped=dropped, entropy=fixed_entropy("sum"))
    gone = {i for stage, members in dropped.items() if stage not in IN_THE_SUM for i in members}
    assert result.included == tuple(i for i in ids if i not in gone)
    assert result.total.tolist() == exact_sum(inputs, result.included, bits)
    assert result.blamed == {}
    assert result.dropped == {stage: tuple(members) for stage, members in dropped.items()}


@pytest.mark.parametrize("length", [0, 1, 2, 1000])
def test_any_length(length: int) -> None:
    params = SecAggParams.derive(n=3, corrupt=0.0, dropout=0.0, modulus_bits=13)
    inputs = vectors([1, 2, 3], length, 13)
    assert secure_sum(inputs, params).total.tolist() == exact_sum(inputs, inputs, 13)


@pytest.mark.parametrize("bits", range(1, 65))
def test_every_width_packs_exactly(bits: int) -> None:
    of = Ring(bits)
    vector = vectors([0], 70_003, bits)[0]
    packed = of.pack(vector)
    assert len(packed) == of.packed_size(len(vector)) == (70_003 * bits + 7) // 8
    assert np.array_equal(of.unpack(packed, len(vector)), vector)
    head = vector[:50].tolist()
    whole = int.from_bytes(packed, "little")
    assert [whole >> (i * bits) & (2**bits - 1) for i in range(50)] == head


def test_packed_vectors_are_canonical() -> None:
    for data in (b"", bytes(2), bytes(4), b"\0\0\xf0", b"\0\0\x10"):
        with pytest.raises(SecureAggError):
            Ring(10).unpack(data, 2)
    assert Ring(10).unpack(b"\xff\xff\x0f", 2).tolist() == [1023, 1023]


def test_a_lost_reveal_draws_the_graph_again() -> None:
    params = SecAggParams.derive(n=7, corrupt=0.0, dropout=0.4)
    assert params.attempts == 4
    inputs = vectors(range(7), 5, 32)
    result = secure_sum(inputs, params, dropped={"reveal": [2], "unmask": [3]})
    assert result.included == (0, 1, 3, 4, 5, 6)
    assert result.total.tolist() == exact_sum(inputs, result.included, 32)
    assert result.dropped == {"reveal": (2,), "unmask": (3,)}


@pytest.mark.parametrize("stage", [s for s in STAGES if s != "reveal"])
def test_too_few_left_is_named_and_reveals_nothing(stage: str) -> None:
    params = SecAggParams.derive(n=10, corrupt=0.1, dropout=0.2)
    inputs = vectors(range(10), 5, 32)
    with pytest.raises(ThresholdNotMet) as error:
        secure_sum(inputs, params, dropped={stage: range(6)})
    assert isinstance(error.value, QuorumNotMet) == (stage == "consistency")


def test_arguments() -> None:
    params = SecAggParams.derive(n=2, corrupt=0.0, dropout=0.0)
    with pytest.raises(ParameterError, match="no inputs"):
        secure_sum({}, params)
    with pytest.raises(ParameterError, match=r"params\.n is 2"):
        secure_sum(vectors(range(3), 1, 32), params)
    with pytest.raises(ParameterError, match="sleep"):
        secure_sum(vectors(range(2), 1, 32), params, dropped={"sleep": [1]})


def test_sharing_work_changes_no_bit() -> None:
    params = SecAggParams.derive(n=8, corrupt=0.1, dropout=0.2)
    totals, uploads = [], []
    for shared in (False, True):
        world = World(params, shared=shared)
        world.until(None, {Kind.DELIVERY: [3]})
        totals.append(world.server.result.total.tolist())
        uploads.append(world.uploads)
    assert totals[0] == totals[1]
    assert uploads[0] == uploads[1]


def test_shared_work_is_keyed_by_complete_inputs() -> None:
    """A forged signature over a message that was verified before is not taken for verified."""
    world = World(SecAggParams.derive(n=4, corrupt=0.0, dropout=0.0), shared=True)
    cohort = world.until(Kind.COHORT)[0]
    world.members[0].handle(cohort)
    forged = cohort[:-1] + bytes([cohort[-1] ^ 1])
    with pytest.raises(SecureAggError, match="does not verify"):
        world.members[1].handle(forged)
    assert world.shared is not None
    assert len(world.shared)
    world.shared.clear()
    assert not len(world.shared)


SMALL = [
    SecAggParams.derive(n=2, corrupt=0.0, dropout=0.0),
    SecAggParams.derive(n=5, corrupt=0.2, dropout=0.2, modulus_bits=20),
    SecAggParams.derive(n=7, corrupt=0.0, dropout=0.4, modulus_bits=16),
    SecAggParams(
        n=9, degree=4, threshold=2, quorum=5, min_alive=5, colluders=0, dropouts=4,
        modulus_bits=64, attempts=3,
    ),
]  # fmt: skip


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_random_schedules(data: st.DataObject) -> None:
    """Any dropouts, orders, repetitions, late comers and restarts: the exact sum, or none."""
    params = data.draw(st.sampled_from(SMALL), "params")
    world = World(params, floor=Floor(secrecy_bits=0), stores=True, seed="schedule")
    gone: set[int] = set()
    uploaded: set[int] = set()
    old: list[tuple[int, bytes]] = []
    messages = world.server.begin()
    try:
        while messages:
            lost = data.draw(st.sets(st.sampled_from(world.ids), max_size=1), "lost")
            gone |= lost
            stage = world.server.stage
            for i in data.draw(st.permutations(sorted(messages)), "order"):
                if i in gone:
                    continue
                if data.draw(st.integers(0, 5), "restart before") == 0 and world.stores[i].data:
                    world.restart(i)
                member = world.members[i]
                if member.stage.value < 4:
                    member.provide(world.inputs[i])
                reply = member.handle(messages[i])
                action = data.draw(st.integers(0, 5), "after")
                if action == 0 and stage.name != "UNMASK":
                    assert world.restart(i).handle(messages[i]) == reply  # sent again, to the bit
                elif action == 1:  # delivered by a later stage only
                    old.append((i, reply))
                    gone.add(i)
                    continue
                world.server.receive(i, reply)
                if stage.name == "MASKED_INPUT":
                    uploaded.add(i)
                if action == 2:
                    with pytest.raises(StageError, match="has sent"):
                        world.server.receive(i, reply)
                if action == 3:
                    world.server = Aggregator.from_bytes(
                        world.server.to_bytes(), roster=world.roster
                    )
            before = world.server.stage
            messages = world.server.close_stage()
            for i, late in old:
                if world.server.stage > before:
                    with pytest.raises(LateMessage):
                        world.server.receive(i, late)
            old.clear()
    except (ThresholdNotMet, NonceWithheld):
        assert gone  # nothing fails while everybody is there
        return
    result = world.server.result
    assert set(result.included) == uploaded
    assert result.blamed == {}
    assert result.total.tolist() == exact_sum(world.inputs, uploaded, params.modulus_bits)


def big_round(
    n: int, length: int, params: SecAggParams, dropped: Collection[int]
) -> tuple[np.ndarray, np.ndarray]:
    """A round whose inputs exist one at a time."""
    draw, of = fixed_entropy("big"), ring(params.modulus_bits)
    identities = {i: Identity.generate(draw) for i in range(n)}
    roster = Roster({i: key.public_bytes for i, key in identities.items()})
    context, shared = RoundContext(job=b"big", round=0), Shared()
    members = {
        i: Participant(
            identity=identity, id=i, roster=roster, params=params, context=context,
            length=length, entropy=draw, shared=shared,
        )
        for i, identity in identities.items()
    }  # fmt: skip
    server = Aggregator(
        roster=roster, params=params, context=context, length=length, cohort=range(n),
        shared=shared,
    )  # fmt: skip
    expected = of.zeros(length)
    messages = server.begin()
    while messages:
        for i, message in messages.items():
            if server.stage.name == "MASKED_INPUT":
                if i in dropped:
                    continue
                vector = np.frombuffer(
                    stream(i.to_bytes(32, "little"), length * of.dtype.itemsize), of.dtype
                )
                expected += vector
                members[i].provide(vector)
            server.receive(i, members[i].handle(message))
        messages = server.close_stage()
    assert server.result.included == tuple(i for i in range(n) if i not in dropped)
    return server.result.total, expected


@pytest.mark.slow
def test_a_thousand_members_of_a_hundred_thousand_elements() -> None:
    """n = 1000, d = 100 000, 10 % dropped, derived k."""
    params = SecAggParams.derive(n=1000, corrupt=0.1, dropout=0.1)
    total, expected = big_round(1000, 100_000, params, range(0, 1000, 10))
    assert np.array_equal(total, expected)
