"""A malicious server with some colluding members, who may send anything to anybody."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pytest

from secure_agg import Identity, Member, RoundContext, SecAggParams
from secure_agg import session as session_module
from secure_agg.checking import open_shares, read_dealers
from secure_agg.dealer import deal, public_polynomial
from secure_agg.decoding import decode
from secure_agg.field import PRIME, Elements
from secure_agg.masking import Accumulator, Unsigned, to_ring
from secure_agg.messages import (
    HEADER_SIZE,
    U32,
    Certificate,
    Dealt,
    Delivery,
    Kind,
    Opening,
    Upload,
    frame,
    pack_bits,
    unpack_values,
)
from secure_agg.params import RING_DEGREE
from secure_agg.sealing import Opener
from secure_agg.session import (
    SET_ROW,
    Session,
    draw_committee,
    endorsement_digest,
    set_digest,
    upload_digest,
)
from secure_agg.sharing import join
from tests.secure_agg.world import World, fixed_entropy

VICTIM = 2
COLLUDER = 9
BASE = SecAggParams.derive(n=10, corrupt=0.1, dropout=0.2, modulus_bits=20, dimension=24)
PARAMS = dataclasses.replace(BASE, threshold=3, packing=2, errors=0)
"""Ten members, one of whom colludes; the quorum is 6, and three answers determine a sum."""


class Eve:
    """Speaks for the server in a world, and knows its colluders' keys.

    Args:
        world: Its members are honest; the colluders' machines are not used.
        colluders: Ids.
        session: Other than the one that an honest server would open.
    """

    def __init__(
        self,
        world: World,
        colluders: Collection[int] = (COLLUDER,),
        session: Session | None = None,
    ) -> None:
        self.world = world
        self.colluders = tuple(colluders)
        self.session = world.server.session if session is None else session
        self.uploads: dict[int, bytes] = {}
        self.dealt: dict[int, Dealt] = {}
        self.digests: dict[int, bytes] = {}
        self.private: dict[int, bytes] = {}
        for id_ in self.seated:
            public = self.session.keys[self.session.positions[id_]]
            self.private[id_] = world.sealing[id_].pooled(public)

    @property
    def seated(self) -> list[int]:
        """The colluders on the committee."""
        return [id_ for id_ in self.colluders if id_ in self.session.positions]

    @property
    def honest(self) -> list[int]:
        """The committee members that do not collude."""
        return [id_ for id_ in self.session.committee if id_ not in self.colluders]

    # -- messages --------------------------------------------------------------------------------

    def opening(self) -> bytes:
        return frame(Kind.OPENING, self.session.hash, Opening.of(self.session).body())

    def upload_of(self, id_: int, member: Member | None = None) -> bytes:
        """Ask a member for its upload and keep it."""
        machine = self.world.members[id_] if member is None else member
        return self.keep(id_, machine.handle(self.opening()))

    def keep(self, id_: int, message: bytes) -> bytes:
        """Remember an upload as a server does."""
        upload = Upload.parse(message, self.session)
        one = Dealt(
            id=id_,
            sequence=upload.sequence,
            ephemeral=upload.ephemeral,
            ciphertext_hash=hashlib.sha256(upload.ciphertext).digest(),
            sealed_hash=hashlib.sha256(upload.sealed).digest(),
            signature=upload.signature,
            proof=upload.proof,
        )
        self.uploads[id_], self.dealt[id_] = message, one
        self.digests[id_] = upload_digest(
            self.session.hash,
            id_,
            one.sequence,
            one.ephemeral,
            one.ciphertext_hash,
            one.sealed_hash,
            hashlib.sha256(one.proof).digest(),
        )
        return message

    def forge(self, id_: int, identity: Identity, vector: Unsigned) -> bytes:
        """Make an upload in somebody's name."""
        seed = fixed_entropy(f"forged {id_}")(32)
        message = deal(
            self.session, identity=identity, id=id_, sequence=0, vector=vector, seed=seed
        )
        return self.keep(id_, message)

    def collect(self, ids: Collection[int] | None = None) -> None:
        """Gather the uploads of these members, of all by default."""
        for id_ in self.world.ids if ids is None else ids:
            if id_ in self.colluders:
                self.forge(id_, self.world.identities[id_], self.world.inputs[id_])
            else:
                self.upload_of(id_)

    def sealed(self, dealer: int, member: int) -> bytes:
        """One sealed share."""
        size = self.session.params.share_bytes
        at = size * self.session.seats.index(self.session.positions[member])
        return Upload.parse(self.uploads[dealer], self.session).sealed[at : at + size]

    def rows(self, dealers: Collection[int]) -> bytes:
        return b"".join(self.dealt[dealer].row() for dealer in sorted(dealers))

    def delivery(
        self,
        member: int,
        dealers: Collection[int],
        *,
        buffer: int = 0,
        change: Callable[[int, bytes], bytes] = lambda dealer, sealed: sealed,
    ) -> bytes:
        chosen = sorted(dealers)
        sealed = [change(dealer, self.sealed(dealer, member)) for dealer in chosen]
        parts = Delivery(
            buffer=buffer, rows=self.rows(chosen), sealed=b"".join(sealed), count=len(chosen)
        ).parts()
        return frame(Kind.DELIVERY, self.session.hash, *parts)

    def proposal(self, dealers: Collection[int], buffer: int = 0) -> bytes:
        places = [self.session.places[dealer] for dealer in dealers]
        bits = pack_bits(places, len(self.session.cohort))
        return frame(Kind.PROPOSAL, self.session.hash, U32.pack(buffer), bits)

    def digest(self, dealers: Collection[int], buffer: int = 0) -> bytes:
        rows = b"".join(
            SET_ROW.pack(i, self.dealt[i].sequence, self.digests[i]) for i in sorted(dealers)
        )
        return set_digest(self.session.hash, buffer, rows)

    def endorse(self, colluder: int, dealers: Collection[int], buffer: int = 0) -> bytes:
        """A colluder endorses anything."""
        digest = self.digest(dealers, buffer)
        return self.world.identities[colluder].sign(endorsement_digest(digest))

    def certificate(self, signatures: Mapping[int, bytes], buffer: int = 0) -> bytes:
        positions = self.session.positions
        signers = sorted(signatures, key=lambda id_: positions[id_])
        body = Certificate(
            buffer=buffer,
            positions=tuple(positions[id_] for id_ in signers),
            signatures=tuple(signatures[id_] for id_ in signers),
        ).body(self.session.params.committee)
        return frame(Kind.CERTIFICATE, self.session.hash, body)

    def endorsed_by(
        self, members: Collection[int], dealers: Collection[int], buffer: int = 0
    ) -> dict[int, bytes]:
        """The endorsements that these members give, and the colluders'."""
        out = {}
        for id_ in members:
            reply = self.world.members[id_].handle(self.proposal(dealers, buffer))
            out[id_] = reply[HEADER_SIZE + 4 :]
        return out | {id_: self.endorse(id_, dealers, buffer) for id_ in self.seated}

    # -- what it computes ------------------------------------------------------------------------

    def shares(
        self, member: int, dealers: Collection[int], private: bytes | None = None
    ) -> Elements:
        """What a key opens: the sum of a position's shares of these dealers."""
        position = self.session.positions[member]
        opener = Opener(
            self.private[member] if private is None else private,
            self.session.params.suite,
            self.session.hash,
            position,
        )
        chosen = sorted(dealers)
        held, complaints = open_shares(
            self.session,
            read_dealers(self.session, self.rows(chosen), None),
            b"".join(self.sealed(dealer, member) for dealer in chosen),
            opener,
            position,
            [None] * len(chosen),
        )
        assert not complaints
        total: Elements = held.shares.sum(axis=0, dtype=np.int64) % PRIME
        return total

    def open(self, dealers: Collection[int], answers: Mapping[int, Elements]) -> Unsigned:
        """Decrypt the sum of these dealers from answers, by member, as the server would."""
        params = self.session.params
        members = sorted(answers, key=lambda id_: self.session.positions[id_])
        secrets, _ = decode(
            np.array([self.session.positions[id_] + 1 for id_ in members]),
            np.stack([answers[id_] for id_ in members]),
            threshold=params.threshold,
            packing=params.packing,
            coins=bytes(32),
        )
        total = Accumulator(params)
        for dealer in dealers:
            total.add(Upload.parse(self.uploads[dealer], self.session).ciphertext)
        public = public_polynomial(self.session, None)
        return to_ring(total.open(public, join(secrets, RING_DEGREE), len(dealers)), params)

    def answers(
        self, members: Collection[int], dealers: Collection[int], certificate: bytes
    ) -> dict[int, Elements]:
        """What these members answer, with the colluders' own sums."""
        out = {id_: values_of(self.world.members[id_].handle(certificate)) for id_ in members}
        return out | {id_: self.shares(id_, dealers) for id_ in self.seated}

    def difference(self, first: Unsigned, second: Unsigned) -> list[int]:
        """One member's vector, from two sums."""
        modulus = 2**self.session.params.modulus_bits
        found: list[int] = ((first.astype(object) - second.astype(object)) % modulus).tolist()
        return found

    def planted(self, id_: int = VICTIM) -> list[int]:
        """The vector that nobody must learn."""
        found: list[int] = self.world.inputs[id_].tolist()
        return found


def values_of(answer: bytes) -> Elements:
    """The values in an ANSWER message."""
    return unpack_values(answer[HEADER_SIZE + 4 : -64]).astype(np.int64)


def rogue_session(world: World, **changes: Any) -> Session:
    """A session of the server's making, built while every check is silent."""
    own = world.server.session
    params = changes.get("params", own.params)
    context: RoundContext = changes.get("context", own.context)
    roster = changes.get("roster", own.roster)
    cohort = tuple(changes.get("cohort", own.cohort))
    committee = changes.get("committee")
    if committee is None:
        committee = draw_committee(cohort, params.committee, context, roster.hash)
    prekeys = changes.get("prekeys")
    if prekeys is None:
        prekeys = [world.prekeys.get(id_, b"") for id_ in committee]

    class Silent:
        def __getattr__(self, name: str) -> Callable[..., bytes]:
            return lambda *args, **kwargs: bytes(32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "checks", Silent())
        patch.setattr(session_module, "check_prekey", lambda *args: None)
        return Session.build(
            params=params,
            context=context,
            roster=roster,
            cohort=cohort,
            committee=committee,
            prekeys=prekeys,
        )
