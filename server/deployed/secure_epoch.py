"""An epoch of secure aggregation as the coordinator runs it; sans-IO."""

from __future__ import annotations

from collections.abc import Mapping

from fedsys.privacy import Mechanism
from fedsys.wire import Assignment
from secure_agg import (
    EpochAggregator,
    Roster,
    SecAggParams,
    SumResult,
)
from server.rounds import RoundAborted, SecureSum, aborting

__all__ = ["SecureEpoch"]


class SecureEpoch(SecureSum[EpochAggregator]):
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
        self.left = buffers
        if params.dimension != mechanism.length:
            raise RoundAborted(
                f"secure aggregation: parameters of {params.dimension} coordinates, for "
                f"{mechanism.length}",
                nothing_summed=True,
            )
        with aborting(nothing_summed=True):
            aggregator = EpochAggregator(
                roster=roster,
                params=params,
                context=assignment.epoch_context(buffers),
                cohort=cohort,
                prekeys=prekeys,
                size=size,
            )
        super().__init__(aggregator)

    @property
    def number(self) -> int:
        """Of the epoch: its first buffer's."""
        return self.assignment.round

    @property
    def size(self) -> int:
        """Uploads that close a buffer."""
        return self._aggregator.size

    @property
    def full(self) -> bool:
        """Whether a buffer holds all its uploads."""
        return self._aggregator.full

    def ask(self, client: int) -> bytes:
        """The message that asks a member for an upload.

        Raises:
            SecureAggError: it is excluded, or its upload is in the buffer.
        """
        return self._aggregator.next_upload(client)

    def settle(self) -> Mapping[int, bytes]:
        """Begin to sum the full buffer: the shares, for the committee.

        Raises:
            RoundAborted: too few of its uploads are left.
        """
        self.left -= 1
        with aborting(nothing_summed=True):
            return self._aggregator.settle()

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
