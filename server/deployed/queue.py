"""The queue of a deployed coordinator: jobs are submitted, and run one after the other.

What a job has spent is in its ledger; where it stands, in the database. A coordinator that was
killed at any point finds both when it starts again, charges the round that it lost at its worst,
and goes on with the next.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from fedsys.bounded_toml import parse_toml
from fedsys.config import validate
from fedsys.errors import ConfigError, FedsysError
from fedsys.privacy import Entropy
from server.asking import turns_of
from server.deployed.countersignatures import Countersignatures
from server.deployed.disk_space import is_full, space_again
from server.deployed.disk_work import to_its_end
from server.deployed.fleet import Fleet, Said
from server.deployed.job_model import ModelSource
from server.deployed.job_run import JobHeld, JobPaused, JobRun, JobYields
from server.deployed.preparation import AlreadyOver, FolderLost, Preparation
from server.deployed.round import Facilities, Randomness
from server.deployed.spending import Spending
from server.home.enrollment import Registry
from server.home.folder import Home
from server.home.state import ACTIVE_JOB, PAUSED, JobRow, State
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


class Deployment:
    """Runs the jobs in the database over the fleet.

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
        self._waiting: dict[str, float] = {}
        """Jobs that gave way, and until when they wait for devices."""
        self.wake = asyncio.Event()

    async def submit(self, text: str, *, start: str = "") -> JobRow:
        """Check that a job could run with the devices and the budget that there are, and queue it.

        Raises:
            FedsysError: it could not, or the configuration does not hold; nothing is queued.
        """
        await to_its_end(self._preparation.check, text, start)
        return submit(self._state, text, start=start)

    async def serve(self) -> None:
        """Until cancelled."""
        await to_its_end(self._show_spent)
        while True:
            try:
                await self._turn()
            except Exception as error:
                if not is_full(error):
                    raise
                await self._wait_for_space()

    async def _turn(self) -> None:
        """The next job to its end, or a moment without one."""
        rows = [row for row in self._state.jobs() if row.status in ACTIVE_JOB]
        row = next((row for row in rows if row.id not in self._waiting), rows[0] if rows else None)
        if row is None or self._held(row):
            await self._idle()
            return
        try:
            status, reason = await self._run(row)
        except JobYields:
            _log.info("job %s: waits, while another job runs", row.id)
            return
        except JobHeld as held:
            _log.error("job %s: is held: %s", row.id, held)
            return
        except JobPaused as paused:
            self._pause(row, str(paused))
            return
        except FolderLost:
            raise  # for people; the job waits for them
        except Exception as error:
            if is_full(error):
                raise
            status, reason = "failed", str(error)
            if not isinstance(error, FedsysError):
                _log.exception("job %s", row.id)
                reason = "an unexpected error; see the coordinator's log"
        self._end(row, status, reason)

    async def _wait_for_space(self) -> None:
        """Everything that a job has spent is on the disk; it is taken up again from there."""
        rows = [row for row in self._state.jobs() if row.status in ACTIVE_JOB]
        what = (
            f"job {rows[0].id} pauses at round {rows[0].round}, and goes on" if rows else "goes on"
        )
        _log.error("no space left on %s: %s when there is", self._home.path, what)
        await space_again(self._home.path)
        _log.warning("there is space on %s again", self._home.path)

    def _could_run_another(self, row: JobRow) -> bool:
        """Whether a job behind this one in the queue has enough devices that are connected."""
        there = self._fleet.links.keys()
        return any(
            other.id != row.id
            and other.status in ACTIVE_JOB
            and other.id not in self._waiting
            and not other.cancelled
            and self._preparation.enough(other, there)
            for other in self._state.jobs()
        )

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

    def _held(self, row: JobRow) -> bool:
        """Whether the job has to wait because this database may be older than its devices."""
        held = self.continuity.held
        stage = f"held: {held}" if held else ""
        if row.stage != stage and (held or row.stage.startswith("held: ")):
            self._state.update_job(row.id, stage=stage)
        return bool(held)

    def take_late(self) -> None:
        """Between two jobs: the last round's countersignatures count, and nothing else does."""
        while not self._fleet.events.empty():
            event = self._fleet.events.get_nowait()
            if isinstance(event, Said) and event.message.HasField("countersignature"):
                self._countersignatures.take(event.node, event.message.countersignature)

    async def _idle(self) -> None:
        self.take_late()
        self._metrics.connected(len(self._fleet.links))
        self.wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL):  # `wait_for` may swallow a cancellation
                await self.wake.wait()

    async def _run(self, row: JobRow) -> tuple[str, str]:
        prepared = await to_its_end(self._preparation.prepare, row)
        if isinstance(prepared, AlreadyOver):
            return prepared.status, ""
        run = JobRun(
            prepared,
            self._facilities,
            spending=self._spending,
            countersignatures=self._countersignatures,
            held=lambda: self.continuity.held,
            closes=self._waiting.pop(row.id, None),
            gives_way=lambda: self._could_run_another(row),
        )
        try:
            return await run.run()
        except JobYields:
            if run.closes is not None:
                self._waiting[row.id] = run.closes
            raise

    def _end(self, row: JobRow, status: str, reason: str) -> None:
        self._state.update_job(
            row.id, status=status, reason=reason[:2000], stage="", ended_at=self._now()
        )
        self._metrics.job_ended(row.id, status)
        self._show_spent()
        failed = status == "failed"
        _log.log(logging.ERROR if failed else logging.INFO, "job %s: %s %s", row.id, status, reason)

    def _show_spent(self) -> None:
        self._metrics.spent(self._spending.population, self._spending.total())
