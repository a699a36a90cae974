"""Buffered rounds on the server's side: many sums under one committee, each of K uploads.

In the manner of FedBuff (Nguyen et al., AISTATS 2022), members upload when they are ready, again
and again; K uploads close a buffer, whose sum the committee reveals while the next one fills. The
committee and its sealing keys last for the epoch, `RoundContext.buffers` sums. An upload is bound
to the epoch and to its sender's sequence number, not to a buffer: which buffer it enters is the
server's choice. That it enters one at most is not: a committee member endorses one set a buffer,
and only uploads that come after all that it endorsed of the same dealer before, so that two
certified sets share an honest endorser and are disjoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from secure_agg import checks
from secure_agg.aggregator import Committed, openings
from secure_agg.collection import Collection
from secure_agg.errors import LateMessage, ParameterError, SecureAggError, StageError
from secure_agg.messages import HEADER_SIZE, U32, Kind, frame
from secure_agg.params import SecAggParams
from secure_agg.result import SumResult
from secure_agg.roster import Roster
from secure_agg.session import RoundContext
from secure_agg.settlement import Settlement
from secure_agg.shared import Shared
from secure_agg.stages import AggregatorStage

__all__ = ["EpochAggregator"]


class EpochAggregator(Committed):
    """One epoch.

    Args:
        roster: The list of members.
        params: As for every member; ``min_included`` bounds each sum.
        context: As for every member, with ``buffers`` sums.
        cohort: Ids of those invited.
        prekeys: As for `Aggregator`.
        size: Uploads that close a buffer, K; from ``params.min_included`` to n.
        shared: Work shared with a virtual cohort in this process.

    Attributes:
        blamed: Why, for each member caught cheating so far.
        results: The sums so far, in order; None for one that was given up.

    Raises:
        ParameterError: On a size out of its range, a context of one buffer, or another cohort than
            the parameters are for.
        RosterError: When an invited member is not in the roster.
    """

    def __init__(
        self,
        *,
        roster: Roster,
        params: SecAggParams,
        context: RoundContext,
        cohort: Iterable[int],
        prekeys: Mapping[int, bytes],
        size: int,
        shared: Shared | None = None,
    ) -> None:
        if not params.min_included <= size <= params.n:
            raise ParameterError(
                f"size is {size}: from min_included, {params.min_included}, to n, {params.n}"
            )
        if context.buffers < 2:
            raise ParameterError("an epoch takes more than one buffer: use Aggregator for one")
        super().__init__(
            roster=roster,
            params=params,
            context=context,
            cohort=cohort,
            prekeys=prekeys,
            shared=shared,
        )
        self.size = size
        self.results: list[SumResult | None] = []
        self._asked: dict[int, int] = {}
        self._pending: set[int] = set()
        self._opened = 0
        self._filling = self._new_collection()
        self._full: deque[Collection] = deque()
        self._settlement: Settlement | None = None

    # -- the outside -----------------------------------------------------------------------------

    @property
    def stage(self) -> AggregatorStage:
        """What the committee is waited for; UPLOAD while no sum is being settled."""
        if self._settlement is not None:
            return self._settlement.stage
        if self.done:
            return AggregatorStage.DONE
        return AggregatorStage.UPLOAD if self._asked else AggregatorStage.IDLE

    @property
    def done(self) -> bool:
        """Whether every buffer of the epoch is settled."""
        return len(self.results) == self.context.buffers

    @property
    def full(self) -> bool:
        """Whether a buffer holds K uploads and waits to be settled."""
        return bool(self._full)

    @property
    def waiting(self) -> frozenset[int]:
        """Committee members whose message for the sum that is being settled has not come."""
        return frozenset() if self._settlement is None else self._settlement.waiting

    def awaits(self, member: int) -> bool:
        """Whether a member is among those that are waited for, without listing them all."""
        return self._settlement is not None and self._settlement.awaits(member)

    @property
    def uploading(self) -> frozenset[int]:
        """Members that were asked for an upload which has not come."""
        return frozenset(self._pending - self._out)

    def begin(self) -> dict[int, bytes]:
        """Open the epoch: the first message to everybody invited; it asks for an upload.

        Raises:
            StageError: It is open already.
            ThresholdNotMet: Fewer committee members than a sum needs have a sealing key.
        """
        if self.stage is not AggregatorStage.IDLE:
            raise StageError(f"the epoch was opened already: it is in stage {self.stage.name}")
        checks.enough_answers(len(self._session.seats), self.params.needed)
        self._asked = dict.fromkeys(self._session.cohort, 0)
        self._pending = set(self._session.cohort)
        return openings(self._session)

    def next_upload(self, member: int) -> bytes:
        """Return the NEXT message that asks a member for a further upload.

        The number is one that it was never asked for: an upload that was lost stays lost.

        Raises:
            StageError: The epoch is not open, the member's upload waits in the buffer that is being
                filled, or it is excluded.
        """
        if member not in self._asked or self.done:
            raise StageError(f"member {member} is not asked: the epoch is not open to it")
        if member in self._out or self._filling.holds(member):
            raise StageError(f"member {member} is not asked: it is excluded, or its upload waits")
        self._asked[member] += 1
        self._pending.add(member)
        return frame(Kind.NEXT, self._session.hash, U32.pack(self._asked[member]))

    def settle(self) -> Mapping[int, bytes]:
        """Begin to settle the oldest full buffer: the shares, for the committee.

        Raises:
            StageError: None is full, or one is being settled.
            ThresholdNotMet: Too few of its uploads are left.
        """
        if self._settlement is not None or not self._full:
            raise StageError("no buffer to settle: none is full, or one is being settled")
        lost: dict[str, set[int]] = {}
        collection = self._full.popleft()
        settlement = Settlement(collection, blamed=self.blamed, out=self._out, lost=lost)
        self._settlement = settlement
        return self._going_on(settlement, settlement.start)

    def close_stage(self) -> Mapping[int, bytes]:
        """Go on with the committee members that answered.

        Returns:
            Their next messages; none when the sum is there, at the end of `results`.

        Raises:
            StageError: No buffer is being settled.
            SecureAggError: This sum is given up, and counts as one of the epoch's; others go on.
        """
        if self._settlement is None:
            raise StageError("no stage to close: no buffer is being settled")
        return self._going_on(self._settlement, self._settlement.close)

    def __repr__(self) -> str:
        return f"EpochAggregator(epoch={self.context.round}, {len(self.results)} sums)"

    # -- the inside ------------------------------------------------------------------------------

    def _going_on(
        self, settlement: Settlement, step: Callable[[], Mapping[int, bytes]]
    ) -> Mapping[int, bytes]:
        try:
            messages = step()
        except SecureAggError:
            self._settlement = None
            self.results.append(None)
            raise
        if settlement.stage is AggregatorStage.DONE:
            self._settlement = None
            self.results.append(settlement.result)
        return messages

    def _take(self, kind: Kind, sender: int, message: bytes) -> None:
        settlement = self._settlement
        self._limits.check(kind, len(message) - HEADER_SIZE)
        if kind is Kind.UPLOAD:
            self._take_upload(sender, message)
        elif settlement is None:
            raise LateMessage(f"member {sender}: a {kind.name} message after its sum")
        else:
            expected = settlement.awaits(sender)
            checks.awaited(kind, settlement.awaited, sender, expected, kind.name)
            settlement.take(kind, sender, message)

    def _take_upload(self, sender: int, message: bytes) -> None:
        asked = sender in self._pending and sender not in self._out
        expected = asked and not self._filling.holds(sender)
        step = Kind.UPLOAD if self._opened <= self.context.buffers else Kind.UPLOAD - 1
        checks.awaited(step, Kind.UPLOAD, sender, expected, Kind.UPLOAD.name)
        self._filling.take_upload(sender, message, self._asked[sender])
        self._pending.discard(sender)
        if self._filling.count >= self.size:
            self._full.append(self._filling)
            self._filling = self._new_collection()

    def _new_collection(self) -> Collection:
        collection = Collection(self._session, self._opened, self._shared)
        self._opened += 1
        return collection
