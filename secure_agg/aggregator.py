"""The server's side of a round: collects, adds as it goes, and finds out who cheated.

The machine does no input or output and keeps no clock: the host delivers messages with `receive`
and says with `close_stage` that a stage's deadline has come. A member that sent nothing, or
something wrong, by then is out; the round goes on while enough are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from secure_agg import checks
from secure_agg.collection import Collection
from secure_agg.errors import (
    LateMessage,
    MessageError,
    ParameterError,
    SecureAggError,
    StageError,
    StateError,
)
from secure_agg.messages import (
    HEADER_SIZE,
    U32,
    Complaint,
    Kind,
    Limits,
    Opening,
    frame,
    kind_of,
    unpack_complaints,
)
from secure_agg.params import SecAggParams
from secure_agg.prekeys import check_prekey, prekey_suite, public_key
from secure_agg.result import SumResult
from secure_agg.roster import Roster
from secure_agg.session import RoundContext, Session, draw_committee
from secure_agg.shared import Shared
from secure_agg.stages import AggregatorStage
from secure_agg.store import present

__all__ = ["Aggregator"]


_Stage = AggregatorStage


class Aggregator:
    """One synchronous round.

    Args:
        roster: The list of members.
        params: As for every member; ``params.n`` members are invited.
        context: As for every member.
        cohort: Ids of those invited.
        prekeys: A signed single-use sealing key of each committee member, as `SealingKeys.issue`
            gives them; those of other members are ignored. A committee member without one counts as
            lost; one whose statement does not verify is blamed besides.
        shared: Work shared with a virtual cohort in this process.

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
        cohort: Iterable[int],
        prekeys: Mapping[int, bytes],
        shared: Shared | None = None,
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
        self.blamed: dict[int, str] = {}
        self.stage = _Stage.IDLE
        self._shared = shared
        self._limits = Limits(params)
        verified = Shared() if shared is None else shared  # statements are verified twice
        committee = draw_committee(invited, params.committee, context, roster.hash)
        self._session = Session.build(
            params=params,
            context=context,
            roster=roster,
            cohort=invited,
            committee=committee,
            prekeys=self._usable(roster, committee, prekeys, verified),
            shared=verified,
        )
        self._collection = Collection(self._session, 0, shared)
        self._out: set[int] = set()
        self._expected: set[int] = set()
        self._answers: dict[int, bytes] = {}
        self._complaints: dict[int, list[Complaint]] = {}
        self._awaited = Kind.UPLOAD
        self._lost: dict[str, set[int]] = {}
        self._result: SumResult | None = None

    # -- the outside -----------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """The round with its committee."""
        return self._session

    @property
    def waiting(self) -> frozenset[int]:
        """Members whose message for this step has not come; none: the stage can be closed."""
        return frozenset(self._expected - self._out - set(self._answers))

    @property
    def dropped(self) -> Mapping[str, tuple[int, ...]]:
        """Ids that vanished so far, by the stage whose message they did not send."""
        return {stage: tuple(sorted(ids)) for stage, ids in self._lost.items() if ids}

    @property
    def result(self) -> SumResult:
        """The sum.

        Raises:
            StageError: Before the round is over, and where it failed.
        """
        if self._result is None:
            raise StageError(f"no result in stage {self.stage.name}")
        return self._result

    def begin(self) -> dict[int, bytes]:
        """Open the round: the first message to everybody invited.

        Raises:
            StageError: It is open already.
            ThresholdNotMet: Fewer committee members than a sum needs have a sealing key.
        """
        checks.stage(self.stage.name, _Stage.IDLE.name, "the opening")
        checks.enough_answers(len(self._session.seats), self.params.needed)
        self._expected = set(self._session.cohort)
        self.stage = _Stage.UPLOAD
        message = frame(Kind.OPENING, self._session.hash, Opening.of(self._session).body())
        return dict.fromkeys(self._session.cohort, message)

    def receive(self, sender: int, message: bytes) -> None:
        """Take a member's message; the host has authenticated ``sender``.

        An upload is added to the running sum at once.

        Raises:
            LateMessage: Its step is closed, or the message is of another session; it is discarded,
                and nobody is to blame.
            StageError: It is not expected now, or not of this member; nobody is to blame either.
            SecureAggError: The message is wrong. That can only be the sender's doing: it is now in
                `blamed`, and out of the round; the round goes on.
        """
        kind = kind_of(message)
        if kind % 2:
            raise MessageError(f"a {kind.name} message, which servers send and never receive")
        checks.same_session(message[2:HEADER_SIZE], self._session.hash, sender)
        now = kind + 1 if self.stage is _Stage.DONE else self._awaited
        checks.awaited(kind, now, sender, sender in self.waiting, kind.name)
        try:
            self._limits.check(kind, len(message) - HEADER_SIZE)
            self._answers[sender] = self._take(kind, sender, message)
        except (LateMessage, StageError, StateError):
            raise
        except SecureAggError as error:
            self.blamed[sender] = str(error)
            self._out.add(sender)
            raise

    def close_stage(self) -> Mapping[int, bytes]:
        """Go on with those that answered.

        Returns:
            The messages of the next step, by receiver; empty when the round is over. Those to the
            committee with the shares are put together one by one when they are looked up.

        Raises:
            ThresholdNotMet: Too few answered, so that the round is over; `QuorumNotMet` is one.
            DecodingError: More answers are wrong than can be corrected: the round is spent.
            ResidualError: A ciphertext does not match its shares: the round is spent, and the
                inputs must not be submitted again.
            StageError: The round has not begun, or is over.
        """
        go_on = {
            Kind.UPLOAD: self._deliver,
            Kind.CHECKED: self._propose,
            Kind.ENDORSEMENT: self._certify,
            Kind.ANSWER: self._finish,
        }.get(self._awaited)
        if go_on is None or self.stage in (_Stage.IDLE, _Stage.DONE):
            raise StageError(f"no stage to close: the round is in stage {self.stage.name}")
        lost = self._lost.setdefault(self.stage.name.lower(), set())
        lost |= self.waiting
        self._out |= self.waiting if self._awaited is not Kind.UPLOAD else set()
        try:
            return go_on()
        except SecureAggError:
            self.stage = _Stage.DONE
            raise

    def __repr__(self) -> str:
        return f"Aggregator(round={self.context.round}, stage={self.stage.name})"

    # -- what members send -----------------------------------------------------------------------

    def _take(self, kind: Kind, sender: int, message: bytes) -> bytes:
        collection = self._collection
        if kind is Kind.UPLOAD:
            collection.take_upload(sender, message, 0)
            return b""
        body = message[HEADER_SIZE:]
        (buffer,) = U32.unpack_from(body)
        checks.numbered(buffer, collection.number, sender, f"{kind.name} of sum")
        if kind is Kind.CHECKED:
            self._complaints[sender] = unpack_complaints(body)[1]
            return b""
        if kind is Kind.ENDORSEMENT:
            return collection.take_endorsement(sender, body)
        return collection.take_answer(sender, body)

    # -- what the server sends -------------------------------------------------------------------

    def _deliver(self) -> Mapping[int, bytes]:
        """Pass the shares on to every committee member that has a key and is not blamed."""
        self._enough("were made")
        committee = self._session.committee
        members = [committee[seat] for seat in self._session.seats]
        return self._ask(
            Kind.CHECKED,
            _Stage.ENDORSE,
            self._collection.deliveries(tuple(m for m in members if m not in self._out)),
        )

    def _propose(self) -> Mapping[int, bytes]:
        """Settle the complaints, fix the set, and ask for endorsements."""
        checks.quorum(len(self._answers), self.params.needed)
        verdict = self._collection.judge(self._complaints)
        self.blamed.update(verdict.guilty)
        self._out |= {*verdict.guilty, *verdict.ignored}
        self._lost["endorse"] |= set(verdict.ignored)
        self._enough("are left after the committee's check")
        message = self._collection.propose()
        live = [member for member in self._answers if member not in self._out]
        return self._ask(Kind.ENDORSEMENT, _Stage.ENDORSE, dict.fromkeys(live, message))

    def _certify(self) -> Mapping[int, bytes]:
        message = self._collection.certify(self._answers)
        return self._ask(Kind.ANSWER, _Stage.ANSWER, dict.fromkeys(self._answers, message))

    def _finish(self) -> Mapping[int, bytes]:
        collection = self._collection
        total, liars = collection.finish(self._answers)
        for member in liars:
            self.blamed[member] = f"member {member} answered with a wrong sum of shares"
        self.stage = _Stage.DONE
        self._expected = set()
        self._result = SumResult(
            total=total,
            included=collection.uploaders,
            blamed=dict(self.blamed),
            left_out=dict(collection.left_out),
            dropped=self.dropped,
        )
        return {}

    # -- the inside ------------------------------------------------------------------------------

    def _enough(self, what: str) -> None:
        checks.enough_included(
            len(self._collection.uploaders), self.params.min_included, what
        )

    def _ask(
        self, kind: Kind, stage: AggregatorStage, messages: Mapping[int, bytes]
    ) -> Mapping[int, bytes]:
        self._awaited, self.stage = kind, stage
        self._expected, self._answers = set(messages), {}
        return messages

    def _usable(
        self,
        roster: Roster,
        committee: tuple[int, ...],
        prekeys: Mapping[int, bytes],
        shared: Shared,
    ) -> list[bytes]:
        """Return a statement for each position, empty where there is none that can be used."""
        out: list[bytes] = []
        seen: set[bytes] = set()
        for member in committee:
            prekey = prekeys.get(member, b"")
            if prekey:
                try:
                    checks.suite(prekey_suite(prekey), self.params.suite, member)
                    check_prekey(present(roster.get(member)), prekey, shared)
                    key = public_key(prekey)
                    checks.distinct((key, *seen), 1 + len(seen), "sealing key")
                    seen.add(key)
                except SecureAggError as error:
                    self.blamed[member] = str(error)
                    prekey = b""
            out.append(prekey)
        return out
