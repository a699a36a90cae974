"""Secure aggregation as the coordinator runs it, a round or an epoch; sans-IO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

from fedsys.errors import FedsysError
from fedsys.privacy import Mechanism, PrivacyPlan
from fedsys.wire.round_params import round_params
from secure_agg import (
    Aggregator,
    AggregatorStage,
    EpochAggregator,
    Roster,
    SecAggParams,
    SecureAggError,
    Shared,
    SumResult,
)
from secure_agg.messages import Limits
from server.coordinator import OpenRound

__all__ = ["RoundAborted", "SecureRound", "SecureSum", "aborting", "params_for"]


_ENVELOPE = 4096
"""Bytes that a host's envelope around a member's message never exceeds."""


class RoundAborted(FedsysError):
    """A round ended without a model; what it reserved stays spent.

    Attributes:
        nothing_summed: Whether it ended before a certificate was sent, so that no sum ever existed.
        refusals: Reasons by client, for the operator only; the message itself names no client.
    """

    def __init__(self, reason: str, *, nothing_summed: bool) -> None:
        super().__init__(reason)
        self.nothing_summed = nothing_summed
        self.refusals: dict[int, str] = {}


def params_for(
    plan: PrivacyPlan, mechanism: Mechanism, roster: Roster, n: int, *, suite: int = 1
) -> SecAggParams:
    """The parameters of a round with a cohort of `n`, as each of its devices also computes them.

    Raises:
        RoundAborted: No parameters fit a cohort of this size.
    """
    with aborting(nothing_summed=True):
        return round_params(
            plan,
            n,
            length=mechanism.length,
            modulus_bits=mechanism.modulus_bits,
            colluders=roster.corrupt or 0,
            suite=suite,
        )


_Of = TypeVar("_Of", Aggregator, EpochAggregator)


class SecureSum(Generic[_Of]):
    """A round or an epoch of secure aggregation, as its host drives it.

    Args:
        aggregator: The server's side of the protocol.
    """

    def __init__(self, aggregator: _Of) -> None:
        self._aggregator: _Of = aggregator
        self.params = aggregator.params

    @property
    def stage(self) -> str:
        """Name of the stage whose messages are awaited."""
        return self._aggregator.stage.name.lower()

    @property
    def waiting(self) -> frozenset[int]:
        """Members that have not answered; if empty, the stage can close before its deadline."""
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
        """Whether no certificate was sent yet for the sum in hand; without one, no member answers
        with shares. An epoch whose sum is over says so of the next one."""
        return self._aggregator.stage.value < AggregatorStage.ANSWER.value

    @property
    def largest_answer(self) -> int:
        """Bytes that no member's message exceeds, its host's envelope included."""
        return _ENVELOPE + Limits(self.params).largest_upload

    def begin(self) -> Mapping[int, bytes]:
        """The first message to each member of the cohort.

        Raises:
            RoundAborted: Fewer committee members have a sealing key than a sum needs.
        """
        with aborting(nothing_summed=True):
            return self._aggregator.begin()

    def receive(self, sender: int, message: bytes) -> None:
        """Process a message; an invalid one excludes its sender.

        Raises:
            LateMessage: The message came too late or belongs to another session; it is discarded.
            StageError: It is not expected now, and is discarded.
            SecureAggError: The message is invalid.
        """
        self._aggregator.receive(sender, message)

    def close_stage(self) -> Mapping[int, bytes]:
        """Continue with the members that answered; returns the next messages, none at the end.

        Messages that hold shares are assembled when they are looked up.

        Raises:
            RoundAborted: Too few members are left, or the sum does not open.
        """
        with aborting(nothing_summed=self.nothing_summed):
            return self._aggregator.close_stage()


@contextmanager
def aborting(*, nothing_summed: bool) -> Iterator[None]:
    """Turn an error of secure aggregation into the end of its round.

    Args:
        nothing_summed: Whether no certificate was sent yet.
    """
    try:
        yield
    except SecureAggError as error:
        raise RoundAborted(f"secure aggregation: {error}", nothing_summed=nothing_summed) from error


class SecureRound(SecureSum[Aggregator]):
    """Aggregator and outcome of one open round.

    Args:
        open: The round, durably reserved.
        mechanism: Encodes the vectors that are summed.
        roster: Signed list of the population's members.
        params: Parameters of secure aggregation; see `params_for`.
        prekeys: A signed single-use sealing key of each committee member; a member without one
            counts as lost.
        shared: Work shared among simulated members in one process.

    Raises:
        RoundAborted: The parameters do not fit this cohort or mechanism.
    """

    def __init__(
        self,
        *,
        open: OpenRound,
        mechanism: Mechanism,
        roster: Roster,
        params: SecAggParams,
        prekeys: Mapping[int, bytes],
        shared: Shared | None = None,
    ) -> None:
        if (params.n, params.dimension) != (len(open.cohort), mechanism.length):
            raise RoundAborted(
                f"secure aggregation: parameters of {params.n} members and {params.dimension} "
                f"coordinates, for {len(open.cohort)} and {mechanism.length}",
                nothing_summed=True,
            )
        super().__init__(
            Aggregator(
                roster=roster,
                params=params,
                context=open.assignment.context,
                cohort=open.cohort,
                prekeys=prekeys,
                shared=shared,
            )
        )

    @property
    def result(self) -> SumResult:
        """The sum, once `close_stage` returned nothing."""
        return self._aggregator.result
