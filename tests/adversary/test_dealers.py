"""Attacks by dealers, by committee members that complain or answer, and by the network.

Every test runs an attack twice: against the protocol, which refuses it by name, and against the
protocol without that one check, where it succeeds.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from secure_agg import Aggregator, RoundContext, SecAggParams, Shared, checks, masking, sharing
from secure_agg.dealer import deal
from secure_agg.errors import (
    DecodingError,
    DuplicateMember,
    LateMessage,
    LowOrderPoint,
    MessageError,
    ResidualError,
    RosterError,
    SecureAggError,
    SignatureMismatch,
    StageError,
    ThresholdNotMet,
)
from secure_agg.field import PRIME, Elements
from secure_agg.messages import (
    HEADER_SIZE,
    Complaint,
    Kind,
    Upload,
    frame,
    pack_complaints,
    pack_values,
    unpack_complaints,
    unpack_values,
)
from secure_agg.roster import Identity
from secure_agg.sealing import _LOW_ORDER, Opener, Sealer
from secure_agg.session import answer_digest, upload_digest
from tests.adversary.eve import PARAMS, VICTIM, Eve
from tests.secure_agg.world import World, exact_sum, fixed_entropy, without

ROBUST = SecAggParams.derive(n=20, corrupt=0.1, dropout=0.2, modulus_bits=20, dimension=24)
"""Twenty members, of whom two may lie and four may be lost."""


def cheat(world: World, id_: int, shares: Callable[[Elements], Elements]) -> bytes:
    """An upload whose dealer bends its shares after sharing, and proves what it can."""
    honest = sharing.share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "share", lambda *args, **kwargs: shares(honest(*args, **kwargs)))
        return deal(
            world.server.session,
            identity=world.identities[id_],
            id=id_,
            sequence=0,
            vector=world.inputs[id_],
            seed=fixed_entropy("cheat")(32),
        )


def resign(world: World, id_: int, upload: Upload) -> bytes:
    """Sign a bent upload as its dealer."""
    signed = upload_digest(
        world.server.session.hash,
        id_,
        upload.sequence,
        upload.ephemeral,
        hashlib.sha256(upload.ciphertext).digest(),
        hashlib.sha256(upload.sealed).digest(),
        hashlib.sha256(upload.proof).digest(),
    )
    bent = dataclasses.replace(upload, signature=world.identities[id_].sign(signed))
    return frame(Kind.UPLOAD, world.server.session.hash, *bent.parts())


def upload_with(world: World, bad: Mapping[int, bytes]) -> Mapping[int, bytes]:
    """Run the uploads, some of them bent; return the deliveries."""
    messages = world.server.begin()
    for id_, message in messages.items():
        reply = world.members[id_].handle(message)
        world.uploads[id_] = reply
        world.server.receive(id_, bad.get(id_, reply))
    return world.server.close_stage()


def left_of(world: World, gone: Collection[int]) -> list[int]:
    return exact_sum(world.inputs, [id_ for id_ in world.ids if id_ not in gone], 20)


def off_by_one(places: list[int]) -> Callable[[Elements], Elements]:
    def bend(shares: Elements) -> Elements:
        shares = shares.copy()
        shares[places] = (shares[places] + 1) % PRIME
        return shares

    return bend


# -- shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [[15], list(range(8, 20))])
def test_01_shares_off_the_polynomial(places: list[int]) -> None:
    """A dealer gives some members other shares; unchecked, honest members look like liars."""

    def attack() -> World:
        world = World(ROBUST)
        messages = upload_with(world, {4: cheat(world, 4, off_by_one(places))})
        world.finish(messages)
        return world

    world = attack()
    assert list(world.server.result.blamed) == [4]
    assert "dealt a share that fails" in world.server.result.blamed[4]
    assert world.server.result.total.tolist() == left_of(world, {4})
    with without("low_degree"):
        if len(places) == 1:
            world = attack()
            assert list(world.server.result.blamed) == places  # an honest member is framed
        else:
            with pytest.raises(SecureAggError):
                attack()  # the round is spent


def test_02_a_false_proof() -> None:
    def attack() -> World:
        world = World(ROBUST)
        upload = Upload.parse(
            world.members[4].handle(world.server.begin()[4]), world.server.session
        )
        proof = pack_values((unpack_values(upload.proof).astype(np.int64) + 1) % PRIME)
        bad = resign(world, 4, dataclasses.replace(upload, proof=proof))
        fresh = World(ROBUST)
        fresh.finish(upload_with(fresh, {4: bad}))
        return fresh

    assert list(attack().server.result.blamed) == [4]
    with without("low_degree"):
        assert 4 in attack().server.result.included


def test_03_shares_out_of_the_field() -> None:
    """Two encodings of one element: a message that is not canonical."""

    def bend(shares: Elements) -> Elements:
        shares = shares.copy()
        shares[7] = np.where(shares[7] < 15, shares[7] + PRIME, shares[7])
        shares[7, 0] = PRIME + 3
        return shares

    def attack() -> World:
        world = World(ROBUST)
        world.finish(upload_with(world, {4: cheat(world, 4, bend)}))
        return world

    assert list(attack().server.result.blamed) == [4]
    with without("share_in_field"), without("low_degree"):
        assert 4 in attack().server.result.included


def garble(world: World, id_: int, member: int) -> bytes:
    """An upload whose share for one member does not open, with a good proof for all others."""
    honest = Sealer.seal

    def seal(
        self: Sealer, positions: Sequence[int], *rest: Sequence[bytes]
    ) -> tuple[list[bytes], list[bytes]]:
        keys, sealed = honest(self, positions, *rest)
        place = list(positions).index(member)
        sealed[place] = bytes(len(sealed[place]))
        return keys, sealed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sealer, "seal", seal)
        return cheat(world, id_, lambda shares: shares)


def test_04_a_share_that_does_not_open() -> None:
    """Nobody can tell who is at fault: the dealer is left out without blame."""

    def attack() -> World:
        world = World(ROBUST)
        world.finish(upload_with(world, {4: garble(world, 4, 6)}))
        return world

    world = attack()
    assert not world.server.result.blamed
    assert list(world.server.result.left_out) == [4]
    assert world.server.result.total.tolist() == left_of(world, {4})
    with without("share_opens"), without("low_degree"):
        world = attack()
        assert list(world.server.result.blamed) == [6]  # its sum lacks a share: framed


def test_05_a_dealer_s_low_order_key() -> None:
    """A dealer whose shares anybody opens is refused by the server, and by every member."""
    low = sorted(_LOW_ORDER)[1].to_bytes(32, "little")

    def attack() -> World:
        world = World(ROBUST)
        eve = Eve(World(ROBUST), ())
        upload = Upload.parse(eve.upload_of(4), world.server.session)
        bad = resign(world, 4, dataclasses.replace(upload, ephemeral=low))
        world.finish(upload_with(world, {4: bad}))
        return world

    with pytest.raises(LowOrderPoint, match="member 4's ephemeral key"):
        attack()
    with without("high_order"):
        world = attack()  # every member notices, and nobody is blamed
    assert list(world.server.result.left_out) == [4]
    assert not world.server.result.blamed


def test_06_a_share_for_another_member() -> None:
    """The server swaps two sealed shares: neither opens."""

    def attack() -> list[Complaint]:
        eve = Eve(World(PARAMS))
        eve.collect()
        message = eve.delivery(
            0,
            eve.uploads,
            change=lambda dealer, sealed: eve.sealed(dealer, 1 if dealer == 4 else 0),
        )
        reply = eve.world.members[0].handle(message)
        return unpack_complaints(reply[HEADER_SIZE:])[1]

    assert attack() == [Complaint(dealer=4)]
    with without("share_opens"), without("low_degree"):
        assert attack() == []


# -- impersonated and unknown dealers -------------------------------------------------------------


def test_07_forged_dealers() -> None:
    """The server fills the set with uploads in others' names and subtracts them."""
    mallory = Identity(b"m" * 32)

    def attack() -> tuple[list[int], Eve]:
        world = World(PARAMS)
        eve = Eve(world, ())
        for id_ in world.ids:
            eve.upload_of(id_)
        for id_ in world.ids:
            if id_ != VICTIM:
                eve.forge(id_, mallory, np.zeros(24, np.uint32))
        for id_ in eve.honest:
            world.members[id_].handle(eve.delivery(id_, eve.uploads))
        everybody = set(eve.uploads)
        certificate = eve.certificate(eve.endorsed_by(eve.honest, everybody))
        return eve.open(everybody, eve.answers(eve.honest, everybody, certificate)).tolist(), eve

    with pytest.raises(SignatureMismatch, match="member 0 on its upload"):
        attack()
    with without("signature"):
        found, eve = attack()
    assert found == eve.planted()


def test_08_a_dealer_outside_the_cohort() -> None:
    """Rostered, but not invited."""
    params = dataclasses.replace(PARAMS, n=9, committee=9)

    def attack() -> bytes:
        world = World(params)
        outsider = Identity(b"o" * 32)
        eve = Eve(world, ())
        eve.forge(50, outsider, world.inputs[0])
        eve.upload_of(0)
        return world.members[0].handle(eve.delivery(0, eve.uploads))

    with pytest.raises(RosterError, match="member 50 is not in the cohort"):
        attack()
    anybody = without("enrolled", lambda roster, id_: roster.get(id_, bytes(32)))
    with without("invited"), anybody, without("signature"):
        assert attack()[1] == Kind.CHECKED


def test_09_a_dealer_twice_in_one_delivery() -> None:
    """Two uploads of the victim in one sum: its vector counts twice."""

    def attack() -> bytes:
        eve = Eve(World(PARAMS), ())
        eve.collect()
        row = eve.dealt[VICTIM].row()
        message = eve.delivery(0, eve.uploads)
        at = HEADER_SIZE + 8 + len(row) * VICTIM
        head, count = message[: HEADER_SIZE + 4], len(eve.uploads) + 1
        rows = message[HEADER_SIZE + 8 : at] + row + message[at : HEADER_SIZE + 8 + 10 * len(row)]
        sealed = [eve.sealed(id_, 0) for id_ in (0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9)]
        bad = head + count.to_bytes(4, "little") + rows + b"".join(sealed)
        return eve.world.members[0].handle(bad)

    def within(found: int, least: int, most: int, what: str) -> None:
        """Let one row more through."""

    with without("size", within):
        with pytest.raises(DuplicateMember, match="one dealer occurs twice"):
            attack()
        with without("distinct"):
            assert attack()[1] == Kind.CHECKED


# -- ciphertexts ----------------------------------------------------------------------------------


def test_10_a_swapped_ciphertext() -> None:
    """Somebody on the way replaces a vector: the dealer signed its hash."""

    def attack() -> World:
        world = World(ROBUST)
        eve = Eve(World(ROBUST, seed="other"), ())
        other = Upload.parse(eve.upload_of(4), eve.session).ciphertext
        mine = Eve(World(ROBUST), ())
        upload = Upload.parse(mine.upload_of(4), world.server.session)
        bent = dataclasses.replace(upload, ciphertext=other)
        bad = frame(Kind.UPLOAD, world.server.session.hash, *bent.parts())
        upload_with(world, {4: bad})
        return world

    with pytest.raises(SignatureMismatch, match="member 4 on its upload"):
        attack()
    with without("signature"):
        assert 4 in attack().server._collection.uploaders


def mismatched(world: World, id_: int) -> bytes:
    """A well-signed upload whose ciphertext is under another secret than its shares."""
    eve = Eve(World(ROBUST, seed="other"), ())
    other = Upload.parse(eve.upload_of(id_), eve.session).ciphertext
    upload = Upload.parse(Eve(World(ROBUST), ()).upload_of(id_), world.server.session)
    return resign(world, id_, dataclasses.replace(upload, ciphertext=other))


def test_11_a_ciphertext_that_does_not_match_its_shares() -> None:
    def attack() -> World:
        world = World(ROBUST)
        world.finish(upload_with(world, {4: mismatched(world, 4)}))
        return world

    with pytest.raises(ResidualError, match="does not match its shares"):
        attack()
    with without("residual"):
        world = attack()
    assert world.server.result.total.tolist() != world.exact()  # garbage passes for a sum


def test_12_a_failed_residual_spends_the_round() -> None:
    world = World(ROBUST)
    with pytest.raises(ResidualError):
        world.finish(upload_with(world, {4: mismatched(world, 4)}))
    with pytest.raises(StageError, match="no result"):
        _ = world.server.result
    with pytest.raises(StageError, match="no stage to close"):
        world.server.close_stage()
    world.open()  # the same round: nobody uploads again
    with pytest.raises(SecureAggError, match="there is no second one"):
        world.until(None)


def test_13_a_large_secret() -> None:
    """A dealer that shares and encrypts under a secret no honest sampler gives."""

    def attack() -> World:
        world = World(ROBUST)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(masking, "sample_secret", lambda key: np.full(2048, 400, np.int64))
            patch.setattr(masking, "TAIL", 1000)
            bad = world.members[4].handle(world.server.begin()[4])
        fresh = World(ROBUST)
        fresh.finish(upload_with(fresh, {4: bad}))
        return fresh

    with pytest.raises(ResidualError, match="secrets has a coefficient above"):
        attack()
    with without("secret_bound"):
        world = attack()
    assert world.server.result.total.tolist() == world.exact()


# -- complaints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a made-up key", "the true key of a good share"])
def test_14_a_false_accusation(key: str) -> None:
    def attack() -> World:
        world = World(ROBUST)
        evidence = hashlib.sha256(b"x").digest()
        if key != "a made-up key":
            eve = Eve(World(ROBUST), (6,))
            eve.upload_of(VICTIM)
            opener = Opener(eve.private[6], 1, eve.session.hash, 6)
            evidence = opener.key(VICTIM, 0, eve.dealt[VICTIM].ephemeral, b"")
        messages = world.step(world.server.begin())
        for id_, message in messages.items():
            reply = world.members[id_].handle(message)
            if id_ == 6:
                rows = pack_complaints(0, [Complaint(dealer=VICTIM, key=evidence)])
                reply = frame(Kind.CHECKED, reply[2:HEADER_SIZE], rows)
            world.server.receive(id_, reply)
        world.finish(world.server.close_stage(), {6})
        return world

    world = attack()
    assert list(world.server.result.blamed) == [6]
    assert VICTIM in world.server.result.included
    assert world.server.result.total.tolist() == left_of(world, {6})
    with without("evidence"):
        world = attack()
    assert list(world.server.result.blamed) == [VICTIM]
    assert VICTIM not in world.server.result.included


def test_15_a_flood_of_complaints() -> None:
    """One member says that it can open nobody's share."""

    def attack() -> World:
        world = World(ROBUST)
        messages = world.step(world.server.begin())
        for id_, message in messages.items():
            reply = world.members[id_].handle(message)
            if id_ == 6:
                rows = [Complaint(dealer=dealer) for dealer in world.ids]
                reply = frame(Kind.CHECKED, reply[2:HEADER_SIZE], pack_complaints(0, rows))
            world.server.receive(id_, reply)
        world.finish(world.server.close_stage(), {6})
        return world

    world = attack()
    assert world.server.result.total.tolist() == world.exact()
    assert not world.server.result.blamed
    assert world.server.result.dropped == {"endorse": (6,)}
    with without("complaints"), pytest.raises(ThresholdNotMet, match="0 uploads are left"):
        attack()


# -- what reaches the server ----------------------------------------------------------------------


def test_16_a_late_upload() -> None:
    """It enters no set: the committee has no share of it."""

    def attack() -> World:
        world = World(ROBUST)
        messages = world.server.begin()
        replies = world.deliver(messages)
        for id_ in world.ids[:-1]:
            world.server.receive(id_, replies[id_])
        deliveries = world.server.close_stage()
        world.server.receive(19, replies[19])
        world.finish(deliveries)
        return world

    with pytest.raises(LateMessage, match="UPLOAD message after its step was closed"):
        attack()
    with without("awaited"), pytest.raises(SecureAggError):
        attack()  # its ciphertext is in the sum, and its secret is not: the round is spent


def test_17_an_upload_twice() -> None:
    def attack() -> World:
        world = World(ROBUST)
        messages = world.server.begin()
        replies = world.deliver(messages)
        for id_ in (*world.ids, 4):
            world.server.receive(id_, replies[id_])
        world.finish(world.server.close_stage())
        return world

    with pytest.raises(StageError, match="no UPLOAD message is expected"):
        attack()
    with without("awaited"), pytest.raises(ResidualError):
        attack()


CHANGED: dict[str, dict[str, Any]] = {
    "round": {"context": RoundContext(job=b"job", round=2)},
    "job": {"context": RoundContext(job=b"other", round=1)},
    "assignment": {"context": RoundContext(job=b"job", round=1, model_hash=b"m")},
    "params": {"params": dataclasses.replace(ROBUST, min_included=15)},
}


@pytest.mark.parametrize("what", CHANGED)
def test_18_a_replayed_upload(what: str) -> None:
    """An upload recorded elsewhere: it is discarded, and its sender is not blamed for it."""

    def attack() -> World:
        world = World(ROBUST)
        recorded = Eve(world, ()).upload_of(4)
        world.server = world.aggregator(**CHANGED[what])
        world.server.begin()
        try:
            world.server.receive(4, recorded)
        except LateMessage:
            raise
        except SecureAggError:
            pass  # the signature names the session, too
        return world

    with pytest.raises(LateMessage, match="a message of another session is discarded"):
        attack()
    with without("same_session"):
        assert 4 in attack().server.blamed  # an honest member is blamed for a replay


def test_19_an_upload_of_a_stranger_or_under_another_name() -> None:
    world = World(ROBUST)
    messages = world.server.begin()
    reply = world.members[4].handle(messages[4])
    with pytest.raises(StageError, match="member 99"):
        world.server.receive(99, reply)
    with pytest.raises(SignatureMismatch, match="member 5 on its upload"):
        world.server.receive(5, reply)
    assert list(world.server.blamed) == [5]
    world.server.receive(4, reply)


@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_20_an_upload_of_another_size(change: int) -> None:
    """Bounded before it is parsed."""

    def attack() -> None:
        world = World(ROBUST)
        reply = world.members[4].handle(world.server.begin()[4])
        world.server.receive(4, reply[:change] if change < 0 else reply + bytes(change))

    with pytest.raises(MessageError, match=r"a UPLOAD message of \d+ bytes"):
        attack()
    with without("size"), pytest.raises(SignatureMismatch):
        attack()  # only the signature is left to find out, after everything was hashed


def forge_answer(world: World, id_: int, values: bytes, signer: Identity | None = None) -> bytes:
    position = world.committee.index(id_)
    signed = answer_digest(world.server._collection._digest, position, values)
    signature = bytes(64) if signer is None else signer.sign(signed)
    return frame(Kind.ANSWER, world.server.session.hash, bytes(4), values, signature)


def test_21_an_answer_that_its_member_did_not_sign() -> None:
    """Forged on the way: the member would look like a liar."""

    def attack() -> World:
        world = World(ROBUST)
        messages = world.until(Kind.CERTIFICATE)
        for id_, reply in world.deliver(messages).items():
            values = reply[HEADER_SIZE + 4 : -64]
            forged = forge_answer(world, id_, bytes(len(values)))
            world.server.receive(id_, forged if id_ == 6 else reply)
        world.server.close_stage()
        return world

    with pytest.raises(SignatureMismatch, match="member 6 on its answer"):
        attack()
    with without("signature"):
        assert "wrong sum" in attack().server.result.blamed[6]


@pytest.mark.parametrize("liars", [(), (3,)], ids=["", "with a liar"])
def test_21_surplus_answers_that_their_members_did_not_sign(liars: tuple[int, ...]) -> None:
    """More than can be corrected come after t good ones: none counts as its member's word."""
    late = (ROBUST.n - ROBUST.threshold) // 2 + 1
    assert ROBUST.n - late >= ROBUST.threshold + 2  # enough for one liar

    def attack() -> World:
        world = World(ROBUST)
        replies = world.deliver(world.until(Kind.CERTIFICATE))
        for place, (id_, reply) in enumerate(replies.items()):
            values = unpack_values(reply[HEADER_SIZE + 4 : -64])
            wrong = ((values + 1) % PRIME).astype("<u2").tobytes()
            if id_ in liars:
                reply = forge_answer(world, id_, wrong, world.identities[id_])
            elif place >= ROBUST.n - late:
                reply = forge_answer(world, id_, wrong)
            world.server.receive(id_, reply)
        world.server.close_stage()
        return world

    world = attack()
    blamed = world.server.result.blamed
    assert world.server.result.total.tolist() == world.exact()
    assert set(blamed) == {*liars, *world.ids[-late:]}
    assert all("signature" in blamed[id_] for id_ in world.ids[-late:])
    assert all("wrong sum" in blamed[id_] for id_ in liars)
    with without("signature"), pytest.raises(DecodingError):
        attack()


def test_21_surplus_answers_that_agree() -> None:
    """Their signatures decide nothing: t signed answers determine what they have to be."""
    world = World(ROBUST)
    for id_, reply in world.deliver(world.until(Kind.CERTIFICATE)).items():
        late = id_ in world.ids[ROBUST.threshold :]
        world.server.receive(id_, reply[:-64] + bytes(64) if late else reply)
    world.server.close_stage()
    assert world.server.result.total.tolist() == world.exact()
    assert not world.server.result.blamed


def test_22_an_answer_out_of_the_field() -> None:
    def attack() -> World:
        world = World(ROBUST)
        for id_, reply in world.deliver(world.until(Kind.CERTIFICATE)).items():
            values = unpack_values(reply[HEADER_SIZE + 4 : -64]).copy()
            values[0] = 65535
            bad = forge_answer(world, id_, values.tobytes(), world.identities[id_])
            world.server.receive(id_, bad if id_ == 6 else reply)
        world.server.close_stage()
        return world

    with pytest.raises(MessageError, match="the answer of member 6 is not of the field"):
        attack()
    with without("answer_in_field"):
        assert "wrong sum" in attack().server.result.blamed[6]


def test_23_an_endorsement_of_another_set() -> None:
    def attack() -> World:
        world = World(ROBUST)
        for id_, reply in world.deliver(world.until(Kind.PROPOSAL)).items():
            if id_ == 6:
                reply = reply[:-64] + world.identities[6].sign(b"another set")
            world.server.receive(id_, reply)
        world.finish(world.server.close_stage())
        return world

    with pytest.raises(SignatureMismatch, match="member 6 on its endorsement"):
        attack()

    # Unchecked, the certificate is worthless and every honest member refuses to answer.
    real = checks.signature
    seen: list[int] = []

    def once(valid: bool, member: int, what: str) -> None:
        if member == 6 and what == "endorsement" and not seen:
            seen.append(member)
            return
        real(valid, member, what)

    with without("signature", once), pytest.raises(SignatureMismatch, match="member 6"):
        attack()


def test_23_endorsements_beyond_a_quorum() -> None:
    """They are in no certificate, whatever they say: every member still answers."""
    world = World(ROBUST)
    for id_, reply in world.deliver(world.until(Kind.PROPOSAL)).items():
        late = id_ in world.ids[ROBUST.quorum :]
        world.server.receive(id_, reply[:-64] + bytes(64) if late else reply)
    assert world.finish(world.server.close_stage()).tolist() == world.exact()
    assert not world.server.result.blamed
    assert not world.server.result.dropped


def test_24_too_few_answers() -> None:
    def attack() -> Aggregator:
        world = World(ROBUST)
        few = set(world.ids[ROBUST.threshold - 1 :])
        world.finish(world.until(Kind.CERTIFICATE), few)
        return world.server

    with pytest.raises(ThresholdNotMet, match=f"{ROBUST.threshold} are needed"):
        attack()
    with without("enough_answers"), pytest.raises(SecureAggError):
        attack()


def test_25_an_upload_of_another_turn() -> None:
    """A sequence number that is not the sender's next."""

    def attack() -> World:
        world = World(ROBUST)
        world.server.begin()
        message = deal(
            world.server.session,
            identity=world.identities[4],
            id=4,
            sequence=7,
            vector=world.inputs[4],
            seed=bytes(32),
        )
        world.server.receive(4, message)
        return world

    with pytest.raises(StageError, match="upload 7 where 0 is awaited"):
        attack()
    with without("numbered"), pytest.raises(SignatureMismatch):
        attack()  # the signature names the number, too


def test_26_a_committee_member_s_prekey_that_is_worthless() -> None:
    """It is blamed, and counts as lost; the round goes on."""
    world = World(ROBUST)
    for id_, bad in ((3, b"junk"), (4, world.prekeys[5]), (6, world.prekeys[6][:-1] + b"\0")):
        world.prekeys[id_] = bad
    world.server = world.aggregator(shared=Shared())
    assert set(world.server.blamed) == {3, 4, 6}
    assert world.server.session.seats == tuple(i for i in range(20) if i not in (3, 4, 6))
