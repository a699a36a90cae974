"""A member's side of a round: one reply for one server message, or a refusal that says why.

The machine does no input or output. Every secret of a round grows from 32 bytes of entropy, so that
a restarted participant repeats its messages to the bit; what must never happen twice (a signature
over another alive set, a release) is written to the store before it is returned.
"""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Callable

import numpy.typing as npt

from secure_agg import checks, keys
from secure_agg.dealing import Dealing, half
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
from secure_agg.record import Record
from secure_agg.ring import Vector, ring
from secure_agg.roster import Entropy, Identity, Roster
from secure_agg.shared import Shared
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

__all__ = ["Participant", "ParticipantStage"]


class ParticipantStage(enum.Enum):
    """What a participant sent last."""

    IDLE = 0
    ADVERTISED = 1
    REVEALED = 2
    SHARED = 3
    MASKED = 4
    SIGNED = 5
    RELEASED = 6


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
        ParameterError: On values that cannot work.
        RosterError: When the roster holds another key, or none, for this member.
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
        self._marks: dict[bytes, tuple[int, int]] = {}
        self._participations = 0
        self._stage = _Stage.IDLE
        self._attempt = 0
        self._secrets: keys.RoundSecrets | None = None
        self._session = bytes(32)
        self._cohort: Cohort | None = None
        self._view: View | None = None
        self._own_dealt = b""
        self._dealing: Dealing | None = None
        self._dealt: Dealt | None = None
        self._held: dict[int, bytes] = {}
        self._alive: list[int] = []
        self._signed: bytes | None = None
        self._vector: Vector | None = None
        self._last: tuple[bytes, bytes] | None = None
        previous = None if store is None else store.load()
        if previous is not None:
            record = Record.unpack(previous)
            self._marks, self._participations = dict(record.marks), record.participations

    # -- the outside -----------------------------------------------------------------------------

    @property
    def stage(self) -> ParticipantStage:
        """What this participant sent last."""
        return self._stage

    @property
    def participations(self) -> int:
        """Rounds, of all jobs, in which this member uploaded; kept in the store."""
        return self._participations

    def provide(self, vector: npt.ArrayLike) -> None:
        """Hand over the input, before the message that asks for the masked one arrives.

        Args:
            vector: Shape (length,), unsigned integers below 2^modulus_bits; it is copied.

        Raises:
            InputError: On anything else.
            StageError: After an input was uploaded.
        """
        if self._stage.value >= _Stage.MASKED.value:
            raise InputError("an input was uploaded in this round already; there is one a round")
        self._vector = self._ring.take(vector, self.length)

    def handle(self, message: bytes) -> bytes:
        """Answer one server message.

        Returns:
            The reply, which the host sends to the server. With a store, the state is durable.

        Raises:
            SecureAggError: A refusal, named by its cause. The state is as before, and nothing was
                revealed; the host tells the server no more than that this member is gone.
        """
        kind = kind_of(message)
        if self._last is not None and self._last[0] == hashlib.sha256(message).digest():
            return self._last[1]  # the same question again: the same answer, to the bit
        if kind is Kind.BEGIN:
            self._limits.check(kind, len(message) - HEADER_SIZE)
            handler: Callable[[bytes], bytes] = self._begin
            body = message
        else:
            handler = {
                Kind.COHORT: self._reveal,
                Kind.NONCES: self._share,
                Kind.DELIVERY: self._mask,
                Kind.ALIVE: self._sign,
                Kind.UNMASK: self._release,
            }.get(kind, self._not_for_clients)
            body = unframe(message, kind, self._session, self._limits)
            if kind is Kind.UNMASK:
                checks.not_released(self._stage is _Stage.RELEASED)
            if kind is not Kind.ALIVE or self._signed is None:
                expected = _BEFORE.get(kind, _Stage.IDLE)
                checks.stage(self._stage.name, expected.name, kind.name)
        reply = handler(body)
        if self._store is not None:
            keep = self._stage is not _Stage.RELEASED
            self._last = (hashlib.sha256(message).digest(), reply) if keep else None
            try:
                self._persist()
            except BaseException:
                self._last = None  # nothing is said that is not written down
                raise
        return reply

    def to_bytes(self) -> bytes:
        """Serialise the whole machine. The bytes are secret until the round is over."""
        secrets, cohort, view, dealt = self._secrets, self._cohort, self._view, self._dealt
        return Record(
            marks=self._marks,
            participations=self._participations,
            id=self.id,
            begin=self.context.begin(self.params, self._roster, self.length, self._attempt),
            stage=self._stage.value,
            seed=b"" if secrets is None else secrets.seed,
            cohort=b"" if cohort is None else cohort.body,
            nonces=b"" if view is None else view.nonces,
            own_dealt=self._own_dealt,
            dealt=b"" if dealt is None else dealt.body,
            held=self._held,
            alive=self._alive,
            signed=self._signed or b"",
            vector=None if self._vector is None else self._ring.pack(self._vector),
            last=self._last,
        ).pack()

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

        Raises:
            StateError: On a damaged state, or one of another roster.
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
            self._adopt(record)
        except (MessageError, ValueError) as error:
            raise StateError(f"a stored state that does not fit: {error}") from None
        self._store = store
        return self

    def _adopt(self, record: Record) -> None:
        """Take over everything that a record holds of a round."""
        self._marks, self._participations = dict(record.marks), record.participations
        self._stage = ParticipantStage(record.stage)
        self._attempt = record.begin.attempt
        self._session = session_hash(record.begin)
        if record.seed:
            self._secrets = keys.RoundSecrets(record.seed)
        if record.cohort:
            self._cohort = Cohort.read(
                self._roster, self.params, self._session, record.cohort, self._shared
            )
        if record.nonces:
            self._view = View.read(present(self._cohort), self.params, record.nonces, self._shared)
        if record.dealt:
            self._dealt = Dealt.read(present(self._view), self.params, record.dealt, self._shared)
        elif self._view is not None:
            self._dealing = self._dealing_in(self._view)
        self._own_dealt = record.own_dealt
        self._held = dict(record.held)
        self._alive = record.alive
        self._signed = record.signed or None
        if record.vector is not None:
            self._vector = self._ring.unpack(record.vector, self.length).copy()
        self._last = record.last

    def __repr__(self) -> str:
        return f"Participant(id={self.id}, round={self.context.round}, stage={self._stage.name})"

    # -- the stages ------------------------------------------------------------------------------

    def _begin(self, message: bytes) -> bytes:
        """Stage 0: advertise two fresh keys and a commitment to a graph nonce."""
        begin = Begin.parse(message[HEADER_SIZE:])
        session = session_hash(begin)
        if message[2:HEADER_SIZE] != session:
            raise MessageError("a BEGIN message whose session is not the hash of its content")
        if self._stage.value >= _Stage.SHARED.value:
            checks.stage(self._stage.name, _Stage.IDLE.name, Kind.BEGIN.name)
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
        checks.fresh(self._marks.get(job), begin.round, begin.attempt)
        self._marks = {**self._marks, job: (begin.round, begin.attempt)}
        self._attempt = begin.attempt
        self._session = session
        self._cohort = self._view = self._dealing = None
        self._secrets = keys.RoundSecrets(self._entropy(32))
        self._stage = _Stage.ADVERTISED
        fields = self._advert_fields()
        signature = self._identity.sign(advert_digest(session, self.id, fields))
        return frame(Kind.ADVERT, session, fields, signature)

    def _reveal(self, body: bytes) -> bytes:
        """Stage 0b: reveal the graph nonce, now that all commitments are fixed."""
        cohort = Cohort.read(self._roster, self.params, self._session, body, self._shared)
        index = cohort.index.get(self.id)
        found = None if index is None else cohort.fields(index)
        checks.own_entry(self._advert_fields(), found, "advert")
        self._cohort = cohort
        self._stage = _Stage.REVEALED
        return frame(Kind.REVEAL, self._session, self._own.nonce)

    def _share(self, body: bytes) -> bytes:
        """Stage 1: deal shares of both secrets to the neighbours that the nonces determine."""
        _, end = take_count(body, 0, 4, 32, "nonces")
        view = View.read(present(self._cohort), self.params, body[4:end], self._shared)
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
        self._view, self._dealing = view, dealing
        self._own_dealt = seed_hash + commitments_hash + signature
        self._stage = _Stage.SHARED
        return frame(Kind.SHARES, self._session, seed_hash, signature, commitments, sealed)

    def _mask(self, body: bytes) -> bytes:
        """Stage 2: open the shares, mask the input with keys bound to the whole transcript."""
        if self._vector is None:
            raise InputError("no input was provided: call provide() before this message")
        view, dealing = present(self._view), present(self._dealing)
        _, end = take_count(body, 0, 4, DEALT_ROW.size, "dealt shares")
        dealt = Dealt.read(view, self.params, body[4:end], self._shared)
        mine = b"".join(dealt.row(self.id)) if self.id in dealt else None
        checks.own_entry(self._own_dealt, mine, "dealt shares")
        held, complaints = dealing.open(dealt, body[end:])
        checks.enough_shares(len(held), self.params.threshold)
        plus, minus = dealing.masks(dealt)
        vector, self._vector = self._vector, None  # never masked twice, whatever fails below
        add_masks(vector, plus, minus, threads=self._threads)
        self._ring.reduce(vector)
        self._dealt, self._held, self._dealing = dealt, held, None
        self._participations += 1
        self._stage = _Stage.MASKED
        count = len(complaints).to_bytes(2, "little")
        packed = self._ring.pack(vector)
        return frame(Kind.MASKED, self._session, count, pack_ids(complaints), packed)

    def _sign(self, body: bytes) -> bytes:
        """Stage 3: sign the transcript and one alive set, once."""
        dealt = present(self._dealt)
        alive = unpack_ids(body, "alive set")
        asked = alive_digest(dealt.transcript, alive)
        checks.signs_once(self._signed, asked)
        if self._stage is not _Stage.SIGNED:
            checks.stage(self._stage.name, _Stage.MASKED.name, Kind.ALIVE.name)
        checks.alive_subset(alive, dealt.ids)
        checks.self_alive(self.id, alive)
        checks.enough_members(len(alive), self.params, "alive")
        self._alive = alive
        self._signed = asked
        self._stage = _Stage.SIGNED
        return frame(Kind.CONSISTENCY, self._session, self._identity.sign(asked))

    def _release(self, body: bytes) -> bytes:
        """Stage 4: with a quorum over the alive set, release one share of each neighbour."""
        unmask = Unmask.parse(body)
        dealt, asked = present(self._dealt), present(self._signed)
        checks.distinct_signers(unmask.signers)
        checks.signers_alive(unmask.signers, self._alive)
        verify_quorum(self._roster, unmask, asked, self._shared)
        checks.quorum(len(unmask.signers), self.params)
        dropped = checks.partition(dealt.ids, self._alive, unmask.dropped)
        alive = frozenset(self._alive)
        rows = []
        for dealer in sorted(self._held):
            for kind, members in ((0, alive), (1, dropped)):
                if dealer in members:
                    opened = half(self._held[dealer], kind)
                    share, opening = opened[: keys.SECRET_SIZE], opened[keys.SECRET_SIZE :]
                    rows.append((dealer, kind, share, opening))
        seed = self._own.self_seed
        self._stage = _Stage.RELEASED
        self._secrets = self._dealing = None
        self._held = {}
        return frame(Kind.RELEASE, self._session, Release(own_seed=seed, rows=rows).body())

    # -- the inside ------------------------------------------------------------------------------

    def _not_for_clients(self, body: bytes) -> bytes:
        raise MessageError(f"a message of {len(body)} bytes that clients send and never receive")

    def _persist(self) -> None:
        """Write ahead: what is about to be sent is durable before it is."""
        if self._store is not None:
            self._store.save(self.to_bytes())

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
        return present(self._secrets)

    def _advert_fields(self) -> bytes:
        own = self._own
        commitment = nonce_commitment(self._session, self.id, own.nonce)
        return own.cipher_public + own.mask_public + commitment


def verify_quorum(
    roster: Roster, unmask: Unmask, asked: bytes, shared: Shared | None = None
) -> None:
    """Check every signature of a quorum over the digest of one alive set.

    Raises:
        SignatureMismatch: When one does not verify.
    """

    def verify() -> bool:
        for signer, signature in zip(unmask.signers, unmask.signatures, strict=True):
            valid = keys.verifies(checks.enrolled(roster, signer), signature, asked, shared)
            checks.signature(valid, signer, "alive set")
        return True

    if shared is None:
        verify()
    else:
        everything = (roster.hash, asked, tuple(unmask.signers), tuple(unmask.signatures))
        shared.get(("quorum", everything), verify)
