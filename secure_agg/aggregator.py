"""The server's side of a round: collects, adds as it goes, and finds out who cheated.

The machine does no input or output and keeps no clock: the host delivers messages with `receive`
and says with `close_stage` that a stage's deadline has come. A member that sent nothing, or
something wrong, by then is out; the round goes on while enough are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from secure_agg import checks, keys
from secure_agg.attendance import Attendance
from secure_agg.complaints import Complaints, accused, read_complaints
from secure_agg.delivery import HEAD, Delivery, check_upload
from secure_agg.errors import (
    MessageError,
    NonceWithheld,
    ParameterError,
    SecureAggError,
    SignatureMismatch,
    StageError,
    StateError,
)
from secure_agg.messages import (
    HEADER_SIZE,
    Kind,
    Limits,
    Release,
    Unmask,
    check_frame,
    frame,
    kind_of,
    pack_ids,
    unpack_ids,
)
from secure_agg.minutes import Minutes
from secure_agg.params import SecAggParams
from secure_agg.prg import add_masks
from secure_agg.recovery import Recovery
from secure_agg.result import SumResult
from secure_agg.ring import ring
from secure_agg.roster import Roster
from secure_agg.shared import Shared
from secure_agg.stages import AggregatorStage
from secure_agg.store import present
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
from secure_agg.unmasking import masks_left

__all__ = ["Aggregator"]


_Stage = AggregatorStage
_STAGE_OF = {
    Kind.ADVERT: _Stage.ADVERTISE,
    Kind.REVEAL: _Stage.REVEAL,
    Kind.SHARES: _Stage.SHARE_KEYS,
    Kind.MASKED: _Stage.MASKED_INPUT,
    Kind.CONSISTENCY: _Stage.CONSISTENCY,
    Kind.RELEASE: _Stage.UNMASK,
}


class Aggregator:
    """One round.

    Args:
        roster: The list of members.
        params: As for every participant; ``params.n`` members are invited.
        context: As for every participant.
        length: Elements of a vector, d.
        cohort: Ids of those invited.
        shared: Work shared with a virtual cohort in this process.
        threads: For mask expansion when the sum is unmasked.

    Attributes:
        stage: Which message the server waits for.
        blamed: Why, for each member caught cheating so far.

    Raises:
        ParameterError: When the cohort is not ``params.n`` distinct members.
        RosterError: When one of them is not in the roster.
    """

    def __init__(
        self,
        *,
        roster: Roster,
        params: SecAggParams,
        context: RoundContext,
        length: int,
        cohort: Iterable[int],
        shared: Shared | None = None,
        threads: int = 1,
    ) -> None:
        invited = sorted(cohort)
        if len(set(invited)) != len(invited) or len(invited) != params.n:
            raise ParameterError(
                f"a cohort of {len(set(invited))} distinct members: params.n is {params.n}"
            )
        for member in invited:
            checks.enrolled(roster, member)
        self.params = params
        self.context = context
        self.length = length
        self.blamed: dict[int, str] = {}
        self.stage = _Stage.IDLE
        self._roster = roster
        self._shared = shared
        self._verified = Shared() if shared is None else shared  # adverts are read twice
        self._threads = threads
        self._ring = ring(params.modulus_bits)
        self._limits = Limits(params, length)
        self._invited = invited
        self._attempt = 0
        self._session = bytes(32)
        self._attendance = Attendance()
        self._answers: dict[_Stage, dict[int, bytes]] = {stage: {} for stage in _Stage}
        self._public_keys: set[bytes] = set()
        self._cohort: Cohort | None = None
        self._view: View | None = None
        self._dealt: Dealt | None = None
        self._recovery: Recovery | None = None
        self._alive: list[int] = []
        self._total = self._ring.zeros(0)

    # -- the outside -----------------------------------------------------------------------------

    @property
    def waiting(self) -> frozenset[int]:
        """Members whose message for this stage has not come; none: the stage can be closed."""
        return self._attendance.waiting(self._answers[self.stage])

    @property
    def dropped(self) -> Mapping[str, tuple[int, ...]]:
        """Ids that vanished so far, by the stage whose message they did not send."""
        return dict(self._attendance.dropped)

    @property
    def result(self) -> SumResult:
        """The sum.

        Raises:
            StageError: Before the round is over.
        """
        if self.stage is not _Stage.DONE:
            raise StageError(f"no result in stage {self.stage.name}: the round is not over")
        return SumResult(
            total=self._total,
            included=tuple(self._alive),
            blamed=dict(self.blamed),
            dropped=self.dropped,
        )

    def begin(self) -> dict[int, bytes]:
        """Open the round: the first message to everybody invited.

        Raises:
            StageError: It is open already.
        """
        checks.stage(self.stage.name, _Stage.IDLE.name, Kind.BEGIN.name)
        return self._open(self._invited, 0)

    def receive(self, sender: int, message: bytes) -> None:
        """Take a member's message; the host has authenticated ``sender``.

        An upload is added to the running sum at once and not kept.

        Raises:
            LateMessage: The stage is closed, or the message is of another session; it is
                discarded, and nobody is to blame.
            SecureAggError: The message is wrong. Where that can only be the sender's doing, it is
                now in `blamed`, and out of the round; the round goes on.
        """
        kind = kind_of(message)
        stage = _STAGE_OF.get(kind)
        if stage is None:
            raise MessageError(f"a {kind.name} message, which servers send and never receive")
        checks.same_session(message[2:HEADER_SIZE], self._session, sender)
        checks.awaited(stage, self.stage, sender, self._attendance.hears(sender))
        if sender in self._answers[stage]:
            raise StageError(f"member {sender} has sent its {kind.name} message already")
        try:
            check_frame(message, kind, self._session, self._limits)
            if stage is _Stage.MASKED_INPUT:  # large, and not kept: not copied either
                answer = self._take_masked(sender, memoryview(message)[HEADER_SIZE:])
            else:
                take = {
                    _Stage.ADVERTISE: self._take_advert,
                    _Stage.REVEAL: self._take_nonce,
                    _Stage.SHARE_KEYS: self._take_shares,
                    _Stage.CONSISTENCY: self._take_signature,
                    _Stage.UNMASK: self._take_release,
                }[stage]
                answer = take(sender, message[HEADER_SIZE:])
            self._answers[stage][sender] = answer
        except SecureAggError as error:
            self.blamed[sender] = str(error)
            self._attendance.exclude(sender)
            raise

    def close_stage(self) -> dict[int, bytes]:
        """Go on with whoever answered.

        Returns:
            The messages of the next stage, by receiver; empty when the round is over.

        Raises:
            ThresholdNotMet: Too few answered, so that the round is over; `QuorumNotMet` is one.
            NonceWithheld: The graph cannot be drawn again within the allowed attempts.
            DealerFault: Dealt shares do not determine a secret; its `blamed` are to be excluded
                from the next round.
            StageError: The round has not begun, or is over.
        """
        go_on = {
            _Stage.ADVERTISE: self._send_cohort,
            _Stage.REVEAL: self._send_nonces,
            _Stage.SHARE_KEYS: self._send_delivery,
            _Stage.MASKED_INPUT: self._send_alive,
            _Stage.CONSISTENCY: self._send_unmask,
            _Stage.UNMASK: self._finish,
        }.get(self.stage)
        if go_on is None:
            raise StageError(f"no stage to close: the round is in stage {self.stage.name}")
        self._attendance.close(self.stage.name.lower(), self._answers[self.stage])
        return go_on()

    # -- what members send -----------------------------------------------------------------------

    def _take_advert(self, sender: int, body: bytes) -> bytes:
        cipher, mask, fields, signature = body[:32], body[32:64], body[:96], body[96:]
        message = advert_digest(self._session, sender, fields)
        self._verify(sender, signature, message, "advert")
        for public in (cipher, mask):
            checks.high_order(keys.is_low_order(public), sender)
        again = self._public_keys.intersection((cipher, mask))
        checks.distinct((cipher, mask), 2 + len(again), "public key")
        self._public_keys |= {cipher, mask}
        return body

    def _take_nonce(self, sender: int, body: bytes) -> bytes:
        cohort = present(self._cohort)
        found = nonce_commitment(self._session, sender, body)
        checks.nonce(cohort.commitments[cohort.index[sender]], found, sender)
        return body

    def _take_shares(self, sender: int, body: bytes) -> bytes:
        check_upload(present(self._view), sender, body)
        return body

    def _take_masked(self, sender: int, body: memoryview) -> bytes:
        view, dealt = present(self._view), present(self._dealt)
        neighbours = view.neighbour_ids(view.cohort.index[sender])
        dealers = frozenset(neighbours).intersection(dealt.ids)
        complaints, end = read_complaints(body, sender, dealers)
        answer = pack_ids(complaints)
        upload = self._ring.unpack(body[end:], self.length)
        np.add(self._total, upload, out=self._total)  # last: all of an accepted input or nothing
        return answer

    def _take_signature(self, sender: int, body: bytes) -> bytes:
        return body  # verified when the stage closes, and only as many as a quorum takes

    def _take_release(self, sender: int, body: bytes) -> bytes:
        present(self._recovery).take(sender, Release.parse(body))
        return body

    # -- what the server sends -------------------------------------------------------------------

    def _open(self, members: Iterable[int], attempt: int) -> dict[int, bytes]:
        self._attempt = attempt
        begin = self.context.begin(self.params, self._roster, self.length, attempt)
        self._session = session_hash(begin)
        self._attendance.gather(members)
        self._answers[_Stage.ADVERTISE] = {}
        self._answers[_Stage.REVEAL] = {}
        self._public_keys = set()
        self._cohort = self._view = None
        self.stage = _Stage.ADVERTISE
        return self._to_all(Kind.BEGIN, begin.body())

    def _send_cohort(self) -> dict[int, bytes]:
        checks.enough_members(len(self._expected), self.params, "advertised")
        adverts = self._answers[_Stage.ADVERTISE]
        body = b"".join(m.to_bytes(4, "little") + adverts[m] for m in self._expected)
        self._cohort = Cohort.read(self._roster, self.params, self._session, body, self._verified)
        self.stage = _Stage.REVEAL
        return self._to_all(Kind.COHORT, body)

    def _send_nonces(self) -> dict[int, bytes]:
        cohort = present(self._cohort)
        if len(self._expected) < len(cohort.ids):
            checks.enough_members(len(self._expected), self.params, "revealed their nonces")
            if self._attempt + 1 >= self.params.attempts:
                raise NonceWithheld(
                    f"{len(cohort.ids) - len(self._expected)} graph nonces were withheld in "
                    f"attempt {self._attempt + 1} of {self.params.attempts}; start another round"
                )
            return self._open(self._expected, self._attempt + 1)
        revealed = self._answers[_Stage.REVEAL]
        nonces = b"".join(revealed[m] for m in cohort.ids)
        view = self._view = View.read(cohort, self.params, nonces, self._shared)
        self.stage = _Stage.SHARE_KEYS
        head = len(cohort.ids).to_bytes(4, "little") + nonces
        return {
            member: frame(Kind.NONCES, self._session, head, pack_ids(view.neighbour_ids(i)))
            for i, member in enumerate(cohort.ids)
        }

    def _send_delivery(self) -> dict[int, bytes]:
        view, answers = present(self._view), self._answers[_Stage.SHARE_KEYS]
        checks.enough_members(len(self._expected), self.params, "dealt shares")
        delivery = Delivery(view, {member: answers[member] for member in self._expected})
        self._dealt = Dealt.read(view, self.params, delivery.rows, self._shared)
        head = delivery.count.to_bytes(4, "little") + delivery.rows
        messages = {
            member: frame(Kind.DELIVERY, self._session, head, *delivery.to(member))
            for member in self._expected
        }
        for member in self._expected:  # the sealed shares have been passed on; keep the rest
            answers[member] = delivery.evidence(member)
        self._total = self._ring.zeros(self.length)
        self.stage = _Stage.MASKED_INPUT
        return messages

    def _send_alive(self) -> dict[int, bytes]:
        checks.enough_members(len(self._expected), self.params, "uploaded")
        self._alive = list(self._expected)
        for dealer, count in accused(self._complaints().values(), self.params.colluders).items():
            self.blamed.setdefault(dealer, f"{count} holders complain about its shares")
        self.stage = _Stage.CONSISTENCY
        return self._to_all(Kind.ALIVE, pack_ids(self._alive))

    def _send_unmask(self) -> dict[int, bytes]:
        signatures = self._answers[_Stage.CONSISTENCY]
        asked = self._alive_digest()
        signers: list[int] = []
        for member in list(self._expected):
            if len(signers) == self.params.quorum:
                break
            try:
                self._verify(member, signatures[member], asked, "alive set")
            except SignatureMismatch as error:
                self.blamed[member] = str(error)
                del self._expected[member]
            else:
                signers.append(member)
        checks.quorum(len(signers), self.params)
        alive = set(self._alive)
        unmask = Unmask(
            signers=signers,
            signatures=[signatures[m] for m in signers],
            dropped=[m for m in present(self._dealt).ids if m not in alive],
        )
        self._start_recovery()
        self.stage = _Stage.UNMASK
        return self._to_all(Kind.UNMASK, unmask.body())

    def _finish(self) -> dict[int, bytes]:
        recovery, dealt = present(self._recovery), present(self._dealt)
        try:
            seeds, mask_keys = recovery.recover()
        finally:
            self.blamed.update(recovery.blamed)
        plus, minus = masks_left(dealt, self._alive, seeds, mask_keys, self._shared)
        add_masks(self._total, plus, minus, threads=self._threads)
        self._ring.reduce(self._total)
        self._recovery = None
        self._answers[_Stage.UNMASK] = {}
        self.stage = _Stage.DONE
        return {}

    # -- the inside ------------------------------------------------------------------------------

    @property
    def _expected(self) -> dict[int, None]:
        return self._attendance.expected

    def _complaints(self) -> dict[int, Complaints]:
        uploads = self._answers[_Stage.MASKED_INPUT].items()
        return {holder: frozenset(unpack_ids(raw, "complaints")) for holder, raw in uploads}

    def _to_all(self, kind: Kind, body: bytes) -> dict[int, bytes]:
        return dict.fromkeys(self._expected, frame(kind, self._session, body))

    def _verify(self, member: int, signature: bytes, message: bytes, what: str) -> None:
        public = checks.enrolled(self._roster, member)
        checks.signature(keys.verifies(public, signature, message, self._verified), member, what)

    def _alive_digest(self) -> bytes:
        return alive_digest(present(self._dealt).transcript, self._alive)

    def _start_recovery(self) -> None:
        answers = self._answers
        dealt = present(self._dealt)
        self._recovery = Recovery(
            dealt=dealt,
            commitments={m: answers[_Stage.SHARE_KEYS][m][HEAD:] for m in dealt.ids},
            complaints=self._complaints(),
            alive=self._alive,
            threshold=self.params.threshold,
            verify=self._verify_dealt,
        )

    def _verify_dealt(self, dealer: int) -> None:
        """Verify a dealer's signature on its row of stage 1."""
        dealt = present(self._dealt)
        seed_hash, commitments_hash, signature = dealt.row(dealer)
        message = dealt_digest(dealt.view.hash, dealer, seed_hash, commitments_hash)
        self._verify(dealer, signature, message, "shares")

    def to_bytes(self) -> bytes:
        """Serialise the whole machine; it holds nothing that the server does not know anyway."""
        cohort, view, dealt = self._cohort, self._view, self._dealt
        return Minutes(
            begin=self.context.begin(self.params, self._roster, self.length, self._attempt),
            stage=self.stage,
            invited=self._invited,
            expected=list(self._expected),
            alive=self._alive,
            out=sorted(self._attendance.out),
            cohort=b"" if cohort is None else cohort.body,
            nonces=b"" if view is None else view.nonces,
            dealt=b"" if dealt is None else dealt.body,
            total=self._total.tobytes(),
            blamed=self.blamed,
            dropped=self._attendance.dropped,
            answers=self._answers,
        ).pack()

    @classmethod
    def from_bytes(
        cls, data: bytes, *, roster: Roster, shared: Shared | None = None, threads: int = 1
    ) -> Aggregator:
        """Restore a machine that `to_bytes` wrote.

        Raises:
            StateError: On a damaged state, or one of another roster.
        """
        minutes = Minutes.unpack(data)
        begin = minutes.begin
        if begin.roster_hash != roster.hash:
            raise StateError("a stored state that belongs to another roster")
        try:
            self = cls(
                roster=roster,
                params=begin.params,
                context=RoundContext.of(begin),
                length=begin.length,
                cohort=minutes.invited,
                shared=shared,
                threads=threads,
            )
            self.stage = minutes.stage
            self._attempt = begin.attempt
            self._session = session_hash(begin)
            self._alive = minutes.alive
            if minutes.cohort:
                self._cohort = Cohort.read(
                    roster, self.params, self._session, minutes.cohort, shared
                )
            if minutes.nonces:
                self._view = View.read(present(self._cohort), self.params, minutes.nonces, shared)
            if minutes.dealt:
                self._dealt = Dealt.read(present(self._view), self.params, minutes.dealt, shared)
            self._total = np.frombuffer(minutes.total, self._ring.dtype).copy()
        except (MessageError, ParameterError, ValueError) as error:
            raise StateError(f"a stored state that does not fit: {error}") from None
        self.blamed.update(minutes.blamed)
        self._attendance.restore(
            expected=minutes.expected, out=minutes.out, dropped=minutes.dropped
        )
        self._answers = {of: dict(sent) for of, sent in minutes.answers.items()}
        for advert in self._answers[_Stage.ADVERTISE].values():
            self._public_keys |= {advert[:32], advert[32:64]}
        if self.stage is _Stage.UNMASK:
            self._start_recovery()
            for member, released in self._answers[_Stage.UNMASK].items():
                present(self._recovery).take(member, Release.parse(released))
        return self

    def __repr__(self) -> str:
        return f"Aggregator(round={self.context.round}, stage={self.stage.name})"
