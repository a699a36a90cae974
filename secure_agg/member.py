"""A member's side of a round: one reply for one server message, or a refusal that says why.

The machine does no input or output. Every member is a dealer and sends one upload; those that sit
on the committee check, endorse and answer besides. What must never happen twice (an upload, an
endorsement of another set, an answer) is written to the durable store before it is returned.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from secure_agg import checks
from secure_agg.checking import open_shares, read_dealers, rows_of
from secure_agg.dealer import deal, sealing_keys_of
from secure_agg.errors import (
    InputError,
    MessageError,
    SecureAggError,
    StageError,
    StateError,
)
from secure_agg.field import PRIME
from secure_agg.marks import Mark, Marks
from secure_agg.masking import Unsigned
from secure_agg.messages import (
    HEADER_SIZE,
    U32,
    Certificate,
    Delivery,
    Kind,
    Limits,
    Opening,
    frame,
    kind_of,
    pack_complaints,
    pack_values,
    unframe,
    unpack_bits,
)
from secure_agg.params import SecAggParams
from secure_agg.prekeys import Bound, SealingKeys
from secure_agg.progress import Progress, Work
from secure_agg.roster import Entropy, Identity, Roster
from secure_agg.sealing import Opener
from secure_agg.session import (
    RoundContext,
    Session,
    answer_digest,
    endorsement_digest,
    set_digest,
)
from secure_agg.shared import Large, Shared
from secure_agg.signatures import verifies
from secure_agg.stages import MemberStage
from secure_agg.store import Store

__all__ = ["Member"]


class Member:
    """One member in one round, or in one epoch of buffered rounds.

    Args:
        identity: The member's long-term key.
        id: The member's id in the roster.
        roster: The pinned list of members.
        params: The round's parameters, which this member derived itself; the server's must equal
            them.
        context: The round's job, number, model and policy; the server's must equal them.
        sealing: The member's single-use keys; the same object, or the same volatile store, for all
            rounds.
        entropy: Asked once for 32 bytes for each upload.
        store: Durable marks of what was done. Without one, only ``sealing`` stops a process that
            was restarted from joining a round again.
        shared: Work shared with the other members of a virtual cohort in this process. Such a
            member does not keep its replies to repeat them: its host cannot lose one.

    Raises:
        RosterError: When the roster holds no key, or another, for this member.
        StateError: When a store's content cannot be read or written.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        id: int,
        roster: Roster,
        params: SecAggParams,
        context: RoundContext,
        sealing: SealingKeys,
        entropy: Entropy = os.urandom,
        store: Store | None = None,
        shared: Shared | None = None,
    ) -> None:
        checks.own_identity(identity.public_bytes, checks.enrolled(roster, id))
        self.id = id
        self.params = params
        self.context = context
        self._identity = identity
        self._roster = roster
        self._sealing = sealing
        self._entropy = entropy
        self._store = store
        self._shared = shared
        self._limits = Limits(params)
        self._vector: Unsigned | None = None
        self._checked = b""  # hash of the opening that `_now` has the session of
        self._now = Progress()
        kept = None if store is None else store.load()
        durable = Marks() if kept is None else Marks.unpack(kept)
        self._marks = durable.merge(sealing.marks)
        self._restore(durable)

    # -- the outside -----------------------------------------------------------------------------

    @property
    def stage(self) -> MemberStage:
        """What this member sent last."""
        return self._now.stage

    def resumes(self, opening: bytes) -> bool:
        """Whether an opening is of the session that this member entered and still knows, in an
        earlier process maybe, so that it need not be answered again."""
        session = self._now.session
        return (
            session is not None
            and opening[2:HEADER_SIZE] == session.hash
            and (session.context, session.params) == (self.context, self.params)
        )

    @property
    def uploaded(self) -> bool:
        """Whether a vector left in this round, before a restart included."""
        mark = self._mark
        return mark is not None and mark.uploads > 0

    @property
    def participations(self) -> int:
        """Uploads in all rounds of all jobs; kept in the store."""
        return self._known.participations

    def provide(self, vector: npt.ArrayLike) -> None:
        """Hand over the input, before the message that asks for it arrives.

        Args:
            vector: Shape (dimension,), integers from 0 to 2^modulus_bits - 1. It is copied, but for
                a virtual cohort's, which uploads before its host changes it.

        Raises:
            InputError: On anything else, and after an input was uploaded in this round.
        """
        if self.uploaded and self.context.buffers == 1:
            raise InputError("an input was uploaded in this round already; there is one a round")
        array = np.asarray(vector)
        if array.dtype.kind not in "ui" or array.shape != (self.params.dimension,):
            raise InputError(
                f"a vector of {array.dtype} and shape {array.shape}: "
                f"{self.params.dimension} integers are needed"
            )
        if array.dtype.kind == "i" and array.min() < 0:
            raise InputError("an element of the vector is negative")
        checks.input_range(int(array.max()), self.params.modulus_bits)
        width = np.uint32 if self.params.modulus_bits <= 32 else np.uint64
        self._vector = array.astype(width, copy=self._shared is None)

    def withdraw(self) -> None:
        """Drop an input that was handed over and has not left."""
        self._vector = None

    def handle(self, message: bytes) -> bytes:
        """Answer one server message.

        Returns:
            The reply, which the host sends to the server; what it promises is durable.

        Raises:
            SecureAggError: A refusal, named by its cause; or a store could not be written. Nothing
                was revealed; the host tells the server no more than that this member is gone, or
                asks again.
        """
        question = b"" if self._shared is not None else hashlib.sha256(message).digest()
        last = self._now.last
        if last is not None and last[0] == question:
            return last[1]  # the same question again: the same answer, to the bit
        kind = kind_of(message)
        if kind is Kind.OPENING:
            self._limits.check(kind, len(message) - HEADER_SIZE)
            return self._open(message, question)
        handler: Callable[[Session, Mark, memoryview], tuple[Progress, Mark, bytes]] | None = {
            Kind.NEXT: self._next,
            Kind.DELIVERY: self._check,
            Kind.PROPOSAL: self._endorse,
            Kind.CERTIFICATE: self._answer,
        }.get(kind)
        if handler is None:
            raise MessageError(f"a {kind.name} message, which members send and never receive")
        session, mark = self._entered(message, kind)
        body = unframe(message, kind, session.hash, self._limits)
        now, mark, reply = handler(session, mark, body)
        self._commit(now, mark, question, reply)
        return reply

    def __repr__(self) -> str:
        return f"Member(id={self.id}, round={self.context.round}, stage={self.stage.name})"

    # -- the dealer ------------------------------------------------------------------------------

    def _open(self, message: bytes, question: bytes) -> bytes:
        """Check the whole round, bind the sealing key to it, and upload."""
        again = bool(question) and self._checked == question
        known = self._now.session if again else None
        session = known or self._read_opening(message[HEADER_SIZE:])
        checks.this_session(message[2:HEADER_SIZE], session.hash, Kind.OPENING.name)
        checks.roster_colluders(session.params, self._roster.corrupt)
        checks.invited(session.places, self.id)
        before = self._known.jobs.get(self._job)
        checks.fresh(self.context.round, None if before is None else before.round)
        mark = self._mark
        entered = None if mark is None else mark.session
        checks.one_session(session.hash, entered, self.context.round)
        checks.upload_once(0, 0 if mark is None else mark.uploads)
        now = self._bind(session)
        if mark is None or mark.session != session.hash:
            mark = Mark(round=self.context.round, session=session.hash)
        if self._vector is None:  # it may serve on the committee without having dealt
            self._commit(now, mark)
            self._checked = question
            raise InputError("no input was provided: call provide() before this message")
        now, mark, reply = self._upload(now, session, mark, 0)
        self._commit(now, mark, question, reply)
        if self.context.buffers == 1:
            self._vector = None  # it left, and there is one a round
        return reply

    def _read_opening(self, body: bytes) -> Session:
        """Compare an opening with what was agreed, and check its committee and its keys."""
        shared = self._shared
        if shared is None:
            opening = Opening.parse(body)
        else:
            opening = shared.get(("opening", Large(body)), lambda: Opening.parse(body))
        own = {**vars(self.context), "roster": self._roster.hash, "parameters": self.params}
        announced = vars(opening.context)
        checks.context(
            own, {**announced, "roster": opening.roster_hash, "parameters": opening.params}
        )
        if shared is None:
            return opening.session(self._roster, None)
        name = ("session", self._roster.hash, Large(body))
        return shared.get(name, lambda: opening.session(self._roster, shared))

    def _bind(self, session: Session) -> Progress:
        """Take the sealing key that the session names for this member out of the pool, for good."""
        now = self._now
        if now.session is not None and now.session.hash == session.hash:
            return now
        position = session.positions.get(self.id)
        public = b"" if position is None else session.keys[position]
        return Progress(session=session, public=public, private=self._sealing.pooled(public))

    def _next(self, session: Session, mark: Mark, body: memoryview) -> tuple[Progress, Mark, bytes]:
        """Upload again in an epoch."""
        (sequence,) = U32.unpack(body)
        checks.next_upload(sequence, self.context.buffers > 1)
        checks.upload_once(sequence, mark.uploads)
        return self._upload(self._now, session, mark, sequence)

    def _upload(
        self, now: Progress, session: Session, mark: Mark, sequence: int
    ) -> tuple[Progress, Mark, bytes]:
        if self._vector is None:
            raise InputError("no input was provided: call provide() before this message")
        reply = deal(
            session,
            identity=self._identity,
            id=self.id,
            sequence=sequence,
            vector=self._vector,
            seed=self._entropy(32),
            shared=self._shared,
        )
        mark = dataclasses.replace(mark, uploads=sequence + 1)
        return dataclasses.replace(now, stage=MemberStage.UPLOADED), mark, reply

    # -- the committee member --------------------------------------------------------------------

    def _check(
        self, session: Session, mark: Mark, body: memoryview
    ) -> tuple[Progress, Mark, bytes]:
        """Open the dealt shares, test them, and complain about those that fail."""
        now = self._now
        delivery = Delivery.parse(body, self.params)
        checks.buffer_of_epoch(delivery.buffer, self.context.buffers)
        position = session.positions.get(self.id)
        if position is None:
            raise StageError("a DELIVERY message to a member that is not on the committee")
        checks.delivered_once(delivery.buffer, (*now.works, *mark.endorsed))
        checks.state_kept(bool(now.private), "the sealing key of this round")
        opener = Opener(now.private, self.params.suite, session.hash, position)
        dealers = read_dealers(session, delivery.rows, self._shared)
        held, complaints = open_shares(
            session,
            dealers,
            delivery.sealed,
            opener,
            position,
            sealing_keys_of(session, self._shared, dealers.dealt, position),
        )
        works = {**now.works, delivery.buffer: Work(held=held)}
        reply = frame(Kind.CHECKED, session.hash, pack_complaints(delivery.buffer, complaints))
        return dataclasses.replace(now, stage=MemberStage.CHECKED, works=works), mark, reply

    def _endorse(
        self, session: Session, mark: Mark, body: memoryview
    ) -> tuple[Progress, Mark, bytes]:
        """Endorse one set of uploads, all of whose shares are held and good."""
        now = self._now
        (buffer,) = U32.unpack_from(body)
        work = now.works.get(buffer)
        if work is None:
            raise StageError(f"a PROPOSAL message for sum {buffer}, whose shares are not held")
        rows = {dealer: row for row, dealer in enumerate(work.held.dealers)}
        places = unpack_bits(body[4:], self.params.n, "a PROPOSAL message's set")
        named = [session.cohort[place] for place in places]
        chosen = tuple([rows[dealer] for dealer in named if dealer in rows])
        if len(chosen) < len(named):
            for dealer in named:
                checks.held(dealer in rows, dealer)
        checks.enough_included(len(chosen), self.params.min_included, "in the proposed set")
        digest = _digest_of(session, buffer, work, chosen)
        endorsed = mark.endorsed.get(buffer)
        checks.endorses_once(endorsed, digest)
        last = dict(mark.last)
        if endorsed is None and self.context.buffers > 1:
            for row in chosen:
                dealer, sequence = work.held.dealers[row], work.held.sequences[row]
                checks.disjoint(sequence, last.get(dealer), dealer)
                last[dealer] = sequence
        mark = dataclasses.replace(mark, endorsed={**mark.endorsed, buffer: digest}, last=last)
        works = {**now.works, buffer: dataclasses.replace(work, chosen=chosen)}
        signature = self._identity.sign(endorsement_digest(digest))
        reply = frame(Kind.ENDORSEMENT, session.hash, U32.pack(buffer), signature)
        return dataclasses.replace(now, stage=MemberStage.ENDORSED, works=works), mark, reply

    def _answer(
        self, session: Session, mark: Mark, body: memoryview
    ) -> tuple[Progress, Mark, bytes]:
        """With a quorum behind the endorsed set, give the sum of its shares, once."""
        now = self._now
        certificate = Certificate.parse(body, self.params.committee)
        buffer = certificate.buffer
        checks.answers_once(mark.answered, buffer)
        work, digest = now.works.get(buffer), mark.endorsed.get(buffer)
        if work is None or digest is None or not work.chosen:
            raise StageError(f"a CERTIFICATE message for sum {buffer}, which was not endorsed here")
        checks.quorum(len(certificate.positions), self.params.quorum)
        _verify(session, certificate, digest, self._shared)
        everything = len(work.chosen) == len(work.held.dealers)
        shares = work.held.shares if everything else work.held.shares[list(work.chosen)]
        total = shares.sum(axis=0, dtype=np.int64) % PRIME
        values = pack_values(total)
        position = session.positions[self.id]
        signature = self._identity.sign(answer_digest(digest, position, values))
        answered = mark.answered | {buffer}
        mark = dataclasses.replace(mark, answered=answered)
        over = len(answered) == self.context.buffers
        now = dataclasses.replace(
            now,
            stage=MemberStage.ANSWERED,
            works={number: one for number, one in now.works.items() if number > buffer},
            private=b"" if over else now.private,
        )
        return now, mark, frame(Kind.ANSWER, session.hash, U32.pack(buffer), values, signature)

    # -- the inside ------------------------------------------------------------------------------

    @property
    def _job(self) -> bytes:
        return self.context.job_hash

    @property
    def _known(self) -> Marks:
        """All marks: other machines of this member, in other jobs say, write them too."""
        return self._marks.merge(self._sealing.marks)

    @property
    def _mark(self) -> Mark | None:
        """The mark of this round, if it was entered."""
        mark = self._known.jobs.get(self._job)
        return mark if mark is not None and mark.round == self.context.round else None

    def _entered(self, message: bytes, kind: Kind) -> tuple[Session, Mark]:
        """Return the session that a message after the opening belongs to."""
        session, mark = self._now.session, self._mark
        if session is None or mark is None:
            lost = mark is not None and message[2:HEADER_SIZE] == mark.session
            checks.state_kept(not lost, "the work of this round")
            raise MessageError(f"a {kind.name} message before the round was opened")
        checks.one_session(session.hash, mark.session, self.context.round)
        return session, mark

    def _restore(self, durable: Marks) -> None:
        """Go on where a process that ended stood, if the volatile store still knows."""
        bound, mark = self._sealing.bound(self._job), self._mark
        if bound is None or mark is None or not bound.work or bound.session != mark.session:
            return
        try:
            now = Progress.unpack(bound, roster=self._roster, shared=self._shared)
        except SecureAggError:  # of a roster that was replaced meanwhile: abstain
            return
        if now.session is None or now.session.hash != bound.session:
            return
        self._now = now
        if self._store is not None and durable != self._marks:
            self._store.save(self._marks.pack())  # before anything is said on its strength

    def _commit(self, now: Progress, mark: Mark, question: bytes = b"", reply: bytes = b"") -> None:
        """Make a step durable, then take it.

        The durable marks come first: if they cannot be written, nothing has happened. A process
        that dies between the two writes abstains for the rest of the round.
        """
        session = now.session
        if session is None:
            raise StateError("a step without a session")
        known, before = self._known, self._mark
        new = int(mark.uploads > (0 if before is None else before.uploads))
        marks = known.put(self._job, mark, known.participations + new)
        now = dataclasses.replace(now, last=(question, reply) if question else None)
        if self._store is not None:
            self._store.save(marks.pack())
        work = now.pack() if self._shared is None else b""
        bound = Bound(
            session=session.hash,
            public=now.public,
            private=now.private,
            work=work,
            reply=b"" if now.last is None else now.last[1],
        )
        self._sealing.commit(self._job, bound, marks)
        self._now, self._marks = now, self._sealing.marks
        if new:
            self._vector = None


def _digest_of(session: Session, buffer: int, work: Work, chosen: tuple[int, ...]) -> bytes:
    held = work.held
    return set_digest(session.hash, buffer, rows_of(held.rows, chosen, len(held.dealers)))


def _verify(
    session: Session, certificate: Certificate, digest: bytes, shared: Shared | None
) -> None:
    """Verify all endorsements of a certificate.

    Raises:
        SignatureMismatch: One of them does not verify.
    """

    def verify() -> None:
        signed = endorsement_digest(digest)
        for position, signature in zip(certificate.positions, certificate.signatures, strict=True):
            member = session.committee[position]
            public = checks.enrolled(session.roster, member)
            checks.signature(verifies(public, signature, signed, shared), member, "endorsement")

    if shared is None:
        verify()
    else:
        name = ("certificate", session.hash, digest, certificate.positions, certificate.signatures)
        shared.get(name, verify)
