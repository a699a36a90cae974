"""The coordinator of a schedule: the product's `Job`, `Coordinator` and `SecureRound`."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsys.config import Config, validate
from fedsys.durable import write_atomically
from fedsys.errors import BudgetExceeded, LedgerClosed
from fedsys.privacy import PrivacyPlan, Signer
from secure_agg import Roster, SecureAggError, Shared
from server.checkpoint import sha256_of_weights
from server.coordinator import OpenRound, SumRefused
from server.job import Job, JobFacts
from server.job_beginning import JobSpec, restore_job, start_job
from server.job_settings import plan_for
from server.rounds import RoundAborted, SecureRound
from server.run_folder import RunFolder
from simulations.deterministic.agent import Ask
from simulations.deterministic.dice import Dice
from simulations.deterministic.invariants import Witness, recorded
from simulations.deterministic.schedule import DIMENSION, Schedule
from simulations.deterministic.storage import Disk

__all__ = ["CoordinatorParty", "JobDescription", "describe"]

RETRY = 1.5
DEADLINE = 6.0

_FACTS = JobFacts(
    population_known="simulated: exact", roster="simulated", randomness="a schedule's dice"
)


@dataclass(frozen=True, kw_only=True)
class JobDescription:
    """What the coordinator is asked to run."""

    config: Config
    plan: PrivacyPlan
    weights: NDArray[np.float32]


def describe(schedule: Schedule) -> JobDescription:
    """The job of a schedule; descriptions of like jobs are made once."""
    return _describe(
        schedule.population,
        schedule.expected,
        schedule.rounds,
        schedule.dropout,
        schedule.corrupt,
        schedule.budget,
    )


@functools.cache
def _describe(
    population: int, expected: int, rounds: int, dropout: float, corrupt: float, budget: bool
) -> JobDescription:
    # delta is absurd for people, and what lets a population this small abort as often as it does
    privacy = {"noise_multiplier": 1.0, "delta": 0.95, "clip": 1.0}
    if budget:
        privacy["epsilon"] = 0.4
    config = validate(
        {
            "job": {"name": "schedule"},
            "population": {"clients": population},
            "cohort": {"expected": expected, "cap": population, "min_survivors": 1},
            "rounds": {"count": rounds},
            "privacy": privacy,
            "aggregation": {"dropout": dropout, "corrupt": corrupt},
        }
    )
    # a plan that pays for a missed quorum exists for no cohort this small: it is made as if sums
    # came about without one, and what is charged for a round does not depend on that
    ideal = config.aggregation.model_copy(update={"protocol": "ideal"})
    unpaid = config.model_copy(update={"aggregation": ideal})
    return JobDescription(
        config=config,
        plan=plan_for(unpaid, population=population, layers=(DIMENSION,)),
        weights=np.zeros(DIMENSION, dtype=np.float32),
    )


Send = Callable[[int, Ask], None]
Later = Callable[[float, Callable[[], None]], None]


class CoordinatorParty:
    """The coordinator over its restarts; `boot` is what its process does when it starts.

    Args:
        job: to be run.
        disk: keeps the run's folder and the signing key.
        roster: the population.
        dice: for its secrets.
        shared: work shared within this process.
        witness: sees what it does.
        send: to an agent.
        later: let something happen in this process after so many seconds, if it still lives.
        ended: called once the job is over.
    """

    def __init__(
        self,
        *,
        job: JobDescription,
        disk: Disk,
        roster: Roster,
        dice: Dice,
        shared: Shared,
        witness: Witness,
        send: Send,
        later: Later,
        ended: Callable[[str], None],
    ) -> None:
        self.disk = disk
        self.folder = RunFolder(disk.root / "job")
        self._description = job
        self._roster = roster
        self._dice = dice
        self._shared = shared
        self._witness = witness
        self._send = send
        self._later = later
        self._ended = ended
        self._job: Job | None = None
        self._open: OpenRound | None = None
        self._sum: SecureRound | None = None
        self._outbox: dict[int, bytes] = {}
        self._stage = 0

    def boot(self) -> None:
        """A fresh process: take the job up where the disk has it, or start it."""
        self._job = self._open = self._sum = None
        self._outbox = {}
        signer = Signer.load_or_create(self.disk.root / "home", entropy=self._dice.bytes)
        description, folder = self._description, self.folder
        if not folder.begun:
            shutil.rmtree(folder.path, ignore_errors=True)
            RunFolder.create(folder.path)
            self._job = start_job(folder, self._spec(description.config, signer))
        else:
            self._witness.survives(recorded(folder.ledger, folder.private))
            try:
                self._job = restore_job(folder, self._spec(folder.read_config(), signer))
            except LedgerClosed as closed:
                self._ended(closed.reason)
                return
            self._witness.restarted(self._job.coordinator.weights, self._job.ledger.view)
        self._later(0.0, self._next_round)

    def _spec(self, config: Config, signer: Signer) -> JobSpec:
        return JobSpec(
            config=config,
            plan=self._description.plan,
            weights=self._description.weights,
            facts=_FACTS,
            signer=signer,
            entropy=self._dice.bytes,
        )

    def take(self, round: int, agent: int, reply: bytes) -> str:
        """A reply arrives; says what became of it, for the trace."""
        if self._open is None or self._sum is None or round != self._open.number:
            return "of a round that is over"
        said = "taken"
        try:
            self._sum.receive(agent, reply)
        except SecureAggError as error:
            said = f"{type(error).__name__}: {error}"
        for blamed, why in self._sum.blamed.items():
            self._witness.blames(blamed, why)
        if not self._sum.waiting:
            self._close_stage(self._stage)
        return said

    def _next_round(self) -> None:
        job = self._job
        if job is None:
            return
        coordinator = job.coordinator
        if coordinator.reserved >= job.plan.rounds:
            self._end("completed")
            return
        try:
            open_ = self._open = coordinator.begin_round(self._dice.bytes)
        except BudgetExceeded:
            self._end("budget-exhausted")
            return
        self._witness.drew(open_.number)
        aggregation = job.config.aggregation
        try:
            self._sum = SecureRound(
                open=open_,
                mechanism=coordinator.mechanism,
                roster=self._roster,
                corrupt=aggregation.corrupt,
                dropout=aggregation.dropout,
                shared=self._shared,
            )
        except RoundAborted as abort:
            self._abort(abort)
            return
        self._open_stage(self._sum.begin())

    def _open_stage(self, messages: dict[int, bytes]) -> None:
        self._stage += 1
        stage = self._stage
        self._outbox = messages
        self._offer(stage)
        self._later(DEADLINE, lambda: self._close_stage(stage))

    def _offer(self, stage: int) -> None:
        """Send, and send again, what is not answered yet."""
        if stage != self._stage or self._sum is None or self._open is None:
            return
        ledger = self.disk.durable(self.folder.ledger)
        assignment = self._open.assignment
        for agent in sorted(self._sum.waiting):
            message = self._outbox[agent]
            self._witness.asks(assignment, self._open.cohort, message, ledger)
            self._send(agent, Ask(assignment=assignment, params=self._sum.params, message=message))
        self._later(RETRY, lambda: self._offer(stage))

    def _close_stage(self, stage: int) -> None:
        if stage != self._stage or self._sum is None:
            return
        try:
            messages = self._sum.close_stage()
        except RoundAborted as abort:
            self._abort(abort)
            return
        if messages:
            self._open_stage(messages)
        else:
            self._complete()

    def _complete(self) -> None:
        job, open_, sum_ = self._job, self._open, self._sum
        if job is None or open_ is None or sum_ is None:
            return
        self._stage += 1
        result = sum_.result
        self._witness.sums(open_.number, result)
        with contextlib.suppress(SumRefused):  # then the round is recorded as aborted
            job.coordinator.finish_round(
                result.total,
                result.included,
                noise_entropy=self._dice.bytes,
                diagnostics={"dropped": {name: len(ids) for name, ids in result.dropped.items()}},
            )
        self._over()

    def _abort(self, abort: RoundAborted) -> None:
        if self._job is not None:
            self._stage += 1
            self._job.coordinator.abort_round(str(abort), before_unmask=abort.nothing_summed)
            self._over()

    def _over(self) -> None:
        self._open = self._sum = None
        self._outbox = {}
        self._later(0.1, self._next_round)

    def _end(self, status: str) -> None:
        job = self._job
        if job is None:
            return
        weights = job.coordinator.weights
        write_atomically(self.folder.model, weights.tobytes())
        job.close(status, model_sha256=sha256_of_weights(weights))
        self._job = None
        self._ended(status)
