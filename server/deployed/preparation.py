"""From a line in the queue to a job that may invite: checked, started, or taken up again."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fedsys.bounded_toml import parse_toml
from fedsys.config import Config, validate
from fedsys.durable import write_atomically
from fedsys.errors import ConfigError, FedsysError, LedgerClosed, LedgerError
from fedsys.privacy import Entropy, Ledger, PrivacyPlan, plan_of, read_ledger
from fedsys.run_folder import RunFolder
from fedsys.wire.members import Members
from fedsys.wire.roster import RosterStatement
from fedsys.wire.terms import Terms
from server.asking import everybody
from server.deployed.fit import JobFailed, buffering_of, require_fit, require_params
from server.deployed.job_model import JobModel, ModelSource
from server.deployed.spending import Promises
from server.home.enrollment import Registry
from server.home.folder import Home
from server.home.state import ACTIVE_JOB, PAUSED, JobRow, State
from server.job import Job, JobFacts
from server.job_ending import finish_ended, is_unfinished_end
from server.job_opening import JobSpec, Weights, reached, restore_job, start_job, take_up
from server.job_settings import budget_of, clipping_for, parts_of, plan_for
from server.standstill import check_metric
from server.strategy_base import shared_by

__all__ = ["AlreadyOver", "FolderLost", "JobFailed", "Preparation", "PreparedJob"]

_log = logging.getLogger(__name__)


class FolderLost(ConfigError):
    """A job began and its ledger is not there: no disk, or no folder. Begun again, it would spend
    without counting what it has spent; given up, it could not go on once the disk is back."""


@dataclass(frozen=True, kw_only=True)
class PreparedJob:
    """A job with all that its rounds need.

    Attributes:
        id: in the database.
        job: its folder, open ledger and coordinator.
        model: of its task.
        terms: what devices are asked to agree to.
        roster: the list of members that it was started with; clients are numbered by it.
    """

    id: str
    job: Job
    model: JobModel
    terms: Terms
    roster: RosterStatement


@dataclass(frozen=True)
class AlreadyOver:
    """A crash came between a job's last line and its last change in the database."""

    status: str


class Preparation:
    """Starts and restores jobs.

    Args:
        home: the coordinator's folder.
        state: its database.
        registry: its nodes.
        models: makes the model of a configuration.
        budget: epsilon that the population may spend over all jobs; None sets no limit.
        entropy: of jobs' names and the salts of their ledgers.
    """

    def __init__(
        self,
        *,
        home: Home,
        state: State,
        registry: Registry,
        models: ModelSource,
        budget: float | None,
        entropy: Entropy = os.urandom,
    ) -> None:
        self._home = home
        self._state = state
        self._registry = registry
        self._models = models
        self._budget = budget
        self._entropy = entropy
        self._promises = Promises(home, state)
        self._nodes: dict[str, tuple[tuple[bool, int | None], frozenset[int]]] = {}
        """By job: whether it began, under which roster, and the nodes."""

    def prepare(self, row: JobRow) -> PreparedJob | AlreadyOver:
        """Start a job, or restore the one that a crash interrupted.

        Raises:
            JobFailed: it does not fit this fleet or its budget.
            FolderLost: it began, and its folder is gone; nothing is changed.
            FedsysError: its folder, configuration or model does not hold.
        """
        folder = RunFolder(self._home.jobs / row.id)
        if folder.begun:
            try:
                return self._restore(row, folder)
            except FedsysError:
                # It ends without its last round having been counted: it counts as it promised.
                self._state.update_job(row.id, spent=row.promised)
                raise
        if row.cancelled:
            if row.ledger:  # it was given up, with a round that nobody counted, perhaps
                self._state.update_job(row.id, spent=row.promised)
            return AlreadyOver("cancelled")
        if row.status != "submitted":
            raise FolderLost(
                f"{folder.ledger}: missing, and job {row.id} began: bring its disk or a backup "
                f"back, or give the job up with `fedsys job cancel {self._home.path} {row.id}`"
            )
        if folder.path.exists():  # a crash before the ledger's first line: nothing was asked
            shutil.rmtree(folder.path)
        return self._start(row, folder)

    def check(self, text: str, start: str) -> None:
        """See that a job could start now; nothing is changed.

        Args:
            text: its configuration, as TOML.
            start: id of the job whose model it starts from; empty for none.

        Raises:
            FedsysError: it could not.
        """
        row = JobRow(number=-1, id="", config=text, start=start)
        _, plan, model, _ = self._fitted(row)
        self._promise(row, plan)
        self._initial_weights(row, model)

    def _fitted(self, row: JobRow) -> tuple[Config, PrivacyPlan, JobModel, RosterStatement]:
        """The job's plan for the devices that there are.

        Raises:
            FedsysError: it cannot run with them.
        """
        try:
            config = validate(parse_toml(row.config.encode()))
        except ValueError as error:
            raise ConfigError(f"the configuration is not valid TOML: {error}") from None
        roster = self._registry.chain().newest
        if roster is None or not roster.members:
            raise JobFailed("no node is on the roster; enrol devices first")
        roster = roster.only(self._chosen(config, roster))
        config = everybody(config, len(roster.members))
        require_fit(config, len(roster.members))
        model = self._models(config)
        plan = _plan(config, model, roster)
        if plan.colluders < roster.colluders:
            raise JobFailed(
                f"privacy.max_colluders = {plan.colluders}, but the roster's authority expects "
                f"{roster.colluders} colluders; set privacy.max_colluders = {roster.colluders}"
            )
        require_params(config, plan, roster)
        return config, plan, model, roster

    def _chosen(self, config: Config, roster: RosterStatement) -> tuple[int, ...]:
        """Increasing ids of the nodes on a list that a job is for; none for all of them.

        Raises:
            JobFailed: a pattern is no device's.
        """
        patterns = config.population.devices.split()
        if not patterns:
            return ()
        found: set[int] = set()
        rows = [row for row in self._state.nodes() if row.id in roster.members]
        for pattern in patterns:
            fits = {
                row.id
                for row in rows
                if any(fnmatchcase(each, pattern) for each in (row.name, *row.labels.split()))
            }
            if not fits:
                raise JobFailed(
                    f"population.devices = '{pattern}': no device on the roster has that name or "
                    f"label; see `fedsys coordinator nodes`"
                )
            found |= fits
        return tuple(sorted(found))

    def enough(self, row: JobRow, connected: Collection[int]) -> bool:
        """Whether as many of a job's devices are connected as a typical cohort has."""
        try:
            config = validate(parse_toml(row.config.encode()))
        except (FedsysError, ValueError):
            return True  # it ends at once, and says why
        there = len(self.nodes_of(row).intersection(connected))
        return there >= max(2, config.cohort.expected)

    def nodes_of(self, row: JobRow) -> frozenset[int]:
        """The nodes that a job takes, or would take if it started now; none where it cannot."""
        begun = row.roster_version is not None
        at = row.roster_version if begun else self._registry.roster_version()
        known = self._nodes.get(row.id)
        if known is None or known[0] != (begun, at):
            self._nodes[row.id] = known = ((begun, at), self._find_nodes(row))
        return known[1]

    def _find_nodes(self, row: JobRow) -> frozenset[int]:
        version = row.roster_version
        chain = self._registry.chain()
        roster = chain.newest if version is None else chain.find(version)
        if roster is None:
            return frozenset()
        if version is not None:
            return frozenset(roster.only(_ids(row.members)).members)
        try:
            config = validate(parse_toml(row.config.encode()))
            return frozenset(roster.only(self._chosen(config, roster)).members)
        except (FedsysError, ValueError):
            return frozenset()  # its start will say why

    def _initial_weights(self, row: JobRow, model: JobModel) -> Weights:
        """Those of the task, or those that another job reached.

        Raises:
            ConfigError: that job is not over, has no model, or one of another size.
        """
        if not row.start:
            return model.initial_weights()
        other = self._state.job(row.start)
        if other.status in (*ACTIVE_JOB, PAUSED):
            raise ConfigError(
                f"--from {row.start}: that job is {other.status}; wait for its end, or cancel it"
            )
        weights = reached(RunFolder(self._home.jobs / row.start)).weights
        if len(weights) != sum(model.layers):
            raise ConfigError(
                f"--from {row.start}: its model has {len(weights)} weights, and this job's "
                f"{sum(model.layers)}"
            )
        return weights

    def _start(self, row: JobRow, folder: RunFolder) -> PreparedJob:
        config, plan, model, roster = self._fitted(row)
        promised, weights = self._promise(row, plan), self._initial_weights(row, model)
        if config.evaluation.stop.metric:
            check_metric(config, model.evaluate(weights))
        resolved = _resolved(config, plan)
        RunFolder.create(folder.path)
        part = " ".join(map(str, roster.nodes)) if roster.signed else ""
        self._state.update_job(row.id, members=part)
        job = start_job(folder, self._spec(resolved, plan, model, roster, weights))
        self._state.update_job(
            row.id,
            status="waiting",
            ledger=job.coordinator.terms.job.hex(),
            roster_version=roster.version,
            promised=promised,
            rounds=plan.rounds,
        )
        return self._ready(row, job, model, roster)

    def _restore(self, row: JobRow, folder: RunFolder) -> PreparedJob | AlreadyOver:
        try:
            ledger = take_up(folder, self._home.signer, entropy=self._entropy)
        except LedgerClosed:
            return self._already_over(row, folder)
        except LedgerError as error:
            raise JobFailed(
                f"{folder.path}: {error}; no round can follow, and the job counts as having "
                f"spent all that it promised: keep the folder, see what of it holds with `fedsys "
                f"audit {folder.path}`, and submit the job again"
            ) from None
        with ExitStack() as held:
            held.enter_context(ledger)
            job, model, roster = self._resume(row, folder, ledger)
            reserved = job.coordinator.reserved
            if row.round > reserved:
                raise JobFailed(
                    f"{folder.ledger}: has {reserved} rounds, and {row.round} were begun: it is "
                    f"older than the database; the job counts as having spent all that it promised"
                )
            prepared = self._ready(row, job, model, roster)
            held.pop_all()
        self._state.update_job(row.id, ledger=job.coordinator.terms.job.hex(), spent=job.epsilon)
        _log.info("job %s: resumed after %d rounds", row.id, job.coordinator.reserved)
        return prepared

    def _ready(
        self, row: JobRow, job: Job, model: JobModel, roster: RosterStatement
    ) -> PreparedJob:
        """The job, in whose folder is what devices agreed to and who they are."""
        prepared = _prepared(row, job, model, roster)
        signed = self._registry.rosters.signed(roster.version)
        members = Members(
            statement=signed.statement,
            signature=signed.signature,
            authority=self._registry.chain().key,
            terms=prepared.terms.encoded,
        )
        if not job.folder.members.exists():
            write_atomically(job.folder.members, members.encode(), mode=0o600)
        return prepared

    def _resume(
        self, row: JobRow, folder: RunFolder, ledger: Ledger
    ) -> tuple[Job, JobModel, RosterStatement]:
        if ledger.view is None:
            raise JobFailed(f"{folder.ledger}: a ledger that was not read")
        config = folder.signed_config(ledger.view.header)
        version = int(ledger.view.header["population"]["roster_version"])
        roster = self._registry.chain().find(version)
        if roster is None:
            raise JobFailed(f"roster version {version} is gone")
        roster = roster.only(_ids(row.members))
        model = self._models(config)
        plan = _plan(config, model, roster)
        spec = self._spec(config, plan, model, roster, self._initial_weights(row, model))
        return restore_job(folder, spec, ledger=ledger), model, roster

    def _already_over(self, row: JobRow, folder: RunFolder) -> AlreadyOver:
        view = read_ledger(folder.ledger, allow_torn=True)
        if is_unfinished_end(folder):
            finish_ended(folder, view)
        summary = folder.read_summary()
        plan = plan_of(view.header)
        stated = summary["privacy"]["epsilon"][plan.guarantee]
        spent = float(stated) if plan.protected else None
        self._state.update_job(row.id, round=len(view.rounds), spent=spent)
        reason = str((view.closed or {}).get("reason", "completed"))
        if reason == "interrupted":  # the ledger does not tell these two apart
            reason = "cancelled" if row.cancelled else "failed"
        return AlreadyOver(reason)

    def _spec(
        self,
        config: Config,
        plan: PrivacyPlan,
        model: JobModel,
        roster: RosterStatement,
        weights: Weights,
    ) -> JobSpec:
        authority = "the operator" if self._home.operator_signs_roster else "an independent key"
        return JobSpec(
            config=config,
            plan=plan,
            weights=weights,
            facts=JobFacts(
                population_known="enrolled devices, by the signed roster",
                roster=f"version {roster.version}, {roster.hash.hex()}, signed by {authority}",
                randomness="os.urandom; noise by AES-256-CTR",
                roster_version=roster.version,
                roster_sha256=roster.hash.hex(),
                preprocessing=model.preprocessing,
                frozen_sha256=model.frozen_sha256,
            ),
            clipping=clipping_for(config, plan, model.layers),
            signer=self._home.signer,
            entropy=self._entropy,
            parts=parts_of(config, model.parts),
        )

    def _promise(self, row: JobRow, plan: PrivacyPlan) -> float | None:
        """What this job promises to spend at most, checked against the population's budget.

        Raises:
            JobFailed: all jobs together would exceed it.
        """
        promised = budget_of(plan)
        budget = self._budget
        if budget is None:
            return promised
        before = self._promises.total(without=row.number)
        total = self._promises.total(without=row.number, also=plan)
        if total > budget * (1 + 1e-9):
            asked = "no limit" if promised is None else f"{promised:.4g}"
            raise JobFailed(
                f"the population's budget is epsilon {budget:g}: {before:.4g} is spent or promised "
                f"by other jobs, and this one asks for {asked}, which makes {total:.4g}"
            )
        return promised


def _plan(config: Config, model: JobModel, roster: RosterStatement) -> PrivacyPlan:
    parts = parts_of(config, model.parts)
    further = parts.length - parts.dimension
    population = len(roster.members)
    return plan_for(config, population=population, layers=model.layers, further=further)


def _ids(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


def _prepared(row: JobRow, job: Job, model: JobModel, roster: RosterStatement) -> PreparedJob:
    """The job whose terms devices are asked to agree to, and whose rounds name those terms."""
    coordinator, kind = job.coordinator, job.config.job.kind
    terms = Terms(
        job=coordinator.terms.job,
        name=job.config.job.name,
        task=job.config.task.name,
        options=job.config.task.options,
        task_sha256=model.task_sha256,
        graph_sha256=job.config.task.graph_sha256,
        local=coordinator.terms.local,
        path=job.config.engine.path,
        dimension=sum(model.layers) if kind == "train" else len(model.initial_weights()),
        example_clip=job.config.privacy.example_clip,
        plan=job.plan,
        seed=coordinator.terms.seed,
        roster_version=roster.version,
        roster_hash=roster.hash.hex(),
        answer=job.config.rounds.answer,
        buffering=buffering_of(job.config),
        shared=sum(each.size for each in shared_by(coordinator.strategy).values()),
        weight_cap=parts_of(job.config, model.parts).weight_cap,
        kind=kind,
        questions=tuple(job.config.query.questions or job.config.evaluation.questions),
        evaluate_every=job.config.evaluation.on_devices_every,
        held_out=job.config.population.held_out,
        members=roster.nodes if roster.signed else (),
        frozen_sha256=model.frozen_compared,
        suite=job.config.aggregation.suite,
    )
    coordinator.terms = dataclasses.replace(coordinator.terms, agreed=terms.digest)
    return PreparedJob(id=row.id, job=job, model=model, terms=terms, roster=roster)


def _resolved(config: Config, plan: PrivacyPlan) -> Config:
    """The configuration with everything derived written into it."""
    update: dict[str, Any] = {
        "population": config.population.model_copy(update={"clients": plan.population}),
        "cohort": config.cohort.model_copy(
            update={"cap": plan.cap, "min_survivors": plan.min_survivors}
        ),
        "aggregation": config.aggregation.model_copy(update={"modulus_bits": plan.modulus_bits}),
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
