"""An epoch of secure aggregation as the coordinator runs it; sans-IO."""

from __future__ import annotations

from collections.abc import Mapping

from fedsys.privacy import Mechanism
from fedsys.wire import Assignment
from secure_agg import (
    AggregatorStage,
    EpochAggregator,
    Roster,
    SecAggParams,
    SecureAggError,
    SumResult,
)
from secure_agg.messages import Limits
from server.rounds import ENVELOPE, RoundAborted

__all__ = ["SecureEpoch"]


class SecureEpoch:
    """The aggregator of one epoch.

    Every upload is asked for by a message of its own, with a number that was never used before. The
    one that an epoch's opening would allow is not: nobody may upload before a buffer is there.

    Args:
        assignment: of the epoch's first buffer.
        cohort: increasing ids of those invited.
        mechanism: whose vectors are summed.
        roster: the population.
        params: of secure aggregation; see `server.rounds.params_for`.
        prekeys: a signed single-use sealing key of each committee member; a member without one
            counts as lost.
        size: uploads that close a buffer.
        buffers: of the epoch.

    Raises:
        RoundAborted: the parameters do not fit this cohort, mechanism or size of a buffer.
    """

    def __init__(
        self,
        *,
        assignment: Assignment,
        cohort: tuple[int, ...],
        mechanism: Mechanism,
        roster: Roster,
        params: SecAggParams,
        prekeys: Mapping[int, bytes],
        size: int,
        buffers: int,
    ) -> None:
        self.assignment = assignment
        self.cohort = cohort
        self.params = params
        self.left = buffers
        if params.dimension != mechanism.length:
            raise RoundAborted(
                f"secure aggregation: parameters of {params.dimension} coordinates, for "
                f"{mechanism.length}",
                nothing_summed=True,
            )
        try:
            self._aggregator = EpochAggregator(
                roster=roster,
                params=params,
                context=assignment.epoch_context(buffers),
                cohort=cohort,
                prekeys=prekeys,
                size=size,
            )
        except SecureAggError as error:
            raise RoundAborted(f"secure aggregation: {error}", nothing_summed=True) from error

    @property
    def number(self) -> int:
        """Of the epoch: its first buffer's."""
        return self.assignment.round

    @property
    def size(self) -> int:
        """Uploads that close a buffer."""
        return self._aggregator.size

    @property
    def stage(self) -> str:
        """Name of the stage whose messages are awaited."""
        return self._aggregator.stage.name.lower()

    @property
    def full(self) -> bool:
        """Whether a buffer holds all its uploads."""
        return self._aggregator.full

    @property
    def waiting(self) -> frozenset[int]:
        """Committee members that have not answered."""
        return self._aggregator.waiting

    def awaits(self, client: int) -> bool:
        """Whether a member is among `waiting`, without listing them all."""
        return self._aggregator.awaits(client)

    @property
    def blamed(self) -> Mapping[int, str]:
        """Why, for each member caught cheating so far."""
        return self._aggregator.blamed

    @property
    def nothing_summed(self) -> bool:
        """Whether no certificate was sent for the buffer in hand."""
        return self._aggregator.stage.value < AggregatorStage.ANSWER.value

    @property
    def largest_answer(self) -> int:
        """Bytes that no member's message exceeds, with the envelope that its host puts it in."""
        return ENVELOPE + Limits(self.params).largest_upload

    def begin(self) -> Mapping[int, bytes]:
        """The opening, for each member of the cohort.

        Raises:
            RoundAborted: fewer committee members than a sum needs have a sealing key.
        """
        try:
            return self._aggregator.begin()
        except SecureAggError as error:
            raise RoundAborted(f"secure aggregation: {error}", nothing_summed=True) from error

    def ask(self, client: int) -> bytes:
        """The message that asks a member for an upload.

        Raises:
            SecureAggError: it is excluded, or its upload is in the buffer.
        """
        return self._aggregator.next_upload(client)

    def receive(self, sender: int, message: bytes) -> None:
        """Take a message; a wrong one excludes its sender and raises SecureAggError.

        Raises:
            LateMessage: it came too late, or is of another session, and is discarded.
            StageError: it is not expected now, and is discarded.
            SecureAggError: it is wrong.
        """
        self._aggregator.receive(sender, message)

    def settle(self) -> Mapping[int, bytes]:
        """Begin to sum the full buffer: the shares, for the committee.

        Raises:
            RoundAborted: too few of its uploads are left.
        """
        self.left -= 1
        try:
            return self._aggregator.settle()
        except SecureAggError as error:
            raise RoundAborted(f"secure aggregation: {error}", nothing_summed=True) from error

    def close_stage(self) -> Mapping[int, bytes]:
        """Go on with those who answered; nothing is returned once the sum is there.

        Raises:
            RoundAborted: too few are left, or the sum does not open.
        """
        nothing_summed = self.nothing_summed
        try:
            return self._aggregator.close_stage()
        except SecureAggError as error:
            raise RoundAborted(
                f"secure aggregation: {error}", nothing_summed=nothing_summed
            ) from error

    @property
    def result(self) -> SumResult:
        """The newest sum, once `close_stage` returned nothing.

        Raises:
            RoundAborted: there is none.
        """
        results = self._aggregator.results
        if not results or results[-1] is None:
            raise RoundAborted("secure aggregation: the buffer has no sum", nothing_summed=False)
        return results[-1]
