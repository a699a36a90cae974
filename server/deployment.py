"""Jobs of a deployed coordinator, one after the other: consent, rounds, result.

What a job has spent is in its ledger; where it stands, in the database. A coordinator that was
killed at any point finds both when it starts again, charges the round that it lost at its worst,
and goes on with the next.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
import os
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedsys.config import Config, validate
from fedsys.errors import BudgetExceeded, ConfigError, FedsysError
from fedsys.privacy import Entropy, PrivacyPlan, plan_of, read_ledger
from fedsys.wire import countersign, fleet_pb2
from fedsys.wire.roster import RosterStatement
from fedsys.wire.terms import Terms
from server.checkpoint import model_bytes, write_atomically
from server.coordinator import OpenRound
from server.deployed_round import Deadlines, DeployedRound
from server.enrollment import Registry
from server.fleet import Arrived, Event, Fleet, Said
from server.home import Home
from server.job import Job, JobFacts, budget_of, clipping_for, plan_for
from server.job_model import JobModel, ModelSource
from server.metrics import Metrics
from server.rounds import RoundAborted, SecureRound, round_params
from server.run_folder import RunFolder
from server.state import ACTIVE_JOB, CountersignatureRow, JobRow, State
from server.summary import summarize, summarize_closed

__all__ = ["Deployment", "Randomness", "submit"]

_log = logging.getLogger(__name__)
_POLL = 0.5
T = TypeVar("T")


class JobFailed(FedsysError):
    """A job ends without a result that it was asked for; the message goes to the operator."""


class JobCancelled(FedsysError):
    """The operator cancelled it."""


@dataclass(frozen=True)
class Randomness:
    """Where the coordinator's secrets come from; anything but the default is for tests.

    Attributes:
        sampling: of a round's cohort.
        top_up: of the coordinator's own noise.
    """

    sampling: Callable[[int], Entropy] = lambda _round: os.urandom
    top_up: Callable[[int], Entropy] = lambda _round: os.urandom


@dataclass
class _Running:
    """The job in hand."""

    row: JobRow
    job: Job
    model: JobModel
    terms: Terms
    roster: RosterStatement
    consenting: set[int] = field(default_factory=set)
    declined: dict[int, str] = field(default_factory=dict)
    refused_rounds: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    clients: list[int] = field(default_factory=list)


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
    ) -> None:
        self._home = home
        self._state = state
        self._registry = registry
        self._fleet = fleet
        self._models = models
        self._metrics = metrics or Metrics()
        self._randomness = randomness or Randomness()
        self._settings = home.settings()
        self._running: _Running | None = None
        self.wake = asyncio.Event()

    async def serve(self) -> None:
        """Until cancelled."""
        while True:
            row = next((row for row in self._state.jobs() if row.status in ACTIVE_JOB), None)
            if row is None:
                await self._idle()
                continue
            try:
                await self._run(row)
            except asyncio.CancelledError:
                raise
            except FedsysError as error:
                self._end(row, "failed", str(error))
            except Exception:
                _log.exception("job %s", row.id)
                self._end(row, "failed", "an unexpected error; see the coordinator's log")
            finally:
                self._running = None

    async def _idle(self) -> None:
        while not self._fleet.events.empty():
            self._elsewhere(self._fleet.events.get_nowait())
        self.wake.clear()
        try:
            await asyncio.wait_for(self.wake.wait(), _POLL)
        except TimeoutError:
            return

    # -- a job ------------------------------------------------------------------------------------

    async def _run(self, row: JobRow) -> None:
        running = await asyncio.to_thread(self._prepare, row)
        if running is None:
            return
        self._running = running
        with running.job.ledger:
            status, reason = "completed", ""
            try:
                for node in running.roster.nodes:
                    self._offer(running, node)
                await self._check_in(running)
                self._state.update_job(row.id, status="running", started_at=time.time())
                await self._rounds(running)
            except BudgetExceeded as error:
                status, reason = "budget-exhausted", str(error)
            except JobCancelled as error:
                status, reason = "cancelled", str(error)
            except JobFailed as error:
                status, reason = "failed", str(error)
            await _to_its_end(self._finish, running, status)
        self._end(row, status, reason)

    def _prepare(self, row: JobRow) -> _Running | None:
        """Start or restore a job; None where it turns out to be over."""
        config = validate(tomllib.loads(row.config))
        folder = RunFolder(self._home.jobs / row.id)
        if folder.ledger.exists():
            return self._restore(row, folder)
        for leftover in folder.path.glob("*") if folder.path.exists() else ():
            leftover.unlink()  # a crash before the ledger's first line: nothing was asked
        roster = self._registry.chain().newest
        if roster is None or not roster.members:
            raise JobFailed("no node is on the roster; enrol devices first")
        population = len(roster.members)
        wanted = config.population.clients
        if wanted is not None and wanted != population:
            raise JobFailed(
                f"population.clients = {wanted}, but {population} nodes are on the roster; leave "
                f"it out, or enrol and revoke nodes"
            )
        if config.cohort.expected > population:
            raise JobFailed(
                f"cohort.expected = {config.cohort.expected}, but {population} nodes are on the "
                f"roster; enrol more, or ask for fewer"
            )
        if config.aggregation.protocol != "secure":
            raise JobFailed(
                f"aggregation.protocol = '{config.aggregation.protocol}' is for simulations; "
                f"devices take part in 'secure' only"
            )
        model = self._models(config)
        plan = plan_for(config, population=population, layers=model.layers)
        round_params(
            n=config.cohort.expected,
            corrupt=config.aggregation.corrupt,
            dropout=config.aggregation.dropout,
            modulus_bits=plan.modulus_bits,
            min_survivors=plan.min_survivors,
        )
        promised = self._population_budget(row, plan)
        resolved = _resolved(config, plan)
        RunFolder.create(folder.path)
        job = Job.start(
            folder,
            config=resolved,
            plan=plan,
            weights=model.initial_weights(),
            facts=self._facts(roster),
            clipping=clipping_for(resolved, plan, model.layers),
            signer=self._home.signer,
        )
        self._state.update_job(
            row.id,
            status="waiting",
            roster_version=roster.version,
            promised=promised,
            rounds=plan.rounds,
        )
        return self._assemble(row, job, model, roster)

    def _restore(self, row: JobRow, folder: RunFolder) -> _Running | None:
        view = read_ledger(folder.ledger, allow_torn=True)
        if view.closed is not None:
            if not folder.summary.exists():
                folder.write_summary(summarize_closed(folder, view))
            summary = json.loads(folder.summary.read_text("utf-8"))
            plan = plan_of(view.header)
            stated = summary["privacy"]["epsilon"][plan.guarantee]
            spent = float(stated) if plan.protected else None
            self._state.update_job(row.id, round=len(view.rounds), spent=spent)
            self._end(row, str(view.closed.get("reason", "completed")), "")
            return None
        config = folder.read_config()
        version = int(view.header["population"]["roster_version"])
        roster = self._registry.chain().find(version)
        if roster is None:
            raise JobFailed(f"roster version {version} is gone")
        model = self._models(config)
        plan = plan_for(config, population=len(roster.members), layers=model.layers)
        job = Job.restore(
            folder,
            config=config,
            plan=plan,
            weights=model.initial_weights(),
            facts=self._facts(roster),
            clipping=clipping_for(config, plan, model.layers),
            signer=self._home.signer,
        )
        _log.info("job %s: resumed after %d rounds", row.id, job.coordinator.reserved)
        return self._assemble(row, job, model, roster)

    def _assemble(
        self, row: JobRow, job: Job, model: JobModel, roster: RosterStatement
    ) -> _Running:
        coordinator = job.coordinator
        terms = Terms(
            job=coordinator.terms.job,
            name=job.config.job.name,
            task=job.config.task.name,
            options=job.config.task.options,
            task_sha256=model.task_sha256,
            local=coordinator.terms.local,
            path=job.config.engine.path,
            dimension=sum(model.layers),
            example_clip=job.config.privacy.example_clip,
            plan=job.plan,
            seed=coordinator.terms.seed,
            roster_version=roster.version,
            roster_hash=roster.hash.hex(),
        )
        coordinator.terms = dataclasses.replace(coordinator.terms, agreed=terms.digest)
        return _Running(
            row=row,
            job=job,
            model=model,
            terms=terms,
            roster=roster,
            metrics=job.folder.last_metrics(),
        )

    def _facts(self, roster: RosterStatement) -> JobFacts:
        authority = "the operator" if self._home.operator_signs_roster else "an independent key"
        return JobFacts(
            population_known="enrolled devices, by the signed roster",
            roster=f"version {roster.version}, {roster.hash.hex()}, signed by {authority}",
            randomness="os.urandom; noise by AES-256-CTR",
            roster_version=roster.version,
        )

    def _population_budget(self, row: JobRow, plan: PrivacyPlan) -> float | None:
        """What this job promises to spend at most, checked against the population's budget.

        Raises:
            JobFailed: all jobs together would exceed it.
        """
        promised = budget_of(plan)
        budget = self._settings.epsilon
        if budget is None:
            return promised
        before = 0.0
        for other in self._state.jobs():
            if other.number != row.number and other.started_at is not None:
                spent = other.promised if other.status in ACTIVE_JOB else other.spent
                before += float("inf") if spent is None else spent
        if promised is None or before + promised > budget * (1 + 1e-9):
            asked = "no limit" if promised is None else f"{promised:.4g}"
            raise JobFailed(
                f"the population's budget is epsilon {budget:g}: {before:.4g} is spent or promised "
                f"by other jobs, and this one asks for {asked}"
            )
        return promised

    # -- consent ----------------------------------------------------------------------------------

    async def _check_in(self, running: _Running) -> None:
        """Wait, not for ever, until enough have agreed and are connected.

        Raises:
            JobFailed: too few did.
        """
        started = time.monotonic()
        closes = started + self._settings.patience
        settled = started + self._settings.reconnect
        while True:
            enough = self._enough(running, at_best=False)
            if enough and (time.monotonic() > settled or not self._undecided(running)):
                return
            self._stop_if_cancelled(running)
            enough_may_come = self._enough(running, at_best=True)
            if not enough and (not enough_may_come or time.monotonic() > closes):
                reasons = "; ".join(
                    f"node {running.roster.nodes[client]}: {reason}"
                    for client, reason in sorted(running.declined.items())
                )
                waited = "" if not enough_may_come else f" within {self._settings.patience:g} s"
                raise JobFailed(
                    f"{len(running.consenting)} of {len(running.roster.nodes)} agents agreed and "
                    f"are connected{waited}, too few for cohorts that succeed"
                    + (f". Refused: {reasons}" if reasons else "")
                )
            await self._next_event(_POLL)

    def _undecided(self, running: _Running) -> bool:
        """Whether an agent that is connected has not answered the offer yet."""
        answered = running.consenting | running.declined.keys()
        return any(
            node in self._fleet.links and client not in answered
            for client, node in enumerate(running.roster.nodes)
        )

    def _enough(self, running: _Running, *, at_best: bool) -> bool:
        """Whether a typical cohort would have its survivors.

        Args:
            at_best: count those who have not answered yet as if they agreed.
        """
        plan, nodes = running.job.plan, running.roster.nodes
        if at_best:
            ready = len(nodes) - len(running.declined)
        else:
            ready = sum(nodes[client] in self._fleet.links for client in running.consenting)
        share = ready / len(nodes)
        needed = max(2, plan.min_survivors)
        tolerated = 1 - running.job.config.aggregation.dropout
        return share * plan.expected_cohort >= needed - 1e-9 and share >= tolerated - 1e-9

    def _offer(self, running: _Running, node: int) -> None:
        offer = fleet_pb2.Offer(terms=running.terms.encoded)
        self._fleet.send(node, fleet_pb2.Down(offer=offer))

    # -- rounds -----------------------------------------------------------------------------------

    async def _rounds(self, running: _Running) -> None:
        job = running.job
        while job.coordinator.reserved < job.plan.rounds:
            await self._check_in(running)
            self._stop_if_cancelled(running)
            started = time.monotonic()
            trained = await self._one_round(running)
            running.seconds.append(time.monotonic() - started)
            running.clients.append(trained)
            await _to_its_end(self._evaluate, running)
            self._state.update_job(
                running.row.id, round=job.coordinator.reserved, stage="", spent=job.epsilon
            )

    async def _one_round(self, running: _Running) -> int:
        """One round to its commit or abort; how many inputs were summed."""
        coordinator, id = running.job.coordinator, running.row.id
        number = coordinator.reserved + 1
        open_ = await asyncio.to_thread(coordinator.begin_round, self._randomness.sampling(number))
        self._state.update_job(id, round=number, stage="reserved", spent=running.job.epsilon)
        round_: DeployedRound | None = None
        try:
            secure = self._secure(running, open_)
            round_ = DeployedRound(
                open=open_,
                secure=secure,
                members=running.roster.nodes,
                consenting=frozenset(running.consenting),
                fleet=self._fleet,
                deadlines=Deadlines(
                    stage=self._settings.stage,
                    training=self._settings.training,
                    reconnect=self._settings.reconnect,
                ),
                elsewhere=self._elsewhere,
                entered=lambda stage: self._enter(id, stage),
            )
            self._fleet.allow(_upload_bytes(coordinator.mechanism.length, len(open_.cohort)))
            await round_.run()
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
            _log.warning("job %s: round %d gave no model: %s", id, number, abort)
            self._metrics.round_aborted()
            self._close_round(running, open_, round_, committed=False)
            return 0
        await _to_its_end(
            lambda: coordinator.finish_round(
                result.total,
                result.included,
                noise_entropy=self._randomness.top_up(number),
                diagnostics={
                    "dropped": {stage: len(ids) for stage, ids in result.dropped.items()},
                    "seconds": round_.report.seconds,
                    "blamed": {str(client): why for client, why in result.blamed.items()},
                },
            )
        )
        self._metrics.round_committed(round_.report.seconds)
        self._close_round(running, open_, round_, committed=True)
        return len(result.included)

    def _secure(self, running: _Running, open_: OpenRound) -> SecureRound:
        event = running.job.coordinator.mechanism.event
        if len(open_.cohort) > event.cap:
            raise RoundAborted("the cohort exceeds the cap", nothing_summed=True)
        if len(open_.cohort) < max(2, event.min_survivors):
            raise RoundAborted("the cohort is below min_survivors", nothing_summed=True)
        aggregation = running.job.config.aggregation
        return SecureRound(
            open=open_,
            mechanism=running.job.coordinator.mechanism,
            roster=running.roster.roster,
            corrupt=aggregation.corrupt,
            dropout=aggregation.dropout,
        )

    def _close_round(
        self,
        running: _Running,
        open_: OpenRound,
        round_: DeployedRound | None,
        *,
        committed: bool,
    ) -> None:
        if round_ is None:
            return
        for client, reason in round_.report.refusals.items():
            self._refused(running.row.id, open_.number, running.roster.nodes[client], reason)
        head = bytes.fromhex(running.job.ledger.head)
        round_.dismiss(committed=committed, ledger_head=head)

    def _enter(self, id: str, stage: str) -> None:
        self._state.update_job(id, stage=stage)

    def _evaluate(self, running: _Running) -> None:
        job, number = running.job, running.job.coordinator.reserved
        evaluation = job.config.evaluation
        due = number % evaluation.every == 0 or number >= job.plan.rounds
        if evaluation.data == "none" or not due:
            return
        metrics = running.model.evaluate(job.coordinator.weights)
        if metrics is not None:
            running.metrics = metrics
            job.folder.append_metrics(number, metrics)

    def _finish(self, running: _Running, status: str) -> None:
        """Model, closed ledger, summary; the job takes no further round."""
        job = running.job
        outcome = status if status in ("completed", "budget-exhausted") else "interrupted"
        model = model_bytes(running.model.state_dict(job.coordinator.weights))
        write_atomically(job.folder.model, model)
        sha256 = hashlib.sha256(model).hexdigest()
        job.close(outcome, model_sha256=sha256)
        job.folder.write_summary(
            summarize(
                job,
                status=outcome,
                model_sha256=sha256,
                metrics=running.metrics,
                seconds=running.seconds,
                clients=running.clients,
            )
        )
        self._state.update_job(
            running.row.id, round=job.coordinator.reserved, stage="", spent=job.epsilon
        )

    def _end(self, row: JobRow, status: str, reason: str) -> None:
        self._state.update_job(
            row.id, status=status, reason=reason[:2000], stage="", ended_at=time.time()
        )
        self._metrics.job_ended(status)
        _log.info("job %s: %s %s", row.id, status, reason)

    # -- events -----------------------------------------------------------------------------------

    async def _next_event(self, seconds: float) -> None:
        try:
            event = await asyncio.wait_for(self._fleet.events.get(), seconds)
        except TimeoutError:
            return
        self._elsewhere(event)

    def _stop_if_cancelled(self, running: _Running) -> None:
        if self._state.job(running.row.id).cancelled:
            raise JobCancelled("cancelled by the operator")

    def _elsewhere(self, event: Event) -> None:
        """Whatever is no answer in an open round."""
        running = self._running
        self._metrics.connected(len(self._fleet.links))
        if running is None:
            return
        if isinstance(event, Arrived):
            if event.node in running.roster.members:
                self._offer(running, event.node)
            return
        if not isinstance(event, Said) or event.node not in running.roster.members:
            return
        client = running.roster.nodes.index(event.node)
        kind = event.message.WhichOneof("content")
        if kind == "consent":
            consent = event.message.consent
            if (consent.job, consent.terms) == (running.terms.job, running.terms.digest):
                running.consenting.add(client)
                running.declined.pop(client, None)
        elif kind == "refusal":
            refusal = event.message.refusal
            if refusal.job in (running.terms.job, b"") and refusal.round == 0:
                if refusal.job:
                    running.declined[client] = refusal.reason
                    running.consenting.discard(client)
                self._refused(running.row.id, 0, event.node, refusal.reason)
        elif kind == "countersignature":
            self._countersigned(running, client, event.node, event.message.countersignature)

    def _refused(self, job: str, round: int, node: int, reason: str) -> None:
        self._metrics.refused()
        self._state.refuse(job=job, round=round, node=node, reason=reason)

    def _countersigned(
        self,
        running: _Running,
        client: int,
        node: int,
        given: fleet_pb2.Countersignature,
    ) -> None:
        message = countersign.message(
            job=running.terms.job,
            round=given.round,
            ledger_head=given.ledger_head,
            participations=given.participations,
        )
        try:
            public = Ed25519PublicKey.from_public_bytes(running.roster.members[node])
            public.verify(given.signature, message)
        except InvalidSignature:
            _log.warning("client %d: a countersignature that does not hold", client)
            return
        with self._state.transaction() as session:
            session.merge(
                CountersignatureRow(
                    job=running.row.id,
                    round=given.round,
                    node=node,
                    ledger_head=given.ledger_head,
                    participations=given.participations,
                    signature=given.signature,
                )
            )


async def _to_its_end(function: Callable[..., T], *arguments: Any) -> T:
    """Run what writes to the disk in a thread; cancelled, wait for it all the same."""
    task = asyncio.create_task(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _resolved(config: Config, plan: PrivacyPlan) -> Config:
    """The configuration with everything derived written into it."""
    update: dict[str, Any] = {
        "population": config.population.model_copy(update={"clients": plan.population}),
        "cohort": config.cohort.model_copy(
            update={"cap": plan.cap, "min_survivors": plan.min_survivors}
        ),
        "engine": config.engine.model_copy(
            update={
                "path": "loop" if config.engine.path == "auto" else config.engine.path,
                "chunk": 1,
            }
        ),
    }
    if plan.protected:
        update["privacy"] = config.privacy.model_copy(
            update={"noise_multiplier": plan.noise_multiplier}
        )
    return config.model_copy(update=update)


def _upload_bytes(length: int, cohort: int) -> int:
    """More than any message of a round takes."""
    return 8 * length + 1024 * cohort + (1 << 16)


def submit(state: State, text: str) -> JobRow:
    """Queue a job; durable when this returns.

    Raises:
        ConfigError: the configuration does not hold.
    """
    try:
        tree: Mapping[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the configuration is not valid TOML: {error}") from None
    config = validate(tree)
    row = JobRow(
        id=os.urandom(6).hex(),
        name=config.job.name,
        config=text,
        status="submitted",
        submitted_at=time.time(),
        rounds=config.rounds.count,
    )
    with state.transaction() as session:
        session.add(row)
    return row
