"""The server's side of a round: collects, adds as it goes, and finds out who cheated.

The machine does no input or output and keeps no clock: the host delivers messages with `receive`
and says with `close_stage` that a stage's deadline has come. A member that sent nothing, or
something wrong, by then is out; the round goes on while enough are left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
from secure_agg.messages import HEADER_SIZE, NAMES, Kind, Limits, Opening, frame, kind_of
from secure_agg.params import SecAggParams
from secure_agg.prekeys import check_prekey, prekey_suite, public_key
from secure_agg.result import SumResult
from secure_agg.roster import Roster
from secure_agg.session import RoundContext, Session, draw_committee
from secure_agg.settlement import Settlement
from secure_agg.shared import Shared
from secure_agg.stages import AggregatorStage

__all__ = ["Aggregator", "Committed", "openings"]


_Stage = AggregatorStage


class Committed(ABC):
    """A server with a committee: seats it, and blames the sender of a wrong message.

    Args:
        roster: The list of members.
        params: As for every member.
        context: As for every member.
        cohort: Ids of those invited.
        prekeys: As for `Aggregator`.
        shared: Work shared with a virtual cohort in this process.

    Attributes:
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
        self.params = params
        self.context = context
        self.blamed: dict[int, str] = {}
        self._shared = shared
        self._limits = Limits(params)
        self._session = open_session(
            roster=roster,
            params=params,
            context=context,
            cohort=cohort,
            prekeys=prekeys,
            blamed=self.blamed,
            shared=shared,
        )
        self._out: set[int] = set()

    @property
    def session(self) -> Session:
        """The round or epoch with its committee."""
        return self._session

    def receive(self, sender: int, message: bytes) -> None:
        """Take a member's message; the host has authenticated ``sender``.

        An upload is added to the running sum at once.

        Raises:
            LateMessage: Its step is closed, or the message is of another session; it is discarded,
                and nobody is to blame.
            StageError: It is not expected now, or not of this member; nobody is to blame either.
            SecureAggError: The message is wrong. That can only be the sender's doing: it is now in
                `blamed`, and out of the round or epoch, which goes on.
        """
        kind = kind_of(message)
        if kind % 2:
            raise MessageError(f"a {kind.name} message, which servers send and never receive")
        checks.same_session(message[2:HEADER_SIZE], self._session.hash, sender)
        try:
            self._take(kind, sender, message)
        except (LateMessage, StageError, StateError):
            raise
        except SecureAggError as error:
            self.blamed[sender] = str(error)
            self._out.add(sender)
            raise

    @abstractmethod
    def _take(self, kind: Kind, sender: int, message: bytes) -> None:
        """Check a message of this session, and use it."""


class Aggregator(Committed):
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
        super().__init__(
            roster=roster,
            params=params,
            context=context,
            cohort=cohort,
            prekeys=prekeys,
            shared=shared,
        )
        self.stage = _Stage.IDLE
        self._collection = Collection(self._session, 0, shared)
        self._lost: dict[str, set[int]] = {}
        self._settlement = Settlement(
            self._collection, blamed=self.blamed, out=self._out, lost=self._lost
        )

    # -- the outside -----------------------------------------------------------------------------

    @property
    def waiting(self) -> frozenset[int]:
        """Members whose message for this step has not come; none: the stage can be closed."""
        if self.stage is _Stage.UPLOAD:
            cohort = self._session.cohort
            return frozenset(cohort) - self._out - set(self._collection.uploaders)
        return self._settlement.waiting

    def awaits(self, member: int) -> bool:
        """Whether a member is among those that are waited for, without listing them all."""
        if self.stage is not _Stage.UPLOAD:
            return self._settlement.awaits(member)
        invited = member in self._session.places and member not in self._out
        return invited and not self._collection.holds(member)

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
        if self._settlement.result is None:
            raise StageError(f"no result in stage {self.stage.name}")
        return self._settlement.result

    def begin(self) -> dict[int, bytes]:
        """Open the round: the first message to everybody invited.

        Raises:
            StageError: It is open already.
            ThresholdNotMet: Fewer committee members than a sum needs have a sealing key.
        """
        if self.stage is not _Stage.IDLE:
            raise StageError(f"the round was opened already: it is in stage {self.stage.name}")
        checks.enough_answers(len(self._session.seats), self.params.needed)
        self.stage = _Stage.UPLOAD
        return openings(self._session)

    def _take(self, kind: Kind, sender: int, message: bytes) -> None:
        now = Kind.UPLOAD if self.stage <= _Stage.UPLOAD else self._settlement.awaited
        step = kind - 1 if self.stage is _Stage.DONE else kind
        checks.awaited(step, now, sender, self.awaits(sender), NAMES[kind])
        self._limits.check(kind, len(message) - HEADER_SIZE)
        if kind is Kind.UPLOAD:
            self._collection.take_upload(sender, message, 0)
        else:
            self._settlement.take(kind, sender, message)

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
        if self.stage in (_Stage.IDLE, _Stage.DONE):
            raise StageError(f"no stage to close: the round is in stage {self.stage.name}")
        try:
            if self.stage is _Stage.UPLOAD:
                self._lost["upload"] = set(self.waiting)
                messages = self._settlement.start()
            else:
                messages = self._settlement.close()
        except SecureAggError:
            self.stage = _Stage.DONE
            raise
        self.stage = self._settlement.stage
        return messages

    def __repr__(self) -> str:
        return f"Aggregator(round={self.context.round}, stage={self.stage.name})"


def openings(session: Session) -> dict[int, bytes]:
    """Return the OPENING message of a session, for everybody invited."""
    message = frame(Kind.OPENING, session.hash, Opening.of(session).body())
    return dict.fromkeys(session.cohort, message)


def open_session(
    *,
    roster: Roster,
    params: SecAggParams,
    context: RoundContext,
    cohort: Iterable[int],
    prekeys: Mapping[int, bytes],
    blamed: dict[int, str],
    shared: Shared | None,
) -> Session:
    """Draw the committee of a cohort and seat those whose sealing keys can be used.

    Args:
        roster: The list of members.
        params: Of the round.
        context: Of the round.
        cohort: Ids of those invited.
        prekeys: Signed sealing keys by member.
        blamed: Why, for each member whose sealing key is worthless; added to.
        shared: Work shared with a virtual cohort in this process.

    Raises:
        ParameterError: When the cohort is not ``params.n`` distinct members.
        RosterError: When one of them is not in the roster.
    """
    invited = sorted(cohort)
    if len(set(invited)) != len(invited) or len(invited) != params.n:
        raise ParameterError(
            f"a cohort of {len(set(invited))} distinct members: params.n is {params.n}"
        )
    for member in invited:
        checks.enrolled(roster, member)
    verified = Shared() if shared is None else shared  # a statement may be checked twice
    committee = draw_committee(invited, params.committee, context, roster.hash)

    def session(seated: list[bytes]) -> Session:
        return Session.build(
            params=params,
            context=context,
            roster=roster,
            cohort=invited,
            committee=committee,
            prekeys=seated,
            shared=verified,
        )

    try:
        return session([prekeys.get(member, b"") for member in committee])
    except SecureAggError:  # somebody's is worthless: whose?
        return session(_usable(committee, prekeys, roster, params, verified, blamed))


def _usable(
    committee: Iterable[int],
    prekeys: Mapping[int, bytes],
    roster: Roster,
    params: SecAggParams,
    verified: Shared,
    blamed: dict[int, str],
) -> list[bytes]:
    """Return the committee's sealing keys, empty where one is missing or cannot be used."""
    seated: list[bytes] = []
    seen: set[bytes] = set()
    for member in committee:
        prekey = prekeys.get(member, b"")
        if prekey:
            try:
                checks.suite(prekey_suite(prekey), params.suite, member)
                check_prekey(roster[member], prekey, verified)
                key = public_key(prekey)
                checks.distinct({key} - seen, 1, "sealing key")
                seen.add(key)
            except SecureAggError as error:
                blamed[member] = str(error)
                prekey = b""
        seated.append(prekey)
    return seated
