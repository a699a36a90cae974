"""Attacks on the one set: two sums from which a difference is one member's vector.

Every test runs an attack twice: against the protocol, which refuses it by name, and against the
protocol without that one check, where it succeeds.
"""

from __future__ import annotations

import copy

import pytest

from secure_agg.errors import (
    AlreadyAnswered,
    AlreadyEndorsed,
    MessageError,
    QuorumNotMet,
    SetError,
    SignatureMismatch,
    StageError,
    StateError,
    ThresholdNotMet,
)
from secure_agg.messages import HEADER_SIZE, U32, Kind, frame
from secure_agg.session import endorsement_digest
from secure_agg.signatures import verifies
from tests.adversary.eve import COLLUDER, PARAMS, VICTIM, Eve
from tests.secure_agg.world import World, without


def checked(colluders: tuple[int, ...] = (COLLUDER,)) -> Eve:
    """Everybody uploaded, and every honest member checked every share."""
    eve = Eve(World(PARAMS), colluders)
    eve.collect()
    for id_ in eve.honest:
        eve.world.members[id_].handle(eve.delivery(id_, eve.uploads))
    return eve


def test_01_split_set() -> None:
    """Half of the members endorse everybody, the other half everybody but the victim."""

    def attack() -> tuple[list[int], Eve]:
        eve = checked()
        everybody = set(eve.uploads)
        totals = []
        for half, dealers in ((eve.honest[:4], everybody), (eve.honest[4:], everybody - {VICTIM})):
            certificate = eve.certificate(eve.endorsed_by(half, dealers))
            totals.append(eve.open(dealers, eve.answers(half, dealers, certificate)))
        return eve.difference(totals[0], totals[1]), eve

    with pytest.raises(QuorumNotMet, match="5 endorsements of the set: 6 are needed"):
        attack()
    with without("quorum"):
        found, eve = attack()
    assert found == eve.planted()


def two_sets(eve: Eve, restart: bool) -> list[int]:
    """Everybody endorses both sets; each half is asked last for the one that it shall answer."""
    everybody = set(eve.uploads)
    sets = (everybody, everybody - {VICTIM})
    halves = (eve.honest[:4], eve.honest[4:])
    signed: list[dict[int, bytes]] = [{}, {}]
    for half, order in zip(halves, ((1, 0), (0, 1)), strict=True):
        for which in order:
            signed[which] |= eve.endorsed_by(half, sets[which])
            for id_ in half if restart else ():
                eve.world.restart(id_)
    totals = []
    for which, half in enumerate(halves):
        certificate = eve.certificate(signed[which])
        totals.append(eve.open(sets[which], eve.answers(half, sets[which], certificate)))
    return eve.difference(totals[0], totals[1])


@pytest.mark.parametrize("restart", [False, True])
def test_02_two_sets(restart: bool) -> None:
    """Every member endorses two sets, in one process or in two."""
    with pytest.raises(AlreadyEndorsed):
        two_sets(checked(), restart)
    with without("endorses_once"):
        eve = checked()
        assert two_sets(eve, restart) == eve.planted()


@pytest.mark.parametrize("what", ["disk", "tmpfs"])
def test_03_put_back_state(what: str) -> None:
    """A restored backup of the disk, or of the memory, forgets the first endorsement."""

    def attack() -> tuple[bytes, bytes]:
        eve = checked()
        stores = eve.world.disks if what == "disk" else eve.world.tmpfs
        before = copy.deepcopy(stores[0])
        everybody = set(eve.uploads)
        first = eve.endorsed_by([0], everybody)[0]
        stores[0] = before
        eve.world.restart(0)
        return first, eve.endorsed_by([0], everybody - {VICTIM})[0]

    with pytest.raises(AlreadyEndorsed):
        attack()
    with without("endorses_once"):
        first, second = attack()
    assert first != second


def test_04_a_second_answer_after_the_memory_was_put_back() -> None:
    def attack() -> tuple[bytes, bytes]:
        eve = checked()
        signed = eve.endorsed_by(eve.honest, set(eve.uploads))
        before = copy.deepcopy(eve.world.tmpfs[0])
        first = eve.world.members[0].handle(eve.certificate(signed))
        eve.world.tmpfs[0] = before
        eve.world.restart(0)
        del signed[eve.honest[3]]
        return first, eve.world.members[0].handle(eve.certificate(signed))

    with pytest.raises(AlreadyAnswered):
        attack()
    with without("answers_once"):
        first, second = attack()
    assert first == second  # the set is the same: what is endorsed once bounds even this


def test_05_short_certificate() -> None:
    def attack() -> bytes:
        eve = checked()
        signed = eve.endorsed_by(eve.honest, set(eve.uploads))
        few = dict(list(signed.items())[: PARAMS.quorum - 1])
        return eve.world.members[0].handle(eve.certificate(few))

    with pytest.raises(QuorumNotMet, match="5 endorsements"):
        attack()
    with without("quorum"):
        assert attack()[1] == Kind.ANSWER


@pytest.mark.parametrize("kind", ["nobody's", "of another set", "of another member"])
def test_06_forged_endorsements(kind: str) -> None:
    """Each half is told that a quorum stands behind the set that it alone endorsed."""

    def attack() -> tuple[list[int], Eve]:
        eve = checked()
        everybody = set(eve.uploads)
        totals = []
        earlier: dict[int, bytes] = {}
        for half, dealers in ((eve.honest[:4], everybody), (eve.honest[4:], everybody - {VICTIM})):
            mine = eve.endorsed_by(half, dealers)
            missing = [id_ for id_ in eve.honest if id_ not in half][:2]
            if kind == "of another set" and earlier:
                others = {id_: earlier[id_] for id_ in missing}
            else:
                signature = bytes(64) if kind == "nobody's" else mine[half[0]]
                others = dict.fromkeys(missing, signature)
            earlier = mine
            certificate = eve.certificate(others | mine)
            totals.append(eve.open(dealers, eve.answers(half, dealers, certificate)))
        return eve.difference(totals[0], totals[1]), eve

    with pytest.raises(SignatureMismatch, match="on its endorsement"):
        attack()
    with without("signature"):
        found, eve = attack()
    assert found == eve.planted()


def test_07_one_endorser_counted_twice() -> None:
    """The certificate names positions by one bit each: an endorser cannot occur twice."""
    eve = checked()
    signed = eve.endorsed_by(eve.honest[:4], set(eve.uploads))
    good = eve.certificate(signed)
    with pytest.raises(MessageError, match="whose signatures do not fill it"):
        eve.world.members[0].handle(good + good[-64:])


def test_08_small_set() -> None:
    """A sum of the victim and one colluder."""

    def attack() -> tuple[list[int], Eve]:
        eve = checked()
        dealers = {VICTIM, COLLUDER}
        certificate = eve.certificate(eve.endorsed_by(eve.honest, dealers))
        total = eve.open(dealers, eve.answers(eve.honest, dealers, certificate))
        return eve.difference(total, eve.world.inputs[COLLUDER]), eve

    with pytest.raises(ThresholdNotMet, match="2 uploads in the proposed set: at least 8"):
        attack()
    with without("enough_included"):
        found, eve = attack()
    assert found == eve.planted()


def test_09_withheld_share() -> None:
    """A member that never saw the victim's share is asked to endorse a set with the victim."""

    def attack() -> tuple[bytes, Eve]:
        eve = Eve(World(PARAMS))
        eve.collect()
        everybody = set(eve.uploads)
        eve.world.members[0].handle(eve.delivery(0, everybody - {VICTIM}))
        return eve.endorsed_by([0], everybody)[0], eve

    with pytest.raises(SetError, match=f"dealer {VICTIM}, of whom no checked share is held"):
        attack()
    with without("held"):
        signature, eve = attack()
    # What it signed is a set without the victim: the server has split the committee.
    smaller = endorsement_digest(eve.digest(set(eve.uploads) - {VICTIM}))
    assert verifies(eve.world.roster[0], signature, smaller)


def test_10_a_second_delivery() -> None:
    """Other shares for the same sum, after the first were checked."""

    def attack() -> bytes:
        eve = checked()
        return eve.world.members[0].handle(eve.delivery(0, set(eve.uploads) - {VICTIM}))

    with pytest.raises(StageError, match="were delivered already"):
        attack()
    with without("delivered_once"):
        assert attack()[1] == Kind.CHECKED


def test_11_clones() -> None:
    """Two live copies of one honest member endorse different sets: it counts as a colluder.

    With one clone and no other colluder the quorum holds; without it, two sums open.
    """

    def attack() -> tuple[list[int], Eve]:
        eve = checked(colluders=())
        everybody, clone = set(eve.uploads), COLLUDER
        disk, tmpfs = (
            copy.deepcopy(stores[clone]) for stores in (eve.world.disks, eve.world.tmpfs)
        )
        totals = []
        sides = ((eve.honest[:4], everybody), (eve.honest[4:9], everybody - {VICTIM}))
        for side, dealers in sides:
            eve.world.disks[clone] = copy.deepcopy(disk)
            eve.world.tmpfs[clone] = copy.deepcopy(tmpfs)
            eve.world.restart(clone)
            certificate = eve.certificate(eve.endorsed_by([*side, clone], dealers))
            totals.append(eve.open(dealers, eve.answers([*side, clone], dealers, certificate)))
        return eve.difference(totals[0], totals[1]), eve

    with pytest.raises(QuorumNotMet, match="5 endorsements"):
        attack()
    with without("quorum"):
        found, eve = attack()
    assert found == eve.planted()


def test_12_a_copied_disk_abstains() -> None:
    """The disk without the memory: no key, no shares, no second voice."""

    def attack() -> bytes:
        eve = checked()
        eve.world.restart(0, memory=False)
        return eve.world.members[0].handle(eve.proposal(set(eve.uploads)))

    with pytest.raises(StateError, match="lost with the memory"):
        attack()
    with without("state_kept"), pytest.raises(MessageError, match="before the round was opened"):
        attack()  # there is nothing left to act with


def test_13_the_key_is_gone_after_the_answer() -> None:
    """A machine seized after the round opens nothing that was recorded."""
    eve = checked()
    public = eve.session.keys[0]
    certificate = eve.certificate(eve.endorsed_by(eve.honest, set(eve.uploads)))
    private = eve.world.members[0]._now.private
    tmpfs = eve.world.tmpfs[0]
    assert private in (tmpfs.data or b"")
    eve.world.members[0].handle(certificate)
    assert private not in (tmpfs.data or b"")
    assert not eve.world.sealing[0].pooled(public)
    assert eve.world.members[0]._now.private == b""
    assert not eve.world.members[0]._now.works


def test_14_a_certificate_before_the_endorsement() -> None:
    eve = checked()
    signed = eve.endorsed_by(eve.honest[1:], set(eve.uploads))
    with pytest.raises(StageError, match="not endorsed here"):
        eve.world.members[0].handle(eve.certificate(signed))


def test_15_a_proposal_of_another_session() -> None:
    def attack() -> bytes:
        eve = checked()
        body = eve.proposal(set(eve.uploads))[HEADER_SIZE + 4 :]
        return eve.world.members[0].handle(frame(Kind.PROPOSAL, bytes(32), U32.pack(0), body))

    with pytest.raises(MessageError, match="another session"):
        attack()
    with without("this_session"):
        assert attack()[1] == Kind.ENDORSEMENT


def test_16_both_stores_put_back_count_as_a_clone() -> None:
    """It cannot be seen from inside: the member endorses twice, and the quorum has to hold."""
    eve = checked()
    everybody = set(eve.uploads)
    disk, tmpfs = copy.deepcopy(eve.world.disks[0]), copy.deepcopy(eve.world.tmpfs[0])
    first = eve.endorsed_by([0], everybody)[0]
    eve.world.disks[0], eve.world.tmpfs[0] = disk, tmpfs
    eve.world.restart(0)
    assert eve.endorsed_by([0], everybody - {VICTIM})[0] != first
