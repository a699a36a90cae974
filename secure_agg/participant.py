"""A member's side of a round: one reply for one server message, or a refusal that says why.

The machine does no input or output. Every secret of a round grows from 32 bytes of entropy, so that
a restarted participant repeats its messages to the bit; what must never happen twice (a signature
over another alive set, a release) is written to the store before it is returned.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import numpy.typing as npt

from secure_agg import checks, keys, quorum
from secure_agg.dealing import Dealing, released
from secure_agg.errors import InputError, MessageError, StateError
from secure_agg.floor import Floor
from secure_agg.messages import (
    DEALT_ROW,
    HEADER_SIZE,
    Begin,
    Kind,
    Limits,
    Release,
    Unmask,
    frame,
    kind_of,
    pack_ids,
    take_count,
    unframe,
    unpack_ids,
)
from secure_agg.params import SecAggParams
from secure_agg.prg import add_masks
from secure_agg.progress import Progress
from secure_agg.record import Record
from secure_agg.ring import ring
from secure_agg.roster import Entropy, Identity, Roster
from secure_agg.shared import Shared
from secure_agg.stages import ParticipantStage
from secure_agg.store import Store, present
from secure_agg.transcript import (
    Cohort,
    Dealt,
    RoundContext,
    View,
    advert_digest,
    alive_digest,
    dealt_digest,
    nonce_commitment,
    session_hash,
)

__all__ = ["Participant"]


_Stage = ParticipantStage
_BEFORE = {
    Kind.COHORT: _Stage.ADVERTISED,
    Kind.NONCES: _Stage.REVEALED,
    Kind.DELIVERY: _Stage.SHARED,
    Kind.ALIVE: _Stage.MASKED,
    Kind.UNMASK: _Stage.SIGNED,
}


class Participant:
    """One member in one round.

    Args:
        identity: The member's long-term key.
        id: The member's id in the roster.
        roster: The pinned list of members.
        params: The round's parameters as agreed upon outside; the server's must equal them.
        context: The round's job, number, model and policy; the server's must equal them.
        length: Elements of the vector, d.
        floor: What this member insists upon whatever was agreed.
        entropy: Asked once for 32 bytes for each attempt.
        store: Survives crashes and holds the high-water mark; without one, nothing stops a
            process that was restarted from joining a round again.
        shared: Work shared with the other members of a virtual cohort in this process.
        threads: For mask expansion.

    Raises:
        RosterError: When the roster holds no key for this member.
        OwnKeyChanged: When it holds another.
        StateError: When the store's content cannot be read.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        id: int,
        roster: Roster,
        params: SecAggParams,
        context: RoundContext,
        length: int,
        floor: Floor | None = None,
        entropy: Entropy = os.urandom,
        store: Store | None = None,
        shared: Shared | None = None,
        threads: int = 1,
    ) -> None:
        public = checks.enrolled(roster, id)
        checks.own_entry(identity.public_bytes, public, "identity")
        self.id = id
        self.params = params
        self.context = context
        self.length = length
        self._identity = identity
        self._roster = roster
        self._floor = Floor() if floor is None else floor
        self._entropy = entropy
        self._store = store
        self._shared = shared
        self._threads = threads
        self._ring = ring(params.modulus_bits)
        self._limits = Limits(params, length)
        self._now = Progress()
        previous = None if store is None else store.load()
        if previous is not None:
            record = Record.unpack(previous)
            self._now = Progress(marks=dict(record.marks), participations=record.participations)

    # -- the outside -----------------------------------------------------------------------------

    @property
    def stage(self) -> ParticipantStage:
        """What this participant sent last."""
        return self._now.stage

    @property
    def participations(self) -> int:
        """Rounds, of all jobs, in which this member uploaded; kept in the store."""
        return self._now.participations

    def provide(self, vector: npt.ArrayLike) -> None:
        """Hand over the input, before the message that asks for the masked one arrives.

        Args:
            vector: Shape (length,), unsigned integers below 2^modulus_bits; it is copied.

        Raises:
            InputError: On anything else, and after an input was uploaded.
        """
        if self._now.stage.value >= _Stage.MASKED.value:
            raise InputError("an input was uploaded in this round already; there is one a round")
        self._now.vector = self._ring.take(vector, self.length)

    def handle(self, message: bytes) -> bytes:
        """Answer one server message.

        Returns:
            The reply, which the host sends to the server. With a store, the state is durable.

        Raises:
            SecureAggError: A refusal, named by its cause; or the store could not be written. The
                state is as before, and nothing was revealed; the host tells the server no more
                than that this member is gone, or asks again.
        """
        before = self._now
        repeats = self._store is not None or before.last is not None
        question = hashlib.sha256(message).digest() if repeats else b""
        if before.last is not None and before.last[0] == question:
            return before.last[1]  # the same question again: the same answer, to the bit
        handler, body = self._admit(message)
        self._now = before.copy()
        try:
            reply = handler(body)
            if self._store is not None:
                keep = self._now.stage is not _Stage.RELEASED
                self._now.last = (question, reply) if keep else None
                self._persist(self._store)
        except BaseException:
            self._now = before
            raise
        return reply

    def _admit(self, message: bytes) -> tuple[Callable[[bytes], bytes], bytes]:
        """Return who answers a message and what of it, if it belongs to this round and stage."""
        kind, now = kind_of(message), self._now
        if kind is Kind.BEGIN:
            self._limits.check(kind, len(message) - HEADER_SIZE)
            return self._begin, message
        handler = {
            Kind.COHORT: self._reveal,
            Kind.NONCES: self._share,
            Kind.DELIVERY: self._mask,
            Kind.ALIVE: self._sign,
            Kind.UNMASK: self._release,
        }.get(kind, self._not_for_clients)
        body = unframe(message, kind, now.session, self._limits)
        if kind is Kind.UNMASK:
            checks.not_released(now.stage is _Stage.RELEASED)
        if kind is not Kind.ALIVE or now.signed is None:
            expected = _BEFORE.get(kind, _Stage.IDLE)
            checks.stage(now.stage.name, expected.name, kind.name)
        return handler, body

    def to_bytes(self) -> bytes:
        """Serialise the whole machine. The bytes are secret until the round is over."""
        now = self._now
        begin = self.context.begin(self.params, self._roster, self.length, now.attempt)
        return now.record(id=self.id, begin=begin, ring=self._ring).pack()

    @staticmethod
    def round_of(data: bytes) -> RoundContext:
        """Return which round a serialised machine is in.

        Raises:
            StateError: On a damaged state.
        """
        return RoundContext.of(Record.unpack(data).begin)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        identity: Identity,
        roster: Roster,
        floor: Floor | None = None,
        entropy: Entropy = os.urandom,
        store: Store | None = None,
        shared: Shared | None = None,
        threads: int = 1,
    ) -> Participant:
        """Restore a machine; after a crash, from the content of its store.

        The store is written before this returns: the process that died may have saved these bytes
        without their being durable, and nothing may be said on the strength of a state that a loss
        of power can still take.

        Args:
            data: What `to_bytes` gave; the content of ``store``, where that has any.
            identity: As before, like all that follow.
            roster: The pinned list of members.
            floor: What this member insists upon.
            entropy: Asked for 32 bytes for each further attempt.
            store: Goes on surviving crashes.
            shared: Work shared with a virtual cohort in this process.
            threads: For mask expansion.

        Raises:
            StateError: On a damaged state, one of another roster, or one that the store has left
                behind; or when the store cannot be written.
        """
        record = Record.unpack(data)
        begin = record.begin
        if begin.roster_hash != roster.hash:
            raise StateError("a stored state that belongs to another roster")
        self = cls(
            identity=identity,
            id=record.id,
            roster=roster,
            params=begin.params,
            context=RoundContext.of(begin),
            length=begin.length,
            floor=floor,
            entropy=entropy,
            shared=shared,
            threads=threads,
        )
        try:
            self._now = Progress.of(
                record,
                roster=roster,
                params=self.params,
                length=self.length,
                ring=self._ring,
                shared=shared,
            )
        except (MessageError, ValueError) as error:
            raise StateError(f"a stored state that does not fit: {error}") from None
        if store is not None:
            kept = store.load()
            if kept is not None and kept != data:
                raise StateError("a state that is not the one in the store: the store's is newer")
            store.save(data)
            self._store = store
        return self

    def __repr__(self) -> str:
        return f"Participant(id={self.id}, round={self.context.round}, stage={self.stage.name})"

    # -- the stages ------------------------------------------------------------------------------

    def _begin(self, message: bytes) -> bytes:
        """Stage 0: advertise two fresh keys and a commitment to a graph nonce."""
        begin = Begin.parse(message[HEADER_SIZE:])
        session = session_hash(begin)
        if message[2:HEADER_SIZE] != session:
            raise MessageError("a BEGIN message whose session is not the hash of its content")
        now = self._now
        if now.stage.value >= _Stage.SHARED.value:
            checks.stage(now.stage.name, _Stage.IDLE.name, Kind.BEGIN.name)
        params = begin.params
        checks.floor_members(params, self._floor)
        checks.floor_threshold(params, self._floor)
        checks.floor_quorum(params, self._floor)
        checks.floor_modulus(params, self._floor)
        checks.floor_roster(params, self._roster.corrupt)
        own = self.context.begin(self.params, self._roster, self.length, begin.attempt)
        checks.context(vars(own), vars(begin))
        checks.attempts(begin.attempt, params)
        job = hashlib.sha256(begin.job).digest()
        checks.fresh(now.marks.get(job), begin.round, begin.attempt)
        now.marks = {**now.marks, job: (begin.round, begin.attempt)}
        now.attempt = begin.attempt
        now.session = session
        now.cohort = now.view = now.dealing = None
        now.secrets = keys.RoundSecrets(self._entropy(32))
        now.stage = _Stage.ADVERTISED
        fields = self._advert_fields()
        signature = self._identity.sign(advert_digest(session, self.id, fields))
        return frame(Kind.ADVERT, session, fields, signature)

    def _reveal(self, body: bytes) -> bytes:
        """Stage 0b: reveal the graph nonce, now that all commitments are fixed."""
        cohort = Cohort.read(self._roster, self.params, self._now.session, body, self._shared)
        index = cohort.index.get(self.id)
        found = None if index is None else cohort.fields(index)
        checks.own_entry(self._advert_fields(), found, "advert")
        self._now.cohort = cohort
        self._now.stage = _Stage.REVEALED
        return frame(Kind.REVEAL, self._now.session, self._own.nonce)

    def _share(self, body: bytes) -> bytes:
        """Stage 1: deal shares of both secrets to the neighbours that the nonces determine."""
        _, end = take_count(body, 0, 4, 32, "nonces")
        view = View.read(present(self._now.cohort), self.params, body[4:end], self._shared)
        dealing = self._dealing_in(view)
        announced = unpack_ids(body[end:], "neighbours")
        checks.graph(dealing.neighbours, announced)
        dealing.neighbours = announced
        checks.enough_shares(len(announced), self.params.threshold)
        seed_hash, commitments, sealed = dealing.deal()
        dealing.agree()
        commitments_hash = hashlib.sha256(commitments).digest()
        signature = self._identity.sign(
            dealt_digest(view.hash, self.id, seed_hash, commitments_hash)
        )
        self._now.view, self._now.dealing = view, dealing
        self._now.own_dealt = seed_hash + commitments_hash + signature
        self._now.stage = _Stage.SHARED
        return frame(Kind.SHARES, self._now.session, seed_hash, signature, commitments, sealed)

    def _mask(self, body: bytes) -> bytes:
        """Stage 2: open the shares, mask the input with keys bound to the whole transcript."""
        now = self._now
        if now.vector is None:
            raise InputError("no input was provided: call provide() before this message")
        view, dealing = present(now.view), present(now.dealing)
        _, end = take_count(body, 0, 4, DEALT_ROW.size, "dealt shares")
        dealt = Dealt.read(view, self.params, body[4:end], self._shared)
        mine = b"".join(dealt.row(self.id)) if self.id in dealt else None
        checks.own_entry(self._now.own_dealt, mine, "dealt shares")
        held, complaints = dealing.open(dealt, body[end:])
        checks.enough_shares(len(held), self.params.threshold)
        plus, minus = dealing.masks(dealt)
        vector = now.vector.copy()  # the input stays whole until its upload is certain
        add_masks(vector, plus, minus, threads=self._threads)
        self._ring.reduce(vector)
        now.vector, now.dealing = None, None
        now.dealt, now.held = dealt, held
        now.participations += 1
        now.stage = _Stage.MASKED
        count = len(complaints).to_bytes(2, "little")
        packed = self._ring.pack(vector)
        return frame(Kind.MASKED, self._now.session, count, pack_ids(complaints), packed)

    def _sign(self, body: bytes) -> bytes:
        """Stage 3: sign the transcript and one alive set, once."""
        dealt = present(self._now.dealt)
        alive = unpack_ids(body, "alive set")
        asked = alive_digest(dealt.transcript, alive)
        checks.signs_once(self._now.signed, asked)
        if self._now.stage is not _Stage.SIGNED:
            checks.stage(self._now.stage.name, _Stage.MASKED.name, Kind.ALIVE.name)
        checks.alive_subset(alive, dealt.ids)
        checks.self_alive(self.id, alive)
        checks.enough_members(len(alive), self.params, "alive")
        self._now.alive = alive
        self._now.signed = asked
        self._now.stage = _Stage.SIGNED
        return frame(Kind.CONSISTENCY, self._now.session, self._identity.sign(asked))

    def _release(self, body: bytes) -> bytes:
        """Stage 4: with a quorum over the alive set, release one share of each neighbour."""
        unmask = Unmask.parse(body)
        dealt, asked = present(self._now.dealt), present(self._now.signed)
        checks.distinct_signers(unmask.signers)
        checks.signers_alive(unmask.signers, self._now.alive)
        quorum.verify(self._roster, unmask, asked, self._shared)
        checks.quorum(len(unmask.signers), self.params)
        dropped = checks.partition(dealt.ids, self._now.alive, unmask.dropped)
        rows = released(self._now.held, alive=frozenset(self._now.alive), dropped=dropped)
        seed = self._own.self_seed
        self._now.stage = _Stage.RELEASED
        self._now.secrets = self._now.dealing = None
        self._now.held = {}
        return frame(Kind.RELEASE, self._now.session, Release(own_seed=seed, rows=rows).body())

    # -- the inside ------------------------------------------------------------------------------

    def _not_for_clients(self, body: bytes) -> bytes:
        raise MessageError(f"a message of {len(body)} bytes that clients send and never receive")

    def _persist(self, store: Store) -> None:
        """Write ahead: what is about to be said is durable before it is."""
        store.save(self.to_bytes())

    def _dealing_in(self, view: View) -> Dealing:
        return Dealing(
            me=self.id,
            own=self._own,
            view=view,
            threshold=self.params.threshold,
            shared=self._shared,
        )

    @property
    def _own(self) -> keys.RoundSecrets:
        return present(self._now.secrets)

    def _advert_fields(self) -> bytes:
        own = self._own
        commitment = nonce_commitment(self._now.session, self.id, own.nonce)
        return own.cipher_public + own.mask_public + commitment
