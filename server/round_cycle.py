"""One round of a deployed job from its reservation to its commit or abort."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from fedsys.errors import Cause
from fedsys.privacy import Entropy
from server.coordinator import OpenRound
from server.deployed_round import Deadlines, DeployedRound
from server.disk_work import to_its_end
from server.fleet import Event, Fleet
from server.home import Settings
from server.metrics import Metrics
from server.preparation import PreparedJob
from server.rounds import RoundAborted, SecureRound
from server.state import State

__all__ = ["Facilities", "Randomness", "RoundCycle"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Randomness:
    """Where the coordinator's secrets come from; anything but the default is for tests.

    Attributes:
        sampling: of a round's cohort.
        top_up: of the coordinator's own noise.
    """

    sampling: Callable[[int], Entropy] = lambda _round: os.urandom
    top_up: Callable[[int], Entropy] = lambda _round: os.urandom


@dataclass(frozen=True, kw_only=True, eq=False)
class Facilities:
    """What every job of a coordinator runs on.

    Attributes:
        state: the database; told of each stage before its messages are sent.
        fleet: the sessions.
        settings: how long to wait for whom.
        metrics: counted into.
        randomness: for tests.
    """

    state: State
    fleet: Fleet
    settings: Settings
    metrics: Metrics
    randomness: Randomness


class RoundCycle:
    """Runs a job's rounds, one at a time.

    Args:
        prepared: the job.
        facilities: what it runs on.
        consenting: clients that agreed, as of now; no others are invited.
        elsewhere: takes every event that is no round's business.
        refused: takes round, node, cause and reason of each refusal.
    """

    def __init__(
        self,
        prepared: PreparedJob,
        facilities: Facilities,
        *,
        consenting: Callable[[], frozenset[int]],
        elsewhere: Callable[[Event], None],
        refused: Callable[[int, int, Cause, str], None],
    ) -> None:
        self._id = prepared.id
        self._job = prepared.job
        self._roster = prepared.roster
        self._state = facilities.state
        self._fleet = facilities.fleet
        self._settings = facilities.settings
        self._metrics = facilities.metrics
        self._randomness = facilities.randomness
        self._consenting = consenting
        self._elsewhere = elsewhere
        self._refused = refused

    async def run(self) -> int:
        """The next round; how many inputs were summed, 0 where it gave no model.

        Raises:
            BudgetExceeded: nobody was asked.
            TrainingError: the model diverged.
        """
        coordinator = self._job.coordinator
        number = coordinator.reserved + 1
        open_ = await to_its_end(coordinator.begin_round, self._randomness.sampling(number))
        self._state.update_job(self._id, round=number, stage="reserved", spent=self._job.epsilon)
        round_: DeployedRound | None = None
        try:
            secure = self._secure(open_)
            round_ = self._conversation(open_, secure)
            nodes = [self._roster.nodes[client] for client in open_.cohort]
            self._fleet.allow(secure.largest_answer, nodes)
            try:
                await round_.run()
            finally:
                self._fleet.allow(0, ())
            result = secure.result
            if len(result.included) < coordinator.mechanism.event.min_survivors:
                raise RoundAborted(
                    "fewer clients than min_survivors were left", nothing_summed=False
                )
        except asyncio.CancelledError:
            before = round_ is None or secure.stage not in ("unmask", "done")
            coordinator.abort_round("the coordinator was shut down", before_unmask=before)
            raise
        except RoundAborted as abort:
            coordinator.abort_round(str(abort), before_unmask=abort.nothing_summed)
            _log.warning("job %s: round %d gave no model: %s", self._id, number, abort)
            self._metrics.round_aborted()
            if round_ is not None:
                self._dismiss(round_, number, committed=False)
            return 0
        await to_its_end(
            coordinator.finish_round,
            result.total,
            result.included,
            noise_entropy=self._randomness.top_up(number),
            diagnostics={
                "dropped": {stage: len(ids) for stage, ids in result.dropped.items()},
                "seconds": round_.report.seconds,
                "blamed": {str(client): why for client, why in result.blamed.items()},
            },
        )
        self._metrics.round_committed(round_.report.seconds)
        self._dismiss(round_, number, committed=True)
        return len(result.included)

    def _secure(self, open_: OpenRound) -> SecureRound:
        mechanism = self._job.coordinator.mechanism
        if len(open_.cohort) > mechanism.event.cap:
            raise RoundAborted("the cohort exceeds the cap", nothing_summed=True)
        if len(open_.cohort) < max(2, mechanism.event.min_survivors):
            raise RoundAborted("the cohort is below min_survivors", nothing_summed=True)
        aggregation = self._job.config.aggregation
        return SecureRound(
            open=open_,
            mechanism=mechanism,
            roster=self._roster.roster,
            corrupt=aggregation.corrupt,
            dropout=aggregation.dropout,
        )

    def _conversation(self, open_: OpenRound, secure: SecureRound) -> DeployedRound:
        settings = self._settings
        return DeployedRound(
            open=open_,
            secure=secure,
            members=self._roster.nodes,
            consenting=self._consenting(),
            fleet=self._fleet,
            deadlines=Deadlines(
                stage=settings.stage, training=settings.training, reconnect=settings.reconnect
            ),
            elsewhere=self._elsewhere,
            entered=self._enter,
        )

    def _enter(self, stage: str) -> None:
        self._state.update_job(self._id, stage=stage)

    def _dismiss(self, round_: DeployedRound, number: int, *, committed: bool) -> None:
        for client, (cause, reason) in round_.report.refusals.items():
            self._refused(number, self._roster.nodes[client], cause, reason)
        head = bytes.fromhex(self._job.ledger.head)
        round_.dismiss(committed=committed, ledger_head=head)
