"""One sum on the server's side: uploads come in, complaints and endorsements, answers, the total.

A synchronous round has one collection, an epoch of buffered rounds one after the other. Ciphertexts
are added to the running sum as they arrive, a few at a time. They are spooled until the committee
has checked the shares, because a dealer that it complains about must be taken out of the sum again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from secure_agg import checks, sharing
from secure_agg.checking import fails
from secure_agg.complaints import Verdict, judge
from secure_agg.dealer import public_polynomial
from secure_agg.decoding import agree, decode
from secure_agg.digests import digest as hashed
from secure_agg.errors import SetError, SignatureMismatch, StageError
from secure_agg.field import PRIME, Elements
from secure_agg.masking import Accumulator, Unsigned, to_ring
from secure_agg.messages import (
    U32,
    Certificate,
    Complaint,
    Dealt,
    Delivery,
    Kind,
    Upload,
    frame,
    pack_bits,
    unpack_values,
)
from secure_agg.params import RING_DEGREE
from secure_agg.sealing import is_low_order
from secure_agg.session import (
    SET_ROW,
    Session,
    answer_digest,
    endorsement_digest,
    set_digest,
    upload_digest,
)
from secure_agg.shared import Shared
from secure_agg.signatures import SIGNATURE_SIZE, verifies
from secure_agg.spool import Spool

__all__ = ["Collection"]

_TOGETHER: Final = 8
"""Uploads that are added in one go: between two, the sum has left the core's caches."""
_HELD: Final = 1 << 26
"""Bytes of ciphertexts that wait to be added, 64 MiB: of large ones fewer are added in one go. What
that saves, passes over the sum, is little next to the work of encrypting one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Received:
    """An upload without its ciphertext and its shares."""

    dealt: Dealt
    digest: bytes


class _Messages(Mapping[int, bytes]):
    """A delivery for each committee member, put together when it is asked for.

    All of them together may be a hundred times as large as the uploads' shares.
    """

    def __init__(self, collection: Collection, members: tuple[int, ...]) -> None:
        self._collection = collection
        self._members = dict.fromkeys(members)

    def __getitem__(self, member: int) -> bytes:
        if member not in self._members:
            raise KeyError(member)
        return self._collection.delivery(member)

    def __iter__(self) -> Iterator[int]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


class Collection:
    """Everything about one sum.

    Args:
        session: The round.
        number: Of this sum in the session.
        shared: Work shared with a virtual cohort in this process.
    """

    def __init__(self, session: Session, number: int, shared: Shared | None = None) -> None:
        self.session = session
        self.number = number
        self.left_out: dict[int, str] = {}
        self._shared = shared
        self._sum = Accumulator(session.params)
        self._spool: Spool | None = Spool()
        self._fresh: list[bytes | bytearray | memoryview] = []  # not added yet
        self._uploads: dict[int, _Received] = {}
        self._sealed: dict[int, bytes] = {}
        self._rows: bytes | None = None
        self._order: list[int] = []
        self._shares = np.empty((0, 0, 0), np.uint8)  # sealed; by seat, place in the order, byte
        self._digest = b""
        self._surplus: dict[int, bytes] = {}  # signatures of answers that were not verified

    @property
    def uploaders(self) -> tuple[int, ...]:
        """Increasing ids of those in the sum so far."""
        return tuple(sorted(self._uploads))

    def holds(self, dealer: int) -> bool:
        """Whether a member's upload is in the sum."""
        return dealer in self._uploads

    @property
    def count(self) -> int:
        """Uploads in the sum."""
        return len(self._uploads)

    # -- uploads ---------------------------------------------------------------------------------

    def take_upload(self, sender: int, message: bytes, sequence: int) -> None:
        """Verify an upload and add it to the sum.

        Args:
            sender: The dealer.
            message: Whole, of an allowed size.
            sequence: What the dealer's next upload must be numbered.

        Raises:
            SecureAggError: It is wrong, and nothing was added.
        """
        session = self.session
        upload = Upload.parse(bytes(message), session)  # what is kept of it must not change
        checks.numbered(upload.sequence, sequence, sender, "upload")
        checks.high_order(is_low_order(upload.ephemeral), f"member {sender}'s ephemeral key")
        ciphertext_hash = hashlib.sha256(upload.ciphertext).digest()
        sealed_hash = hashlib.sha256(upload.sealed).digest()
        signed = upload_digest(
            session.hash,
            sender,
            sequence,
            upload.ephemeral,
            ciphertext_hash,
            sealed_hash,
            hashlib.sha256(upload.proof).digest(),
        )
        public = checks.enrolled(session.roster, sender)
        valid = verifies(public, upload.signature, signed, self._shared)
        checks.signature(valid, sender, "upload")
        if self._spool is not None:
            self._spool.put(sender, upload.ciphertext)
        self._fresh.append(upload.ciphertext)
        held = len(self._fresh)
        if held == _TOGETHER or held * session.params.ciphertext_bytes >= _HELD:
            self._add_fresh()
        self._uploads[sender] = _Received(
            dealt=Dealt(
                id=sender,
                sequence=sequence,
                ephemeral=upload.ephemeral,
                ciphertext_hash=ciphertext_hash,
                sealed_hash=sealed_hash,
                signature=upload.signature,
                proof=upload.proof,
            ),
            digest=signed,
        )
        self._sealed[sender] = upload.sealed

    def _add_fresh(self) -> None:
        self._sum.add(*self._fresh)
        self._fresh.clear()

    def exclude(self, dealer: int) -> None:
        """Take an upload out of the sum.

        Raises:
            SetError: The set is fixed, and the ciphertext was not kept.
        """
        if dealer not in self._uploads:
            return
        if self._spool is None:
            raise SetError(f"dealer {dealer} cannot be taken out: the set is fixed")
        self._add_fresh()
        self._sum.subtract(self._spool.take(dealer))
        del self._uploads[dealer]
        self._sealed.pop(dealer, None)

    # -- the committee's check -------------------------------------------------------------------

    def deliveries(self, members: tuple[int, ...]) -> Mapping[int, bytes]:
        """Return a DELIVERY message for each of these committee members; no upload comes after."""
        self._order = list(self.uploaders)
        seats, size = len(self.session.seats), self.session.params.share_bytes
        self._shares = np.empty((seats, len(self._order), size), np.uint8)
        for place, dealer in enumerate(self._order):
            row = np.frombuffer(self._sealed.pop(dealer), np.uint8)
            self._shares[:, place] = row.reshape(seats, size)
        self._rows = b"".join(self._uploads[dealer].dealt.row() for dealer in self._order)
        return _Messages(self, members)

    def delivery(self, member: int) -> bytes:
        """Return one member's DELIVERY message.

        Raises:
            StageError: The complaints were weighed: shares are delivered no more.
        """
        if self._rows is None:
            raise StageError("no shares are delivered: the committee's check is over")
        seat = self.session.seats.index(self.session.positions[member])
        parts = Delivery(
            buffer=self.number,
            rows=self._rows,
            sealed=self._shares[seat].tobytes(),
            count=len(self._order),
        ).parts()
        return frame(Kind.DELIVERY, self.session.hash, *parts)

    def judge(self, complaints: Mapping[int, list[Complaint]]) -> Verdict:
        """Weigh the complaints, by the committee member that made them, and exclude dealers."""
        self._rows = None
        verdict = judge(
            complaints, self._uploads, self.session.params.colluders, self._evidence_shows
        )
        for dealer in (*verdict.guilty, *verdict.left_out):
            self.exclude(dealer)
        self._shares = np.empty((0, 0, 0), np.uint8)
        self.left_out.update(verdict.left_out)
        return verdict

    def _evidence_shows(self, member: int, complaint: Complaint) -> bool:
        seat = self.session.positions[member]
        dealt = self._uploads[complaint.dealer].dealt
        sealed = self._shares[self.session.seats.index(seat), self._order.index(complaint.dealer)]
        return fails(self.session, dealt, sealed.tobytes(), complaint.key, seat)

    # -- endorsements ----------------------------------------------------------------------------

    def propose(self) -> bytes:
        """Fix the set; return the PROPOSAL message, which is the same for every member."""
        session = self.session
        self._add_fresh()
        rows = []
        for dealer in self.uploaders:
            received = self._uploads[dealer]
            rows.append(SET_ROW.pack(dealer, received.dealt.sequence, received.digest))
        self._digest = set_digest(session.hash, self.number, b"".join(rows))
        if self._spool is not None:
            self._spool.close()
        self._spool = None
        places = [session.places[dealer] for dealer in self.uploaders]
        bits = pack_bits(places, session.params.n)
        return frame(Kind.PROPOSAL, session.hash, U32.pack(self.number), bits)

    def take_endorsement(self, sender: int, body: bytes) -> bytes:
        """Verify an ENDORSEMENT body; return its signature.

        Raises:
            SignatureMismatch: It does not endorse this set.
        """
        signature = body[4:]
        signed = endorsement_digest(self._digest)
        public = checks.enrolled(self.session.roster, sender)
        valid = verifies(public, signature, signed, self._shared)
        checks.signature(valid, sender, "endorsement")
        return signature

    def certify(self, endorsements: Mapping[int, bytes]) -> bytes:
        """Return the CERTIFICATE message made of a quorum of endorsements, by member.

        Raises:
            QuorumNotMet: There are too few.
        """
        params, positions = self.session.params, self.session.positions
        checks.quorum(len(endorsements), params.quorum)
        signers = sorted(endorsements, key=lambda member: positions[member])[: params.quorum]
        certificate = Certificate(
            buffer=self.number,
            positions=tuple(positions[member] for member in signers),
            signatures=tuple(endorsements[member] for member in signers),
        )
        return frame(Kind.CERTIFICATE, self.session.hash, certificate.body(params.committee))

    # -- answers ---------------------------------------------------------------------------------

    def take_answer(self, sender: int, body: bytes, *, surplus: bool = False) -> bytes:
        """Check an ANSWER body; return its values.

        Args:
            sender: The committee member.
            body: Of the size of an answer.
            surplus: As many verified answers as determine the sum are there: the signature of this
                one is verified by `unsigned`, if it matters.

        Raises:
            SignatureMismatch: The member did not sign it for this set.
            MessageError: A value is not of the field.
        """
        values, signature = body[4:-SIGNATURE_SIZE], body[-SIGNATURE_SIZE:]
        if not surplus:
            self._verify_answer(sender, values, signature)
        checks.answer_in_field(int(unpack_values(values).max()), PRIME, sender)
        if surplus:
            self._surplus[sender] = signature
        return values

    def unsigned(self, answers: Mapping[int, bytes]) -> dict[int, str]:
        """Return why, for each surplus answer that counts for nothing: its member did not sign it.

        While all answers lie on one polynomial, t verified ones determine it and the others change
        nothing, no matter who made them. Otherwise a signature decides whether an answer is the
        member's word, and can be held against it.
        """
        found: dict[int, str] = {}
        if self._surplus and not agree(
            *self._codeword(answers), threshold=self.session.params.threshold
        ):
            for member, signature in self._surplus.items():
                try:
                    self._verify_answer(member, answers[member], signature)
                except SignatureMismatch as error:
                    found[member] = str(error)
        self._surplus.clear()
        return found

    def _verify_answer(self, sender: int, values: bytes, signature: bytes) -> None:
        position = self.session.positions[sender]
        signed = answer_digest(self._digest, position, values)
        public = checks.enrolled(self.session.roster, sender)
        valid = verifies(public, signature, signed, self._shared)
        checks.signature(valid, sender, "answer")

    def _codeword(self, answers: Mapping[int, bytes]) -> tuple[Elements, Elements]:
        """Return the points and the values of the answers, by increasing position."""
        positions = self.session.positions
        members = sorted(answers, key=lambda member: positions[member])
        rows = np.stack([unpack_values(answers[member]) for member in members])
        return np.array([positions[member] + 1 for member in members]), rows.astype(np.int64)

    def finish(self, answers: Mapping[int, bytes]) -> tuple[Unsigned, tuple[int, ...]]:
        """Recover the sum of secrets and decrypt.

        Args:
            answers: Values by member.

        Returns:
            The total, and the members whose answers were wrong.

        Raises:
            ThresholdNotMet: There are too few answers.
            DecodingError: More are wrong than can be corrected.
            ResidualError: The sum is not that of honest ciphertexts; the round is spent.
        """
        session, params = self.session, self.session.params
        members = sorted(answers, key=lambda member: session.positions[member])
        checks.enough_answers(len(members), params.threshold)
        secrets, wrong = decode(
            *self._codeword(answers),
            threshold=params.threshold,
            packing=params.packing,
            coins=hashed("decoding", self._digest, *(answers[member] for member in members)),
        )
        total = self._sum.open(
            public_polynomial(session, self._shared),
            sharing.join(secrets, RING_DEGREE),
            len(self._uploads),
        )
        return to_ring(total, params), tuple(members[i] for i in wrong)
