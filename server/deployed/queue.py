"""The queue of a deployed coordinator: jobs are submitted, and run at once where they may.

`server.deployed.schedule` decides which start. What a job has spent is in its ledger; where it
stands, in the database. A coordinator that was killed at any point finds both when it starts again,
charges each round that it lost at its worst, and goes on: those that ran get their devices back
first, the others follow in order of submission.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from fedsys.bounded_toml import parse_toml
from fedsys.config import validate
from fedsys.errors import ConfigError, FedsysError
from fedsys.privacy import Entropy
from fedsys.run_folder import RunFolder
from server.asking import turns_of
from server.deployed.consent import Shortfall
from server.deployed.countersignatures import Countersignatures
from server.deployed.disk_space import is_full, space_again
from server.deployed.disk_work import all_ended, to_its_end
from server.deployed.fleet import Fleet, Part, Said
from server.deployed.job_model import ModelSource
from server.deployed.job_run import JobHeld, JobPaused, JobRun, JobYields
from server.deployed.preparation import AlreadyOver, FolderLost, Preparation, PreparedJob
from server.deployed.round import Facilities, Randomness
from server.deployed.schedule import Queued, decide
from server.deployed.spending import Spending, spent_by_failed
from server.home.enrollment import Registry
from server.home.folder import Home
from server.home.state import ACTIVE_JOB, PAUSED, JobRow, JobsSeen, State
from server.metrics import Metrics

__all__ = ["Deployment", "submit"]

_log = logging.getLogger(__name__)
_POLL = 0.5


def submit(state: State, text: str, *, start: str = "", entropy: Entropy = os.urandom) -> JobRow:
    """Queue a job; it is durable when this returns.

    Args:
        state: the coordinator's database.
        text: the configuration, as TOML.
        start: id of the job whose model it starts from; empty for none.
        entropy: of the job's id.

    Raises:
        ConfigError: the configuration does not hold.
    """
    try:
        tree: Mapping[str, Any] = parse_toml(text.encode())
    except ValueError as error:
        raise ConfigError(f"the configuration is not valid TOML: {error}") from None
    config = validate(tree)
    row = JobRow(
        id=entropy(6).hex(),
        name=config.job.name,
        config=text,
        status="submitted",
        submitted_at=time.time(),
        rounds=turns_of(config).rounds,
        start=start,
    )
    with state.transaction() as session:
        session.add(row)
    return row


@dataclass(kw_only=True, eq=False)
class _Work:
    """A job that runs.

    Attributes:
        task: runs it.
        nodes: that serve it.
    """

    task: asyncio.Task[None]
    nodes: frozenset[int]


@dataclass(kw_only=True)
class _Lacking:
    """A job that gave way.

    Attributes:
        reason: why it would be paused.
        shortfall: what it lacks.
        closes: until when it waits, by the fleet's clock.
        passed: whether another job has started since; until then it is not back in its place.
    """

    reason: str
    shortfall: Shortfall
    closes: float
    passed: bool = False


class _Overtaken(Exception):
    """A device joined while a job was prepared that would take it, and serves another already."""


class Deployment:
    """Runs the jobs in the database over the fleet, at most `Settings.jobs_at_once` at a time.

    Args:
        home: the coordinator's folder.
        state: its database.
        registry: its nodes.
        fleet: the sessions.
        models: makes the model of a configuration.
        metrics: counted into.
        randomness: for tests.
        now: seconds since 1970.

    Attributes:
        continuity: says why no job may run.
        wake: set when there is something to do.
    """

    def __init__(
        self,
        *,
        home: Home,
        state: State,
        registry: Registry,
        fleet: Fleet,
        models: ModelSource,
        metrics: Metrics | None = None,
        randomness: Randomness | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._home = home
        self._state = state
        self._jobs = JobsSeen(state, fleet.clock)
        self._fleet = fleet
        self.continuity = registry.continuity
        self._settings = home.settings()
        drawn = randomness or Randomness()
        self._preparation = Preparation(
            home=home,
            state=state,
            registry=registry,
            models=models,
            budget=self._settings.epsilon,
            entropy=drawn.names,
        )
        self._metrics = metrics or Metrics()
        self._spending = Spending(home, state)
        self._countersignatures = Countersignatures(state)
        self._facilities = Facilities(
            state=state,
            fleet=fleet,
            settings=self._settings,
            metrics=self._metrics,
            randomness=drawn,
            prekeys=registry.prekeys,
            now=now,
        )
        self._running: dict[str, _Work] = {}
        self._lacking: dict[str, _Lacking] = {}
        self._queue: list[Queued] = []
        """The others, as they stood when they were looked at last."""
        self._preparing = asyncio.Lock()
        """One job after the other sees what all before it promised to spend."""
        self.wake = asyncio.Event()

    @property
    def running(self) -> dict[str, frozenset[int]]:
        """The devices of each job that runs."""
        return {id: work.nodes for id, work in self._running.items()}

    async def submit(self, text: str, *, start: str = "") -> JobRow:
        """Check that a job could run with the devices and the budget that there are, and queue it.

        Raises:
            FedsysError: it could not, or the configuration does not hold; nothing is queued.
        """
        async with self._preparing:
            await to_its_end(self._preparation.check, text, start)
        return submit(self._state, text, start=start)

    async def serve(self) -> None:
        """Until cancelled; the rounds of all jobs are then over."""
        await to_its_end(self._show_spent)
        try:
            while True:
                try:
                    self._turn()
                except Exception as error:
                    if not is_full(error):
                        raise
                    await self._wait_for_space()
                await self._idle()
        except (Exception, asyncio.CancelledError):
            await all_ended([work.task for work in self._running.values()])
            raise

    def _turn(self) -> None:
        """See which jobs have ended, and have others start.

        Raises:
            FolderLost: a job began, and its folder is gone: for people; the job waits for them.
            Exception: what a job could not go on from, such as a full disk; it is not over.
        """
        self.take_late()
        self._metrics.connected(len(self._fleet.links))
        for id in [id for id, work in self._running.items() if work.task.done()]:
            self._running.pop(id).task.result()
        rows = {
            row.id: row
            for row in sorted(
                self._jobs.all(), key=lambda row: (row.status != "running", row.number)
            )
            if row.status in ACTIVE_JOB and row.id not in self._running
        }
        self._lacking = {id: each for id, each in self._lacking.items() if id in rows}
        held = self.continuity.held
        if held:
            self._jobs.forget()  # an operator recovers it in another process
            for row in rows.values():
                self._say(row, f"held: {held}")
            return
        for row in [row for row in rows.values() if row.cancelled]:
            self._start(rows.pop(row.id), frozenset())  # it ends, and needs no device for that
        for row in [row for row in rows.values() if self._gave_up(row)]:
            del rows[row.id]
        self._queue = [
            Queued(id=id, nodes=self._preparation.nodes_of(row), lacks=id in self._lacking)
            for id, row in rows.items()
        ]
        decision = decide(self._queue, self.running, at_once=self._settings.jobs_at_once)
        nodes = {each.id: each.nodes for each in self._queue}
        for id in decision.starts:
            self._start(rows[id], nodes[id])
        for id, lacking in self._lacking.items():
            lacking.passed |= any(each != id for each in decision.starts)
        for id, others in decision.waits.items():
            if id not in self._lacking:  # its stage says what it lacks
                self._say(rows[id], f"queued: {_why(others)}")

    def _start(self, row: JobRow, nodes: frozenset[int]) -> None:
        self._say(row, "")
        task = asyncio.create_task(self._work(row))
        task.add_done_callback(lambda _: self.wake.set())
        self._running[row.id] = _Work(task=task, nodes=nodes)

    async def _work(self, row: JobRow) -> None:
        """A job to its end, or as far as it comes now."""
        try:
            status, reason = await self._run(row)
        except JobYields as short:
            _log.info("job %s: waits, while another job runs", row.id)
            self._state.update_job(row.id, status="waiting")
            self._lacking[row.id] = _Lacking(
                reason=str(short), shortfall=short.shortfall, closes=short.closes
            )
            return
        except _Overtaken:
            return
        except JobHeld as held:
            _log.error("job %s: is held: %s", row.id, held)
            return
        except JobPaused as paused:
            self._pause(row, str(paused))
            return
        except FolderLost:
            raise
        except Exception as error:
            if is_full(error):
                raise
            status, reason = "failed", str(error)
            if not isinstance(error, FedsysError):
                _log.exception("job %s", row.id)
                reason = "an unexpected error; see the coordinator's log"
        self._end(row, status, reason)

    async def _wait_for_space(self) -> None:
        """Everything that jobs have spent is on the disk; they are taken up again from there."""
        rows = [
            row
            for row in self._state.jobs()
            if row.status in ACTIVE_JOB and row.started_at and row.id not in self._running
        ]
        what = ", ".join(f"job {row.id} pauses at round {row.round}" for row in rows)
        _log.error(
            "no space left on %s: %s when there is",
            self._home.path,
            f"{what}, and goes on" if rows else "goes on",
        )
        await space_again(self._home.path)
        _log.warning("there is space on %s again", self._home.path)

    def _gave_up(self, row: JobRow) -> bool:
        """Whether a job that gave way is paused now; one that lacks nothing any longer is again
        like any other."""
        lacking = self._lacking.get(row.id)
        if lacking is None:
            return False
        if lacking.passed and lacking.shortfall.met(self._fleet.links):
            del self._lacking[row.id]
            return False
        if self._fleet.clock() <= lacking.closes:
            return False
        del self._lacking[row.id]
        self._pause(row, lacking.reason)
        return True

    def _could_run_another(self, id: str) -> bool:
        """Whether a job that waits for devices is in the way of one that has enough."""
        running = {other: nodes for other, nodes in self.running.items() if other != id}
        others = [each for each in self._queue if not each.lacks and each.id != id]
        there = self._fleet.links.keys()
        starts = decide(others, running, at_once=self._settings.jobs_at_once).starts
        rows = [self._state.job(each) for each in starts]
        return any(not row.cancelled and self._preparation.enough(row, there) for row in rows)

    def _pause(self, row: JobRow, reason: str) -> None:
        self._state.update_job(row.id, status=PAUSED, reason=reason[:2000], stage="")
        self._metrics.job_ended(row.id, PAUSED)
        _log.error(
            "job %s: paused: %s; nothing is lost: `fedsys job resume %s %s` goes on",
            row.id,
            reason,
            self._home.path,
            row.id,
        )

    def _say(self, row: JobRow, stage: str) -> None:
        """Show why a job does not run; what its last round left there is kept."""
        old = row.stage
        if old != stage and (stage or old.startswith(("held: ", "queued: ", "waiting: "))):
            self._state.update_job(row.id, stage=stage)

    def take_late(self) -> None:
        """Of devices that serve no job now, countersignatures count, and nothing else does."""
        while not self._fleet.events.empty():
            event = self._fleet.events.get_nowait()
            if isinstance(event, Said) and event.message.HasField("countersignature"):
                self._countersignatures.take(event.node, event.message.countersignature)

    async def _idle(self) -> None:
        self.wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL):  # `wait_for` may swallow a cancellation
                await self.wake.wait()

    async def _run(self, row: JobRow) -> tuple[str, str]:
        async with self._preparing:
            prepared = await self._prepared(row)
        if isinstance(prepared, AlreadyOver):
            return prepared.status, ""
        part = self._fleet.part(self._claimed(prepared, row))
        try:
            return await self._begun(prepared, part).run()
        finally:
            self._fleet.release(part)

    async def _prepared(self, row: JobRow) -> PreparedJob | AlreadyOver:
        found: list[PreparedJob | AlreadyOver] = []
        try:
            await to_its_end(lambda: found.append(self._preparation.prepare(row)))
        except asyncio.CancelledError:
            for each in found:
                if isinstance(each, PreparedJob):
                    with each.job.ledger:  # nobody will go on with it
                        raise
            raise
        return found[0]

    def _begun(self, prepared: PreparedJob, part: Part) -> JobRun:
        lacking = self._lacking.pop(prepared.id, None)
        with ExitStack() as held:
            held.enter_context(prepared.job.ledger)
            run = JobRun(
                prepared,
                dataclasses.replace(self._facilities, fleet=part),
                spending=self._spending,
                countersignatures=self._countersignatures,
                held=lambda: self.continuity.held,
                cancelled=lambda: self._jobs.cancelled(prepared.id),
                closes=None if lacking is None else lacking.closes,
                gives_way=lambda: self._could_run_another(prepared.id),
            )
            held.pop_all()
        return run

    def _claimed(self, prepared: PreparedJob, row: JobRow) -> frozenset[int]:
        """The devices of a job that begins now; none for one that is ended.

        Raises:
            _Overtaken: one of them serves another job.
        """
        nodes = frozenset() if row.cancelled else frozenset(prepared.roster.nodes)
        others = [work.nodes for id, work in self._running.items() if id != row.id]
        if any(nodes & each for each in others):
            with prepared.job.ledger:
                raise _Overtaken
        self._running[row.id].nodes = nodes
        return nodes

    def _end(self, row: JobRow, status: str, reason: str) -> None:
        changed: dict[str, Any] = {"status": status, "reason": reason[:2000], "stage": ""}
        failed = status == "failed"
        if failed:  # in the middle of a round, perhaps
            folder = RunFolder(self._home.jobs / row.id)
            changed["spent"] = spent_by_failed(self._state.job(row.id), folder)
        self._state.update_job(row.id, **changed, ended_at=self._now())
        self._metrics.job_ended(row.id, status)
        self._show_spent()
        _log.log(logging.ERROR if failed else logging.INFO, "job %s: %s %s", row.id, status, reason)

    def _show_spent(self) -> None:
        self._metrics.spent(self._spending.population, self._spending.total())


def _why(others: tuple[str, ...]) -> str:
    """Why a job waits, for its operator."""
    if not others:
        return "as many jobs run as jobs_at_once in coordinator.toml allows"
    many = "s" if len(others) > 1 else ""
    return f"its devices serve job{many} {', '.join(others)} first"
