"""One round of secure aggregation as the coordinator runs it; sans-IO."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fedsys.errors import FedsysError
from fedsys.privacy import Mechanism
from fedsys.privacy.quorum import GRAPH_BITS, live_members
from secure_agg import (
    Aggregator,
    AggregatorStage,
    Roster,
    SecAggParams,
    SecureAggError,
    Shared,
    SumResult,
)
from secure_agg.errors import ParameterError
from secure_agg.messages import HEADER_SIZE, Limits
from server.coordinator import OpenRound

__all__ = ["RoundAborted", "SecureRound", "round_params"]


_GRAPHS = 4
"""How often a round draws its graph anew because somebody fell silent before revealing a nonce."""

_ENVELOPE = 4096
"""More bytes than a host puts around a member's message."""


class RoundAborted(FedsysError):
    """A round ended without a model; what it reserved stays spent.

    Attributes:
        nothing_summed: it ended before anybody was asked to unmask, so that no sum ever existed.
        refusals: why, by client, for the operator's eyes; the message itself names no client.
    """

    def __init__(self, reason: str, *, nothing_summed: bool) -> None:
        super().__init__(reason)
        self.nothing_summed = nothing_summed
        self.refusals: dict[int, str] = {}


class SecureRound:
    """Parameters, aggregator and outcome of one open round.

    Args:
        open: the round, durably reserved.
        mechanism: whose vectors are summed.
        roster: the population.
        corrupt: fraction of the cohort that may collude.
        dropout: chance that a member is lost.
        shared: for virtual cohorts.

    Raises:
        RoundAborted: no parameters fit a cohort of this size.
    """

    def __init__(
        self,
        *,
        open: OpenRound,
        mechanism: Mechanism,
        roster: Roster,
        corrupt: float,
        dropout: float,
        shared: Shared | None = None,
    ) -> None:
        self.params = round_params(
            n=len(open.cohort),
            corrupt=corrupt,
            dropout=dropout,
            modulus_bits=mechanism.modulus_bits,
            min_survivors=mechanism.event.min_survivors,
        )
        limits = Limits(self.params, mechanism.length)
        self._largest_answer = _ENVELOPE + HEADER_SIZE + limits.largest_answer
        self._aggregator = Aggregator(
            roster=roster,
            params=self.params,
            context=open.assignment.context,
            length=mechanism.length,
            cohort=open.cohort,
            shared=shared,
        )

    @property
    def stage(self) -> str:
        """Name of the stage whose messages are awaited."""
        return self._aggregator.stage.name.lower()

    @property
    def waiting(self) -> frozenset[int]:
        """Who has not answered; empty: the stage can be closed before its deadline."""
        return self._aggregator.waiting

    @property
    def blamed(self) -> Mapping[int, str]:
        """Why, for each member caught cheating so far."""
        return self._aggregator.blamed

    @property
    def largest_answer(self) -> int:
        """Bytes that no member's message exceeds, with the envelope that its host puts it in."""
        return self._largest_answer

    @property
    def result(self) -> SumResult:
        """The sum, once `close_stage` returned nothing."""
        return self._aggregator.result

    def begin(self) -> dict[int, bytes]:
        """The first message to each member of the cohort."""
        return self._aggregator.begin()

    def receive(self, sender: int, message: bytes) -> None:
        """Take a message; a wrong one excludes its sender and raises SecureAggError.

        Raises:
            LateMessage: it came too late, or is of another session, and is discarded.
            SecureAggError: it is wrong.
        """
        self._aggregator.receive(sender, message)

    def close_stage(self) -> dict[int, bytes]:
        """Go on with whoever answered; nothing is returned once the round is over.

        Raises:
            RoundAborted: too few are left, or a dealer cheated.
        """
        nothing_summed = self._aggregator.stage < AggregatorStage.UNMASK
        try:
            return self._aggregator.close_stage()
        except SecureAggError as error:
            raise RoundAborted(
                f"secure aggregation: {error}", nothing_summed=nothing_summed
            ) from error


def round_params(
    *, n: int, corrupt: float, dropout: float, modulus_bits: int, min_survivors: int
) -> SecAggParams:
    """Parameters for a cohort of `n`, requiring `min_survivors` inputs in the sum.

    They withstand more losses than `dropout`, the chance that a member is lost, makes likely (see
    `fedsys.privacy.quorum`): a round given up shows, and delta pays for it. More inputs are
    required where `corrupt` of the cohort would otherwise be able to fill a sum alone.

    Raises:
        RoundAborted: nothing fits.
    """
    live = live_members(n, corrupt=corrupt, dropout=dropout)
    try:
        params = SecAggParams.derive(
            n=n,
            corrupt=corrupt,
            dropout=(n - live) / n if live else dropout,
            modulus_bits=modulus_bits,
            correctness_bits=GRAPH_BITS,
            attempts=_GRAPHS,
        )
        least = max(2, params.colluders + 1, min(min_survivors, n))
        return dataclasses.replace(params, min_alive=least)
    except ParameterError as error:
        raise RoundAborted(f"secure aggregation: {error}", nothing_summed=True) from error
