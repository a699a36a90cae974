"""Attacks on what a round is: its members, committee, keys, parameters, number and state.

Every test runs an attack twice: against the protocol, which refuses it by name, and against the
protocol without that one check, where it succeeds.
"""

from __future__ import annotations

import copy
import dataclasses
import struct
from typing import Any

import numpy as np
import pytest

from secure_agg import (
    Identity,
    Member,
    MemoryStore,
    Roster,
    RoundContext,
    SealingKeys,
    SecAggParams,
)
from secure_agg import prekeys as prekeys_module
from secure_agg.digests import tag
from secure_agg.errors import (
    CommitteeMismatch,
    ContextMismatch,
    DuplicateMember,
    InputError,
    LowOrderPoint,
    MessageError,
    ParameterError,
    PolicyViolation,
    RosterError,
    SignatureMismatch,
    StageError,
    StaleRound,
    StateError,
)
from secure_agg.messages import HEADER_SIZE, U32, Kind, Upload, frame
from secure_agg.params import _WIRE
from secure_agg.prekeys import public_key
from secure_agg.sealing import _LOW_ORDER, _derive, unseal
from secure_agg.session import Session
from tests.adversary.eve import COLLUDER, PARAMS, VICTIM, Eve, rogue_session
from tests.secure_agg.world import World, fixed_entropy, without


def alone(eve: Eve, private: dict[int, bytes]) -> list[int]:
    """The victim's vector from its own shares, opened with private keys by committee member."""
    answers = {id_: eve.shares(id_, [VICTIM], key) for id_, key in private.items()}
    found: list[int] = eve.open([VICTIM], answers).tolist()
    return found


def issue(identity: Identity, name: str) -> tuple[bytes, bytes]:
    """A sealing key's statement and its private half."""
    keys = SealingKeys(identity, entropy=fixed_entropy(name))
    (prekey,) = keys.issue(1)
    return prekey, keys.pooled(public_key(prekey))


# -- the committee's keys -------------------------------------------------------------------------


def test_01_fake_sealing_keys() -> None:
    """The server seals the committee's places with its own keys and reads the victim alone."""
    mallory = Identity(b"m" * 32)

    def attack() -> tuple[list[int], Eve]:
        world = World(PARAMS)
        fake = {id_: issue(mallory, f"fake {id_}") for id_ in (0, 1, 3)}
        prekeys = world.prekeys | {id_: prekey for id_, (prekey, _) in fake.items()}
        session = rogue_session(world, prekeys=[prekeys[id_] for id_ in world.committee])
        eve = Eve(world, (), session)
        eve.upload_of(VICTIM)
        return alone(eve, {id_: private for id_, (_, private) in fake.items()}), eve

    with pytest.raises(SignatureMismatch, match="a sealing key's signature"):
        attack()
    with without("sealing_key_signature"):
        found, eve = attack()
    assert found == eve.planted()


def test_02_sybils() -> None:
    """The server fills the cohort with members that it made up."""
    invented = {id_: Identity(bytes([id_]) * 32) for id_ in (100, 101, 102)}

    def attack() -> tuple[list[int], Eve]:
        world = World(PARAMS)
        keys = {id_: issue(identity, f"sybil {id_}") for id_, identity in invented.items()}
        prekeys = world.prekeys | {id_: prekey for id_, (prekey, _) in keys.items()}
        cohort = [*world.ids[:7], *invented]
        session = rogue_session(world, cohort=cohort, prekeys=[prekeys[id_] for id_ in cohort])
        eve = Eve(world, (), session)
        eve.upload_of(VICTIM)
        return alone(eve, {id_: private for id_, (_, private) in keys.items()}), eve

    with pytest.raises(RosterError, match="member 100 is not in the pinned roster"):
        attack()

    def first_use(roster: Roster, member: int) -> bytes:
        return invented[member].public_bytes if member in invented else roster[member]

    with without("enrolled", first_use):
        found, eve = attack()
    assert found == eve.planted()


def test_03_one_colluder_on_several_places() -> None:
    """A cohort that names the colluder three times gives it three shares of everybody."""

    def attack() -> tuple[list[int], Eve]:
        world = World(PARAMS)
        identity = world.identities[COLLUDER]
        keys = [issue(identity, f"place {place}") for place in range(3)]
        cohort = [*world.ids[:7], COLLUDER, COLLUDER, COLLUDER]
        prekeys = [*(world.prekeys[id_] for id_ in world.ids[:7]), *(key for key, _ in keys)]
        session = rogue_session(world, cohort=cohort, committee=cohort, prekeys=prekeys)
        eve = Eve(world, (), session)
        eve.upload_of(VICTIM)
        answers = {}
        for place, (_, private) in enumerate(keys, 7):
            eve.session.positions[COLLUDER] = place  # type: ignore[index]
            answers[place] = eve.shares(COLLUDER, [VICTIM], private)
        eve.session.positions.update({7: 7, 8: 8, 9: 9})  # type: ignore[attr-defined]
        return eve.open([VICTIM], answers).tolist(), eve

    with pytest.raises(DuplicateMember, match="one id occurs twice"):
        attack()
    with without("distinct"):
        found, eve = attack()
    assert found == eve.planted()


def test_04_one_sealing_key_on_two_places() -> None:
    """Two colluders show one key: anyone who holds it opens two shares."""

    def attack() -> int:
        world = World(PARAMS)
        prekey, private = issue(world.identities[8], "shared")
        statement = prekeys_module._statement(world.identities[9].public_bytes, public_key(prekey))
        copied = prekey[:-64] + world.identities[9].sign(statement)
        prekeys = world.prekeys | {8: prekey, 9: copied}
        session = rogue_session(world, prekeys=[prekeys[id_] for id_ in world.committee])
        eve = Eve(world, (), session)
        eve.upload_of(VICTIM)
        return len([eve.shares(id_, [VICTIM], private) for id_ in (8, 9)])

    with pytest.raises(DuplicateMember, match="one sealing key occurs twice"):
        attack()
    with without("distinct"):
        assert attack() == 2


@pytest.mark.parametrize("u", sorted(_LOW_ORDER))
def test_05_low_order_sealing_key(u: int) -> None:
    """A colluder's key makes the agreed secret zero, which anybody on the network knows.

    Two checks stand in the way, one where the key is read and one where it is used.
    """

    def attack() -> Eve:
        world = World(PARAMS)
        identity = world.identities[COLLUDER]
        public = u.to_bytes(32, "little")
        signature = identity.sign(prekeys_module._statement(identity.public_bytes, public))
        prekeys = world.prekeys | {COLLUDER: b"\1" + public + signature}
        session = rogue_session(world, prekeys=[prekeys[id_] for id_ in world.committee])
        eve = Eve(world, (), session)
        eve.upload_of(VICTIM)
        return eve

    with pytest.raises(LowOrderPoint, match="a sealing key of low order"):
        attack()
    with without("high_order"), pytest.raises(LowOrderPoint):
        attack()
    with without("high_order"), without("contributory"):
        eve = attack()
        # Anybody computes the key from what is public: the secret is zero for every private key.
        ephemeral = eve.dealt[VICTIM].ephemeral
        position = eve.session.positions[COLLUDER]
        place = struct.pack("<III", VICTIM, 0, position)
        start = tag("seal") + eve.session.hash
        key = _derive(bytes(32), (start, place, ephemeral, eve.session.keys[position]))
        assert unseal(key, eve.sealed(VICTIM, COLLUDER), eve.session.hash) is not None


def test_06_a_weaker_suite() -> None:
    """Sealing keys without ML-KEM in a round of suite 2: recorded shares open one day."""
    params = dataclasses.replace(PARAMS, suite=2)

    def attack() -> Session:
        world = World(params)
        weak = [issue(world.identities[id_], f"weak {id_}")[0] for id_ in world.ids]
        return Session.build(
            params=params,
            context=world.context,
            roster=world.roster,
            cohort=world.ids,
            committee=world.committee,
            prekeys=weak,
        )

    with pytest.raises(MessageError, match="sealing key is of suite 1, not 2"):
        attack()
    with without("suite"):
        assert {len(key) for key in attack().keys} == {32}


def test_06_an_encapsulation_key_that_is_none() -> None:
    """One colluder's malformed key would stop every dealer from uploading."""
    params = dataclasses.replace(PARAMS, suite=2)

    def attack() -> bytes:
        world = World(params)
        identity = world.identities[COLLUDER]
        public = world.prekeys[COLLUDER][1:33] + b"\xff" * 1184
        signature = identity.sign(prekeys_module._statement(identity.public_bytes, public))
        prekeys = world.prekeys | {COLLUDER: b"\2" + public + signature}
        session = rogue_session(world, prekeys=[prekeys[id_] for id_ in world.committee])
        return Eve(world, (), session).upload_of(VICTIM)

    with pytest.raises(MessageError, match="ML-KEM half is malformed"):
        attack()
    with without("encapsulation_key"), pytest.raises(ValueError, match="key"):
        attack()  # not even a named refusal


def test_07_reused_sealing_key() -> None:
    """A key that was named in one round is named again in the next."""

    def attack() -> bytes:
        world = World(PARAMS)
        world.until(None)
        old = world.prekeys[0]
        world.open(RoundContext(job=b"job", round=2))
        world.prekeys[0] = old
        world.server = world.aggregator()
        messages = world.step(world.server.begin())
        return world.members[0].handle(messages[0])

    with pytest.raises(StateError, match="the sealing key of this round"):
        attack()

    seen: dict[bytes, bytes] = {}

    def hoard(self: SealingKeys, public: bytes) -> bytes:
        seen.update(self._pool)
        return seen.get(public, b"")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SealingKeys, "pooled", hoard)
        assert attack()[1] == Kind.CHECKED  # one private key opens the shares of both rounds


# -- the draw -------------------------------------------------------------------------------------

SMALL = dataclasses.replace(
    PARAMS, n=14, committee=6, colluders=1, quorum=4, threshold=3, packing=2, min_included=8
)
"""A committee of six is drawn from fourteen."""


def test_08_wrong_draw() -> None:
    """The server seats its friends."""
    friends = (8, 9, 10, 11, 12, 13)

    def attack() -> tuple[list[int], Eve]:
        world = World(SMALL)
        prekeys = {id_: world.sealing[id_].issue(1)[0] for id_ in friends}
        session = rogue_session(world, committee=friends, prekeys=list(prekeys.values()))
        eve = Eve(world, friends, session)
        eve.upload_of(VICTIM)
        return alone(eve, eve.private), eve

    with pytest.raises(CommitteeMismatch):
        attack()
    with without("committee"):
        found, eve = attack()
    assert found == eve.planted()


def test_09_ground_committee() -> None:
    """The server tries cohorts until the draw seats enough of its friends.

    The roster says how many friends it may have; parameters that do not absorb the search are
    refused, however they were agreed upon.
    """
    friends = (8, 9, 10, 11, 12, 13)

    def attack(corrupt: int | None) -> tuple[list[int], Eve]:
        world = World(SMALL, ids=list(range(14)), corrupt=corrupt)
        for round_ in range(1, 400):  # what it varies here is the round's number
            context = RoundContext(job=b"job", round=round_)
            world.open(context)
            if len(set(world.committee) & set(friends)) >= SMALL.threshold + 1:
                break
        eve = Eve(world, friends)
        eve.upload_of(VICTIM)
        return alone(eve, dict(list(eve.private.items())[:3])), eve

    with pytest.raises(PolicyViolation, match="1 colluders tolerated in a committee of 6"):
        attack(corrupt=6)
    found, eve = attack(corrupt=None)  # nobody told the member whom to fear
    assert found == eve.planted()
    with without("roster_colluders"):
        found, eve = attack(corrupt=6)
    assert found == eve.planted()


def test_10_parameters_below_the_roster_s_assumption() -> None:
    """Ten members of whom three may collude, and a sum that three colluders almost fill."""
    weak = dataclasses.replace(
        PARAMS, colluders=3, quorum=7, threshold=6, packing=3, min_included=4
    )

    def attack() -> bytes:
        world = World(weak, corrupt=3)
        return Eve(world, ()).upload_of(VICTIM)

    with pytest.raises(PolicyViolation, match="a sum of 4 inputs: the roster assumes 3"):
        attack()
    with without("roster_colluders"):
        assert attack()[1] == Kind.UPLOAD
    enough = World(dataclasses.replace(weak, min_included=5), corrupt=3)
    assert Eve(enough, ()).upload_of(VICTIM)[1] == Kind.UPLOAD


# -- what was agreed ------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "job": RoundContext(job=b"another", round=1),
    "round": RoundContext(job=b"job", round=2),
    "model_hash": RoundContext(job=b"job", round=1, model_hash=b"another"),
    "policy": RoundContext(job=b"job", round=1, policy=b"clip=1000"),
    "buffers": RoundContext(job=b"job", round=1, buffers=2),
}


@pytest.mark.parametrize("what", OTHER)
def test_11_another_round_than_was_agreed(what: str) -> None:
    def attack() -> bytes:
        world = World(PARAMS)
        return Eve(world, (), rogue_session(world, context=OTHER[what])).upload_of(VICTIM)

    with pytest.raises(ContextMismatch, match=f"another {what} than was agreed"):
        attack()
    with without("context"):
        assert attack()[1] == Kind.UPLOAD


def test_12_another_roster() -> None:
    def attack() -> bytes:
        world = World(PARAMS)
        roster = Roster({**world.roster, 50: bytes(32)})
        return Eve(world, (), rogue_session(world, roster=roster)).upload_of(VICTIM)

    with pytest.raises(ContextMismatch, match="another roster"):
        attack()
    # The session hashes the roster: without the check the message contradicts itself.
    with without("context"), pytest.raises(MessageError, match="another session"):
        attack()


def test_13_weaker_parameters() -> None:
    """Announced parameters that hold against nobody: two colluders read the victim alone."""
    weak = dataclasses.replace(PARAMS, colluders=0, threshold=2, packing=1)
    strong = dataclasses.replace(PARAMS, colluders=3, quorum=7, threshold=6, packing=2)

    def attack() -> tuple[list[int], Eve]:
        world = World(strong)
        eve = Eve(world, (8, 9), rogue_session(world, params=weak))
        eve.upload_of(VICTIM)
        return alone(eve, eve.private), eve

    with pytest.raises(ContextMismatch, match="another parameters than was agreed"):
        attack()
    with without("context"):
        found, eve = attack()
    assert found == eve.planted()


@pytest.mark.parametrize(
    "unsafe",
    [
        {"threshold": 2, "packing": 2},
        {"quorum": 5},
        {"colluders": 2},
        {"min_included": 1},
        {"scale_bits": 4},
        {"log_q": 60},
    ],
)
def test_14_parameters_that_are_unsafe_cannot_be_made(unsafe: dict[str, int]) -> None:
    with pytest.raises(ParameterError):
        dataclasses.replace(PARAMS, **unsafe)
    raw = dataclasses.asdict(PARAMS) | unsafe
    with pytest.raises(ParameterError):
        SecAggParams.decode(_WIRE.pack(*raw.values()))


# -- rounds and state -----------------------------------------------------------------------------


def test_15_an_earlier_round() -> None:
    """A round that is over is opened again, for the next sum over others."""

    def attack() -> bytes:
        world = World(PARAMS, context=RoundContext(job=b"job", round=2))
        world.until(None)
        world.open(RoundContext(job=b"job", round=1))
        return Eve(world, ()).upload_of(VICTIM)

    with pytest.raises(StaleRound, match="round 1 is below the stored mark of round 2"):
        attack()
    with without("fresh"):
        assert attack()[1] == Kind.UPLOAD


def test_16_two_sessions_of_one_round() -> None:
    """The round is opened again with fresh sealing keys, and without the victim."""

    def attack() -> tuple[list[int], Eve]:
        world = World(PARAMS)
        eve = Eve(world, ())
        first = world.finish(world.server.begin())
        world.open()
        for id_, member in world.members.items():
            member._vector = world.inputs[id_]
        second = world.finish(world.until(Kind.OPENING), {VICTIM})
        return eve.difference(first, second), eve

    with pytest.raises(StaleRound, match="round 1 was entered in another session"):
        attack()
    with without("one_session"), pytest.raises(StaleRound, match="upload 0 has left"):
        attack()
    # The mark of the first session stays: its set, its delivery and its answer are in the way too.
    with without("one_session"), without("upload_once"), pytest.raises(StageError):
        attack()
    again = (without("delivered_once"), without("endorses_once"), without("answers_once"))
    with without("one_session"), without("upload_once"), again[0], again[1], again[2]:
        found, eve = attack()
    assert found == eve.planted()


@pytest.mark.parametrize("what", ["nothing", "memory", "disk"])
def test_17_a_second_upload_in_one_session(what: str) -> None:
    """After a restart that lost this, the opening is shown again: x under two secrets.

    Two uploads may be summed with different sets; either store alone remembers the first.
    """

    def attack() -> tuple[bytes, bytes]:
        world = World(PARAMS)
        eve = Eve(world, ())
        first = eve.upload_of(VICTIM)
        if what == "disk":
            world.disks[VICTIM] = MemoryStore()
        world.restart(VICTIM, memory=what != "memory")
        member = world.members[VICTIM]
        member._now = dataclasses.replace(member._now, last=None)
        member._vector = world.inputs[VICTIM]
        return first, eve.upload_of(VICTIM)

    with pytest.raises(StaleRound, match="upload 0 has left in this round"):
        attack()
    with without("upload_once"):
        first, second = attack()
    assert first != second


def test_18_a_second_upload_on_demand() -> None:
    """NEXT belongs to epochs."""

    def attack() -> bytes:
        world = World(PARAMS)
        eve = Eve(world, ())
        eve.upload_of(VICTIM)
        world.members[VICTIM]._vector = world.inputs[VICTIM]
        return world.members[VICTIM].handle(frame(Kind.NEXT, eve.session.hash, U32.pack(1)))

    with pytest.raises(StageError, match="upload 1 is asked for: there is one"):
        attack()
    with without("next_upload"):
        assert attack()[1] == Kind.UPLOAD


def test_19_the_same_secret_twice() -> None:
    """Why entropy must be fresh: under one seed, the difference of ciphertexts is that of inputs.

    An upload draws its own 32 bytes, and a retried round draws again.
    """
    world = World(PARAMS)
    found: list[bytes] = []
    for entropy in (lambda size: bytes(size), lambda size: bytes(size), fixed_entropy("fresh")):
        for store in (world.disks, world.tmpfs):
            store[VICTIM] = MemoryStore()
        world.sealing[VICTIM] = world.keys(VICTIM)
        member = world.member(VICTIM, entropy=entropy)
        vector = np.zeros(PARAMS.dimension, np.uint32)
        vector[0] = len(found)  # differs by one in one place
        member.provide(vector)
        message = Eve(world, ()).upload_of(VICTIM, member)
        found.append(bytes(Upload.parse(message, world.server.session).ciphertext))
    same = [a == b for a, b in zip(found[0], found[1], strict=True)]
    assert same.count(False) <= 6  # one coefficient: the rest of the noise cancelled
    fresh = [a == b for a, b in zip(found[0], found[2], strict=True)]
    assert fresh.count(True) < len(fresh) // 50


def test_20_an_uninvited_member() -> None:
    """An upload for a round whose cohort does not contain its sender."""
    params = dataclasses.replace(PARAMS, n=9, committee=9, quorum=6)

    def attack() -> bytes:
        world = World(params, ids=[0, 1, 3, 4, 5, 6, 7, 8, 9])
        identity = Identity(b"u" * 32)
        roster = Roster({**world.roster, VICTIM: identity.public_bytes})
        session = rogue_session(world, roster=roster)
        member = Member(
            identity=identity,
            id=VICTIM,
            roster=roster,
            params=params,
            context=world.context,
            sealing=SealingKeys(identity),
        )
        member.provide(world.inputs[0])
        return Eve(world, (), session).upload_of(VICTIM, member)

    with pytest.raises(RosterError, match=f"member {VICTIM} is not in the cohort"):
        attack()
    with without("invited"):
        assert attack()[1] == Kind.UPLOAD


def test_21_a_roster_with_another_key_for_this_member() -> None:
    """A forked roster in which somebody else signs in this member's name."""

    def attack() -> Member:
        world = World(PARAMS)
        roster = Roster({**world.roster, VICTIM: Identity(b"f" * 32).public_bytes})
        return world.member(VICTIM, roster=roster)

    with pytest.raises(RosterError, match="another public key for this member"):
        attack()
    with without("own_identity"):
        assert attack().id == VICTIM


def test_22_an_opening_under_another_session_s_name() -> None:
    def attack() -> bytes:
        world = World(PARAMS)
        good = Eve(world, ()).opening()
        return world.members[VICTIM].handle(frame(Kind.OPENING, bytes(32), good[HEADER_SIZE:]))

    with pytest.raises(MessageError, match="a OPENING message of another session"):
        attack()
    with without("this_session"):
        assert attack()[1] == Kind.UPLOAD


def test_23_a_vector_beyond_the_ring() -> None:
    """A value that does not fit would carry into its neighbour."""

    def attack() -> World:
        world = World(PARAMS)
        vector = world.inputs[VICTIM].copy()
        vector[5] = 2**21
        world.members[VICTIM].provide(vector)
        return world

    with pytest.raises(InputError, match="does not fit in 20 bits"):
        attack()
    with without("input_range"):
        assert attack().members[VICTIM]._vector is not None
    world = World(PARAMS)
    for wrong in (np.zeros(3, np.uint32), np.zeros(24), np.full(24, -1), [["a"]]):
        with pytest.raises(InputError):
            world.members[VICTIM].provide(wrong)


def test_24_a_copied_member_folder_elsewhere() -> None:
    """A backup on another machine uploads in no round that the original entered."""
    world = World(PARAMS)
    eve = Eve(world, ())
    eve.upload_of(VICTIM)
    sealing = SealingKeys(world.identities[VICTIM])
    copied = world.member(VICTIM, sealing=sealing, store=copy.deepcopy(world.disks[VICTIM]))
    assert copied.uploaded
    with pytest.raises(StaleRound):
        copied.handle(eve.opening())
    with pytest.raises(InputError, match="there is one a round"):
        copied.provide(world.inputs[VICTIM])


def test_25_reflected_and_foreign_messages() -> None:
    """A member's own kinds of messages, and the other side's, are refused by both machines."""
    world = World(PARAMS)
    messages = world.server.begin()
    upload = world.members[0].handle(messages[0])
    with pytest.raises(MessageError, match="which members send and never receive"):
        world.members[1].handle(upload)
    with pytest.raises(MessageError, match="which servers send and never receive"):
        world.server.receive(0, messages[0])
