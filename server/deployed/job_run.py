"""A prepared job over the fleet: consent, rounds, evaluation, result."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable

from fedsys.errors import BudgetExceeded, Cause, FedsysError
from fedsys.improvement import STOPPED, Standing
from fedsys.wire.refusals import cause_of, reason_of
from server.asking import tested_after, turns_of
from server.checkpoint import model_bytes
from server.deployed.buffer import BufferedCycle
from server.deployed.consent import Consent, Shortfall
from server.deployed.countersignatures import Countersignatures
from server.deployed.disk_work import to_its_end
from server.deployed.fleet import Arrived, Event, Said
from server.deployed.ledger_news import LedgerNews
from server.deployed.preparation import JobFailed, PreparedJob
from server.deployed.refusals import Refusals
from server.deployed.round import Facilities, RoundCycle
from server.deployed.spending import Spending
from server.deployed.witnesses import JobWitnesses
from server.job_ending import end_job
from server.standstill import standstill

__all__ = ["JobHeld", "JobPaused", "JobRun", "JobYields"]

_log = logging.getLogger(__name__)

_POLL = 0.5


class JobCancelled(FedsysError):
    """The operator cancelled it."""


class JobHeld(FedsysError):
    """This coordinator may be older than its devices: its operator has to look first."""


class JobPaused(FedsysError):
    """Too few devices are there; nothing is lost, and the operator may resume the job."""


class JobYields(FedsysError):
    """Too few devices are there, and another job, which has enough, goes first.

    Args:
        reason: for people.
        shortfall: what the job lacks.
        closes: until when, by the fleet's clock, it goes on waiting.
    """

    def __init__(self, reason: str, *, shortfall: Shortfall, closes: float) -> None:
        super().__init__(reason)
        self.shortfall = shortfall
        self.closes = closes


class JobRun:
    """One job until it is over.

    Args:
        prepared: the job.
        facilities: what it runs on.
        spending: of all jobs before.
        countersignatures: takes those of its rounds.
        held: why no job may go on now; empty if it may.
        cancelled: whether its operator wants it to end.
        closes: until when, by the fleet's clock, a job that waits already goes on waiting; None for
            one that does not.
        gives_way: whether another job could run meanwhile.
    """

    def __init__(
        self,
        prepared: PreparedJob,
        facilities: Facilities,
        *,
        spending: Spending,
        countersignatures: Countersignatures,
        held: Callable[[], str],
        cancelled: Callable[[], bool],
        closes: float | None = None,
        gives_way: Callable[[], bool] = lambda: False,
    ) -> None:
        self._held = held
        self._cancelled = cancelled
        self._gives_way = gives_way
        self._closes = closes
        self._id = prepared.id
        self._job = prepared.job
        self._model = prepared.model
        self._terms = prepared.terms
        self._roster = prepared.roster
        self._state = facilities.state
        self._fleet = facilities.fleet
        self._settings = facilities.settings
        self._metrics = facilities.metrics
        self._now = facilities.now
        self._spending = spending
        self._evaluated = prepared.job.folder.last_metrics()
        self._seconds: list[float] = []
        self._clients: list[int] = []
        self._refusals = Refusals(facilities.state, prepared.id, facilities.fleet.clock)
        self._countersignatures = countersignatures
        countersignatures.expect(
            prepared.terms.job,
            id=prepared.id,
            terms=prepared.terms.digest,
            roster=prepared.roster,
            job=prepared.job,
        )
        suite = prepared.terms.secagg_suite
        self._news = LedgerNews(
            prepared.job.ledger,
            prepared.job.folder.ledger,
            job=prepared.terms.job,
            fleet=facilities.fleet,
            members=prepared.roster.nodes,
            prekeys=functools.partial(facilities.prekeys.counts, suite=suite),
        )
        self._witnesses = JobWitnesses(job=prepared.job, settings=facilities.settings)
        self._cycle = self._cycle_of(prepared, facilities)
        self._consent = Consent(
            prepared,
            facilities.fleet,
            prekeys=functools.partial(facilities.prekeys.held, suite=suite),
            blamed=self._known_to_cheat(),
            serves=self._cycle.serves,
            names={row.id: row.name for row in facilities.state.nodes()},
        )
        self._waiting = ""

    def _cycle_of(
        self, prepared: PreparedJob, facilities: Facilities
    ) -> BufferedCycle | RoundCycle:
        if prepared.terms.buffering is None:
            return RoundCycle(
                prepared,
                facilities,
                consenting=lambda: frozenset(self._consent.given),
                elsewhere=self.take,
                witnesses=self._witnesses,
                news=self._news,
                refused=self._refused,
                blamed=self._blamed,
            )
        return BufferedCycle(
            prepared,
            facilities,
            consenting=lambda: frozenset(self._consent.given),
            listening=lambda: self._consent.listening,
            elsewhere=self.take,
            witnesses=self._witnesses,
            news=self._news,
            refused=self._refused,
            blamed=self._blamed,
        )

    async def run(self) -> tuple[str, str]:
        """To the job's end; its status and, unless it completed, the reason."""
        async with self._witnesses.followed():
            return await self._run()

    async def _run(self) -> tuple[str, str]:
        status, reason = "completed", ""
        with self._job.ledger:
            try:
                self._stop_if_cancelled()  # its devices may serve another job
                self._consent.offer_all()
                await self._check_in()
                self._state.update_job(self._id, status="running", started_at=self._now())
                self._show_spent()
                stands = await self._rounds()
                if stands is not None:
                    status, reason = STOPPED, f"stopped early: {stands.text}"
            except BudgetExceeded as error:
                status, reason = "budget-exhausted", str(error)
            except JobCancelled as error:
                status, reason = "cancelled", str(error)
            except JobFailed as error:
                status, reason = "failed", str(error)
            except (JobPaused, JobHeld, JobYields):
                self._refusals.flush()
                raise
            finally:
                self._cycle.close()
            self._refusals.flush()
            await to_its_end(self._finish, status)
        await self._witnesses.finish()
        return status, reason

    def take(self, event: Event) -> None:
        """Whatever is no answer in an open round."""
        self._metrics.connected(len(self._fleet.links))
        if isinstance(event, Arrived):
            if event.node in self._roster.members:
                self._news.arrived(self._roster.nodes.index(event.node))
                self._consent.offer(event.node)
        elif isinstance(event, Said) and event.node in self._roster.members:
            self._said(event)
        self._cycle.overhear(event)

    def _said(self, event: Said) -> None:
        node, message = event.node, event.message
        client = self._roster.nodes.index(node)
        kind = message.WhichOneof("content")
        if kind == "consent":
            self._consent.agree(client, message.consent, event.link)
            if client in self._consent.given:
                self._news.consented(client, message.consent.lines)
        elif kind == "refusal":
            refusal = message.refusal
            if refusal.job in (self._terms.job, b"") and refusal.round == 0:
                reason = reason_of(refusal)
                if refusal.job:
                    self._consent.decline(client, reason)
                self._refused(0, node, cause_of(refusal), reason)
        elif kind == "countersignature":
            self._countersignatures.take(node, message.countersignature)

    async def _check_in(self) -> None:
        """Wait, not for ever, until enough have agreed and are connected.

        Raises:
            JobCancelled: the operator did not want to wait.
            JobFailed: too many refused.
            JobPaused: too few came in time.
        """
        started = self._fleet.clock()
        if self._closes is None:
            self._closes = started + self._settings.patience
        settled = started + self._settings.reconnect
        while True:
            enough = self._consent.enough(at_best=False)
            answered = self._fleet.clock() > settled or not self._consent.undecided
            if enough and answered:
                self._show_waiting(None)
                self._closes = None
                return
            self._stop_if_cancelled()
            if not enough and answered and not self._consent.enough(at_best=True):
                raise JobFailed(self._consent.shortage(""))
            if not enough and self._fleet.clock() > self._closes:
                raise JobPaused(self._consent.shortage(f" within {self._settings.patience:g} s"))
            if not enough and answered:
                self._show_waiting(self._closes - self._fleet.clock())
                if self._gives_way():
                    raise JobYields(
                        self._consent.shortage(f" within {self._settings.patience:g} s"),
                        shortfall=self._consent.shortfall,
                        closes=self._closes,
                    )
            event = await self._fleet.next_event(_POLL)
            if event is not None:
                self.take(event)
            else:
                self._refusals.flush()

    def _show_waiting(self, seconds: float | None) -> None:
        """Say in log, status and metrics for whom the job waits, and until when; None: no more."""
        text = "" if seconds is None else f"waiting: {self._consent.standing()}"
        self._metrics.lacking(self._id, 0 if seconds is None else self._consent.lacking)
        if text == self._waiting:
            return
        self._waiting = text
        if seconds is not None:
            ends = time.strftime("%H:%M:%S", time.localtime(self._now() + seconds))
            text = f"{text}, until {ends}"
            _log.warning("job %s: %s", self._id, text)
        else:
            _log.info("job %s: enough devices are there", self._id)
        self._state.update_job(self._id, stage=text)

    async def _rounds(self) -> Standing | None:
        """All rounds that are left, or as many as the metric improves; how it stood if it did
        not."""
        coordinator, folder = self._job.coordinator, self._job.folder
        while coordinator.reserved < self._job.plan.rounds:
            if (stands := standstill(self._job.config, folder.evaluations())) is not None:
                return stands
            self._cycle.require_clients()
            if not self._cycle.open:
                await self._check_in()
            self._stop_if_cancelled()
            started = self._fleet.clock()
            trained = await self._cycle.run()
            self._seconds.append(self._fleet.clock() - started)
            asked = turns_of(self._job.config).evaluates(coordinator.reserved)
            self._clients.append(0 if asked else trained)
            await to_its_end(self._evaluate)
            self._refusals.flush()
            self._state.update_job(
                self._id, round=coordinator.reserved, stage="", spent=self._job.epsilon
            )
            self._show_spent()
        return None

    def _show_spent(self) -> None:
        self._spending.note(self._id, self._job.coordinator.standings)
        self._metrics.spent(self._spending.population, self._spending.total())

    def _evaluate(self) -> None:
        job, number = self._job, self._job.coordinator.reserved
        if not tested_after(job.config, number):
            return
        metrics = self._model.evaluate(job.coordinator.weights)
        if metrics is not None:
            self._evaluated = metrics
            job.folder.append_metrics(number, metrics)

    def _finish(self, status: str) -> None:
        """Model, closed ledger, summary; the job takes no further round."""
        job = self._job
        ended = status in ("completed", "budget-exhausted", STOPPED)
        outcome = status if ended else "interrupted"
        end_job(
            job,
            status=outcome,
            model=self._released(),
            metrics=self._evaluated,
            seconds=self._seconds,
            clients=self._clients,
        )
        self._state.update_job(
            self._id, round=job.coordinator.reserved, stage="", spent=job.epsilon
        )

    def _released(self) -> bytes | None:
        """The content of ``model.pt``; None where rounds asked."""
        if self._job.config.job.kind != "train":
            return None
        return model_bytes(self._model.state_dict(self._job.coordinator.weights))

    def _stop_if_cancelled(self) -> None:
        held = self._held()
        if held:
            raise JobHeld(held)
        if self._cancelled():
            raise JobCancelled("cancelled by the operator")

    def _known_to_cheat(self) -> dict[int, str]:
        """By client, from the database; who left the roster cannot be there."""
        nodes = {node: client for client, node in enumerate(self._roster.nodes)}
        found = self._state.blamed(self._id)
        return {nodes[node]: reason for node, reason in found.items() if node in nodes}

    def _blamed(self, round: int, client: int, reason: str) -> None:
        """A client was caught cheating: durable, and it is invited no more."""
        node = self._roster.nodes[client]
        self._state.blame(job=self._id, round=round, node=node, reason=reason)
        self._consent.exclude(client, f"caught cheating in round {round}: {reason}")
        self._refused(round, node, Cause.SECURE_AGGREGATION, f"caught cheating: {reason}")

    def _refused(self, round: int, node: int, cause: Cause, reason: str) -> None:
        self._metrics.refused(round)
        self._refusals.note(round=round, node=node, cause=cause, reason=reason)
