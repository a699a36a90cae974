"""Attacks 16 to 24 and 28: one alive set for everybody, signed once, answered once."""

from __future__ import annotations

import dataclasses

import pytest

from secure_agg import Participant, SecAggParams
from secure_agg.errors import (
    AliveSetError,
    AlreadyReleased,
    AlreadySigned,
    DuplicateMember,
    LateMessage,
    QuorumNotMet,
    SignatureMismatch,
    StageError,
)
from secure_agg.messages import HEADER_SIZE, Kind, Unmask, frame, pack_ids
from secure_agg.shamir import combine
from tests.secure_agg.world import World, exact_sum, released, share_of, without

VICTIM = 0
PARAMS = SecAggParams.derive(n=5, corrupt=0.2, dropout=0.2)
SPLIT = SecAggParams(
    n=7, degree=6, threshold=2, quorum=5, min_alive=5, colluders=1, dropouts=2, modulus_bits=32
)


def session(message: bytes) -> bytes:
    return message[2:HEADER_SIZE]


def alive_message(original: bytes, alive: list[int]) -> bytes:
    return frame(Kind.ALIVE, session(original), pack_ids(alive))


def signature(reply: bytes) -> bytes:
    assert reply[1] == Kind.CONSISTENCY
    return reply[HEADER_SIZE:]


def unmask_message(original: bytes, signed: dict[int, bytes], dropped: list[int]) -> bytes:
    unmask = Unmask(signers=list(signed), signatures=list(signed.values()), dropped=dropped)
    return frame(Kind.UNMASK, session(original), unmask.body())


def reconstructed(world: World, replies: dict[int, bytes], kind: int) -> bytes:
    """One of the victim's secrets, from what the others released."""
    found = {
        world.place(VICTIM, i): share
        for i, reply in replies.items()
        if i != VICTIM and (share := share_of(reply, VICTIM, kind)) is not None
    }
    return combine(found, world.params.threshold)


def test_16_alive_not_a_subset() -> None:
    """The alive set names a member that dealt no shares, whose mask nobody can remove."""

    def attack() -> bytes:
        world = World(PARAMS)
        message = world.until(Kind.ALIVE, {Kind.NONCES: [4]})[VICTIM]
        return world.members[VICTIM].handle(alive_message(message, [0, 1, 2, 3, 4]))

    with pytest.raises(AliveSetError, match="names a member that dealt no shares"):
        attack()
    with without("alive_subset"):
        assert attack()[1] == Kind.CONSISTENCY


def test_17_self_absent() -> None:
    """The server has the victim's upload, calls it dropped, and asks even the victim to help."""

    def attack() -> list[int]:
        world = World(PARAMS)
        messages = world.until(Kind.ALIVE)
        alive = [1, 2, 3, 4]
        signed = {
            i: signature(world.members[i].handle(alive_message(messages[i], alive)))
            for i in world.ids
        }
        del signed[VICTIM]
        request = unmask_message(messages[1], signed, [VICTIM])
        replies = {i: world.members[i].handle(request) for i in world.ids}
        seed = released(replies[VICTIM]).own_seed
        found = world.strip(VICTIM, seed, reconstructed(world, replies, 1))
        assert found == world.inputs[VICTIM].tolist()
        return found

    with pytest.raises(AliveSetError, match="leaves this participant out"):
        attack()
    with without("self_alive"):
        assert attack()


def test_18_overlapping_alive_and_dropped() -> None:
    """The victim is in the signed alive set and in the dropped list: both its secrets come out."""

    def attack() -> list[int]:
        world = World(PARAMS)
        messages = world.until(Kind.ALIVE)
        signed = {i: signature(r) for i, r in world.deliver(messages).items()}
        request = unmask_message(messages[1], signed, [VICTIM])
        replies = {i: world.members[i].handle(request) for i in world.ids}
        seed, mask_key = (reconstructed(world, replies, kind) for kind in (0, 1))
        found = world.strip(VICTIM, seed, mask_key)
        assert found == world.inputs[VICTIM].tolist()
        return found

    with pytest.raises(AliveSetError, match="is not stage 1's set minus the alive set"):
        attack()

    def believing(dealt: list[int], alive: list[int], dropped: list[int]) -> frozenset[int]:
        return frozenset(dropped)

    with without("partition", believing):
        assert attack()


def test_19_second_alive_set() -> None:
    """Two signed alive sets are two sums, and their difference is the victim's input."""

    def attack() -> tuple[bytes, bytes]:
        world = World(PARAMS)
        messages = world.until(Kind.ALIVE)
        member = world.members[1]
        first = member.handle(messages[1])
        return first, member.handle(alive_message(messages[1], [1, 2, 3, 4]))

    with pytest.raises(AlreadySigned):
        attack()
    with without("signs_once"):
        first, second = attack()
    assert signature(first) != signature(second)


def split_view(world: World, *, duplicate: bool = False, forge: bool = False) -> list[int]:
    """Tell members 0-3 that all are alive and 4-6 that the victim dropped; unmask both."""
    messages = world.until(Kind.ALIVE)
    with_victim, without_victim = [0, 1, 2, 3], [4, 5, 6]
    signed_a = {i: signature(world.members[i].handle(messages[i])) for i in with_victim}
    other = alive_message(messages[4], [1, 2, 3, 4, 5, 6])
    signed_b = {i: signature(world.members[i].handle(other)) for i in without_victim}
    replies: dict[int, bytes] = {}
    for members, signed, dropped in (
        (with_victim, signed_a, []),
        (without_victim, signed_b, [VICTIM]),
    ):
        rows = list(signed.items())
        while (duplicate or forge) and len(rows) < world.params.quorum:
            free = next(i for i in (1, 2, 3, 4, 5, 6) if i not in dict(rows))
            rows.append(rows[-1] if duplicate else (free, bytes(64)))
        rows.sort()
        unmask = Unmask(signers=[r[0] for r in rows], signatures=[r[1] for r in rows],
                        dropped=dropped)  # fmt: skip
        request = frame(Kind.UNMASK, session(messages[0]), unmask.body())
        replies.update({i: world.members[i].handle(request) for i in members})
    seed = reconstructed(world, {i: replies[i] for i in with_victim}, 0)
    mask_key = reconstructed(world, {i: replies[i] for i in without_victim}, 1)
    found = world.strip(VICTIM, seed, mask_key)
    assert found == world.inputs[VICTIM].tolist()
    return found


def test_20_split_view() -> None:
    """Half of the members are told another alive set than the rest."""
    with pytest.raises(QuorumNotMet, match="4 signatures over the alive set: 5 are needed"):
        split_view(World(SPLIT))
    with without("quorum"):
        assert split_view(World(SPLIT))


def test_21_duplicated_signatures() -> None:
    """The split view again, its quorum made up of one signature several times."""
    with pytest.raises(DuplicateMember, match="one signer twice"):
        split_view(World(SPLIT), duplicate=True)
    with without("distinct_signers"):
        assert split_view(World(SPLIT), duplicate=True)


def test_21_forged_signatures() -> None:
    """The split view again, its quorum made up of signatures that nobody made."""
    with pytest.raises(SignatureMismatch, match="on its alive set"):
        split_view(World(SPLIT), forge=True)
    world = World(SPLIT)
    with without("signature"):
        assert split_view(world, forge=True)


def test_21_signer_outside_the_alive_set() -> None:
    """A colluder that is not alive signs to lift a set over the quorum."""

    def attack() -> bytes:
        world = World(SPLIT)
        messages = world.until(Kind.ALIVE, {Kind.DELIVERY: [6]})
        signed = {i: signature(r) for i, r in world.deliver(messages).items()}
        asked = world.members[1]._now.signed
        assert asked is not None
        signed[6] = world.identities[6].sign(asked)
        return world.members[1].handle(unmask_message(messages[1], signed, [6]))

    with pytest.raises(AliveSetError, match="a signer outside the alive set"):
        attack()
    with without("signers_alive"):
        assert attack()[1] == Kind.RELEASE


def after_release(world: World, lose_the_record: bool) -> bytes:
    """Release, crash, resume, and ask again."""
    messages = world.until(Kind.UNMASK)
    with pytest.MonkeyPatch.context() as patch:
        if lose_the_record:
            patch.setattr(Participant, "_persist", lambda self, store: None)
        world.members[1].handle(messages[1])
    return world.restart(1).handle(messages[1])


def test_22_second_unmask() -> None:
    """Shares are asked for twice, with and without a crash between."""
    world = World(PARAMS)
    messages = world.until(Kind.UNMASK)
    world.members[1].handle(messages[1])
    with pytest.raises(AlreadyReleased):
        world.members[1].handle(messages[1])
    assert world.members[1]._now.secrets is None  # erased: there is nothing left to release
    assert world.members[1]._now.held == {}

    with pytest.raises(AlreadyReleased):
        after_release(World(PARAMS, stores=True), lose_the_record=False)
    assert after_release(World(PARAMS, stores=True), lose_the_record=True)[1] == Kind.RELEASE


def test_22_the_stage_check_stands_behind_it() -> None:
    world = World(PARAMS)
    messages = world.until(Kind.UNMASK)
    world.members[1].handle(messages[1])
    with without("not_released"), pytest.raises(StageError):
        world.members[1].handle(messages[1])


def after_signing(world: World, lose_the_record: bool) -> bytes:
    """Sign, crash, resume, and be asked to sign another alive set."""
    messages = world.until(Kind.ALIVE)
    with pytest.MonkeyPatch.context() as patch:
        if lose_the_record:
            patch.setattr(Participant, "_persist", lambda self, store: None)
        world.members[1].handle(messages[1])
    return world.restart(1).handle(alive_message(messages[1], [1, 2, 3, 4]))


def test_23_crash_then_asked_to_sign_again() -> None:
    """The record is written before the signature is handed out."""
    with pytest.raises(AlreadySigned):
        after_signing(World(PARAMS, stores=True), lose_the_record=False)
    assert after_signing(World(PARAMS, stores=True), lose_the_record=True)[1] == Kind.CONSISTENCY


def test_24_late_upload() -> None:
    """An upload arrives after its sender was declared dropped."""

    def attack() -> World:
        world = World(PARAMS)
        messages = world.until(Kind.DELIVERY)
        replies = world.deliver(messages)
        late = replies.pop(VICTIM)
        for i, reply in replies.items():
            world.server.receive(i, reply)
        messages = world.server.close_stage()
        try:
            world.server.receive(VICTIM, late)
        finally:
            while messages:
                messages = world.step(messages)
        return world

    with pytest.raises(LateMessage, match="member 0: the stage is closed"):
        attack()
    with without("awaited"):
        world = attack()
    assert world.server.result.included == (1, 2, 3, 4)
    assert world.server.result.total.tolist() != exact_sum(world.inputs, [1, 2, 3, 4], 32)


def test_24_the_sum_is_unharmed_by_the_discarded_upload() -> None:
    world = World(PARAMS)
    replies = world.deliver(world.until(Kind.DELIVERY))
    late = replies.pop(VICTIM)
    for i, reply in replies.items():
        world.server.receive(i, reply)
    messages = world.server.close_stage()
    with pytest.raises(LateMessage):
        world.server.receive(VICTIM, late)
    assert world.server.blamed == {}  # being late is no crime
    while messages:
        messages = world.step(messages)
    assert world.server.result.total.tolist() == exact_sum(world.inputs, [1, 2, 3, 4], 32)


def test_28_skipped_or_repeated_stage() -> None:
    """A second cohort after the nonces are known, so that the server can choose the graph."""

    def attack() -> bytes:
        world = World(dataclasses.replace(SPLIT, min_alive=4, dropouts=3))
        cohort = world.until(Kind.COHORT)[VICTIM]
        world.members[VICTIM].handle(cohort)
        fewer = cohort[:-164]  # member 6 left out
        return world.members[VICTIM].handle(fewer)

    with pytest.raises(StageError, match="a COHORT message in stage REVEALED"):
        attack()
    with without("stage"):
        assert attack()[1] == Kind.REVEAL


@pytest.mark.parametrize("asked", [Kind.NONCES, Kind.DELIVERY, Kind.ALIVE, Kind.UNMASK])
def test_28_every_stage_waits_for_the_one_before(asked: Kind) -> None:
    done = World(PARAMS)
    message = done.until(asked)[VICTIM]
    fresh = World(PARAMS)
    fresh.members[VICTIM].handle(fresh.server.begin()[VICTIM])
    with pytest.raises(StageError, match=f"a {asked.name} message in stage ADVERTISED"):
        fresh.members[VICTIM].handle(message)


def test_21_a_bad_signature_is_pinned_on_its_sender_and_the_round_goes_on() -> None:
    world = World(PARAMS)
    replies = world.deliver(world.until(Kind.ALIVE))
    for i, reply in replies.items():
        forged = reply[:-1] + bytes([reply[-1] ^ 1])
        world.server.receive(i, forged if i == 1 else reply)
    messages = world.server.close_stage()
    assert list(world.server.blamed) == [1]
    assert sorted(messages) == [0, 2, 3, 4]
    world.step(messages)
    assert world.server.result.total.tolist() == exact_sum(world.inputs, world.ids, 32)
