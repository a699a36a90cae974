"""Buffered sums by the real protocol: an epoch of virtual clients under one committee and its keys.

A client's upload is made only when its buffer is summed, in order of arrival; the model that it
trained from was fixed when it was invited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from secure_agg import (
    AggregatorStage,
    EpochAggregator,
    Member,
    RoundContext,
    SealingKeys,
    SecAggParams,
    SecureAggError,
    Shared,
    SumResult,
    draw_committee,
)
from secure_agg.errors import InputError
from server.rounds import RoundAborted
from simulations.faults import UPLOAD, FaultPlan
from simulations.population import Population
from simulations.randomness import Randomness

__all__ = ["SecureEpoch"]


class SecureEpoch:
    """One epoch, its server and its clients.

    Args:
        context: The epoch's job, first round and model, which members check.
        cohort: Increasing ids of the clients invited.
        params: Parameters of secure aggregation.
        size: Number of uploads that closes a buffer.
        population: The virtual clients.
        faults: Decides which committee members are away when.
        randomness: Source of keys.

    Attributes:
        refusals: Reason for each client that refused to go on, or was refused.

    Raises:
        RoundAborted: Too few committee members have a sealing key.
    """

    def __init__(
        self,
        *,
        context: RoundContext,
        cohort: Sequence[int],
        params: SecAggParams,
        size: int,
        population: Population,
        faults: FaultPlan,
        randomness: Randomness,
    ) -> None:
        roster, shared = population.roster, Shared()
        self.refusals: dict[int, str] = {}
        self._job = context.job_hash
        self._faults = faults
        self._committee = draw_committee(cohort, params.committee, context, roster.hash)
        self._sealing: dict[int, SealingKeys] = {}
        self._members: dict[int, Member] = {}
        for id in cohort:
            identity, entropy = population.identity(id), randomness.keys(context.round, id)
            self._sealing[id] = SealingKeys(identity, suite=params.suite, entropy=entropy)
            self._members[id] = Member(
                identity=identity,
                id=id,
                roster=roster,
                params=params,
                context=context,
                sealing=self._sealing[id],
                entropy=entropy,
                shared=shared,
            )
        self._server = EpochAggregator(
            roster=roster,
            params=params,
            context=context,
            cohort=cohort,
            prekeys={id: self._sealing[id].issue(1)[0] for id in self._committee},
            size=size,
            shared=shared,
        )
        try:
            self._openings: dict[int, bytes] = dict(self._server.begin())
        except SecureAggError as error:
            raise RoundAborted(f"secure aggregation: {error}", nothing_summed=True) from error
        for id in self._committee:
            with suppress(InputError):  # raised only because the member has no vector yet
                self._members[id].handle(self._openings[id])

    def upload(self, client: int, vector: NDArray[Any]) -> None:
        """Send a client's next upload: `vector` is (length,), mod 2^b."""
        member = self._members[client]
        member.provide(vector)
        opening = self._openings.pop(client, None)
        request = self._server.next_upload(client) if opening is None else opening
        self._server.receive(client, member.handle(request))

    def settle(self, buffer: int, now: float) -> SumResult:
        """The sum of the full buffer.

        Args:
            buffer: The buffer's number in the job.
            now: Simulated seconds since the job began.

        Raises:
            RoundAborted: Too few members are left, or the sum does not open; the epoch goes on.
        """
        server, nothing_summed = self._server, True
        lost = {id: self._faults.lost(round=buffer, client=id, now=now) for id in self._committee}
        gone = {id for id, at in lost.items() if at == UPLOAD}
        try:
            messages: Mapping[int, bytes] = server.settle()
            while messages:
                stage = server.stage.name.lower()
                gone |= {id for id, at in lost.items() if at == stage}
                for id in [id for id in messages if id not in gone]:
                    self._answer(id, messages[id], stage)
                nothing_summed = server.stage.value < AggregatorStage.ANSWER.value
                messages = server.close_stage()
        except SecureAggError as error:
            abort = RoundAborted(f"secure aggregation: {error}", nothing_summed=nothing_summed)
            abort.refusals = dict(self.refusals)
            raise abort from error
        result = server.results[-1]
        if result is None:
            raise RoundAborted("secure aggregation: the buffer has no sum", nothing_summed=False)
        return result

    def _answer(self, id: int, message: bytes, stage: str) -> None:
        try:
            self._server.receive(id, self._members[id].handle(message))
        except SecureAggError as refusal:
            self.refusals[id] = f"{stage}: {refusal}"

    def erase(self) -> None:
        """End the epoch: erase every key that could open one of its uploads."""
        for sealing in self._sealing.values():
            sealing.forget(self._job)
        self._members.clear()
