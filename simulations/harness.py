"""The whole system in one process: from a configuration to a run's folder.

`run` is the specification of a job: reserve, sample, train, privatize, sum, top up, step, commit,
checkpoint, evaluate. It drives the same `server.Coordinator` and `client.Agent` that a deployment
runs, for many virtual clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsys import tasks
from fedsys.config import Config
from fedsys.config.named_code import NamedCode
from fedsys.errors import BudgetExceeded, ConfigError
from fedsys.improvement import STOPPED, Standing
from fedsys.preprocessing import REMEDY
from fedsys.privacy import LedgerView, Signer, read_ledger
from fedsys.privacy.ledger import read_header
from fedsys.run_folder import RunFolder, disk_errors
from server.asking import tested_after, turns_of
from server.checkpoint import model_bytes
from server.coordinator import SumRefused
from server.job import Job, job_withheld
from server.job_ending import end_job, finish_ended, is_unfinished_end
from server.job_opening import JobSpec, restore_job, start_job
from server.rounds import RoundAborted
from server.standstill import standstill
from server.summary import summarize
from simulations.between import working
from simulations.buffered.rounds import BufferedRounds
from simulations.client_states import NAME as CLIENT_STATES
from simulations.client_states import ClientStates
from simulations.continuing import Start
from simulations.engine.noise_ahead import NoiseAhead
from simulations.interrupts import uninterrupted
from simulations.membership import joining
from simulations.per_client import measured, text_of
from simulations.randomness import Randomness
from simulations.setting import Setting, prepare
from simulations.summation import Cohort, Summed, report_unusable, summation

__all__ = ["RoundReport", "RunResult", "resume", "run", "run_rounds"]

_DISK_THREADS = 2
"""A checkpoint and a private line reach the disk together, at the cost of one flush."""


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What an observer receives after each round.

    Attributes:
        number: The round's number.
        of: Number of rounds in the job.
        metrics: Metrics of the latest evaluation.
        spent: Computes `epsilon` on demand, as not every observer needs it.
        budget: Epsilon that the guaranteed view may reach.
        clients_per_second: Rate of this round.
    """

    number: int
    of: int
    metrics: dict[str, float]
    spent: Callable[[], float | None]
    budget: float | None
    clients_per_second: float

    @property
    def epsilon(self) -> float | None:
        """Epsilon spent so far in the guaranteed view; None where no privacy is claimed."""
        return self.spent()


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Where a run ended."""

    folder: Path
    rounds: int
    interrupted: bool
    metrics: dict[str, float] = field(default_factory=dict)


Observer = Callable[[RoundReport | str], None]


def run(
    config: Config,
    *,
    out: Path | None = None,
    data: Path | None = None,
    device: str = "auto",
    observer: Observer | None = None,
    randomness: Randomness | None = None,
    origin: tasks.Origin | None = None,
    population: Path | None = None,
    start: Path | None = None,
) -> RunResult:
    """Simulate a job in a new folder.

    Args:
        config: As returned by `fedsys.config.load`.
        out: The run's folder; by default the first free ``runs/<name>``.
        data: Folder with data files, searched before ``$FEDSYS_DATA``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        observer: Called with a report of each round, and with notices.
        randomness: For tests only; a seeded one makes the run reproducible and *not private*,
            which the ledger states and the audit refuses.
        origin: A task that is loaded already; None loads the one that the configuration names.
        population: Folder of all runs on these clients, under one budget (`joining`).
        start: A finished run whose model this one starts from (`Start`).

    Raises:
        FedsysError: The configuration, data or folder is not valid; the message is one line.
    """
    if config.job.start and start is None:
        raise ConfigError(
            f"job.start = '{config.job.start}': is written by --from RUN; name that run's folder"
        )
    began = None if start is None else Start.of(start)
    setting = prepare(config, data=data, device=device, randomness=randomness, origin=origin)
    with setting.engine, ThreadPoolExecutor(_DISK_THREADS, "disk") as disk:
        with joining(population, setting, out, began) as (setting, path):
            folder = RunFolder.create(path)
            with disk_errors(folder.path):
                spec = _spec(setting, disk)
                if began is not None:
                    begin = began.checkpoint_for(setting.config)
                    spec = replace(spec, weights=begin.weights, begin=begin)
                    if began.goes_on_in(setting.config):
                        states = ClientStates(folder.path / CLIENT_STATES)
                        states.take_over(began.path / CLIENT_STATES)
                        states.close()
                job = start_job(folder, spec)
                if setting.reading is not None:
                    folder.write_data(setting.reading.to_json())
        with job.ledger:
            if began is not None and observer is not None:
                observer(began.notice(setting.config, setting.plan))
            if setting.reading is not None and observer is not None:
                for line in setting.reading.lines():
                    observer(line)
            if setting.withheld is not None and observer is not None:
                observer(
                    f"NO PRIVACY CLAIM: {setting.withheld}; the run's audit will fail: {REMEDY}"
                )
            return run_rounds(setting, job, observer or _ignore)


def resume(
    path: Path,
    *,
    data: Path | None = None,
    device: str = "auto",
    observer: Observer | None = None,
    origin: tasks.Origin | None = None,
    named: NamedCode | None = None,
) -> RunResult:
    """Continue an interrupted run with fresh rounds; what was reserved stays spent.

    Args:
        path: The run's folder.
        data: Folder with data files.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        observer: Called with a report of each round, and with notices.
        origin: The task that the run was started with; None loads it by its name.
        named: Code of the user's own that the run uses, named by the user: the folder's word does
            not suffice. The task need not be named where `origin` is given.

    Raises:
        FedsysError: There is no run there, it is damaged, signed by another key, or it cannot be
            resumed.
    """
    folder = RunFolder.open(path)
    config = _signed_config(folder)
    named = named or NamedCode()
    if origin is not None:
        named = replace(named, task=NamedCode.of(config).task)
    named.require(config, path)
    if is_unfinished_end(folder) and (view := _closed(folder)) is not None:
        with disk_errors(path), uninterrupted():
            finish_ended(folder, view)
        return ended(path)
    setting = prepare(config, data=data, device=device, origin=origin)
    with setting.engine, ThreadPoolExecutor(_DISK_THREADS, "disk") as disk:
        job = restore_job(folder, _spec(setting, disk))
        with job.ledger:
            lines = job.ledger.private_rounds.values()
            setting.clock.now = max((it.get("simulated_seconds", 0.0) for it in lines), default=0.0)
            return run_rounds(setting, job, observer or _ignore)


def ended(path: Path) -> RunResult:
    """Where a run ended whose ledger is closed."""
    folder = RunFolder(path)
    rounds = len(read_ledger(folder.ledger).rounds)
    return RunResult(folder=path, rounds=rounds, interrupted=False, metrics=folder.last_metrics())


def _signed_config(folder: RunFolder) -> Config:
    """The configuration of a run that this coordinator's own key began, compared with its hash."""
    key = Signer.load_or_create().public_key
    return folder.signed_config(read_header(folder.ledger, key=key))


def _spec(setting: Setting, disk: Executor) -> JobSpec:
    return JobSpec(
        config=setting.config,
        plan=setting.plan,
        weights=setting.population.trainer.initial_weights(),
        facts=setting.facts,
        clipping=setting.clipping,
        entropy=setting.randomness.job(),
        disk=disk,
        parts=setting.parts,
    )


def _closed(folder: RunFolder) -> LedgerView | None:
    """The ledger of a job that ended; None where it has not ended."""
    view = read_ledger(folder.ledger, allow_torn=True)
    return None if view.closed is None else view


def _ignore(_event: RoundReport | str) -> None:
    return None


@dataclass
class _Clock:
    """Seconds and clients of each round that this process ran, without evaluation."""

    seconds: list[float] = field(default_factory=list)
    clients: list[int] = field(default_factory=list)


def run_rounds(
    setting: Setting,
    job: Job,
    observer: Observer,
    before_end: Callable[[], None] | None = None,
) -> RunResult:
    """Run all remaining rounds, then write the model and the summary.

    Args:
        setting: The job's parts.
        job: As it was begun or resumed.
        observer: Called after each round, and with notices.
        before_end: Writes what the ledger's last line is to bind; not called where the run was
            interrupted.
    """
    coordinator, folder, clock = job.coordinator, job.folder, _Clock()
    for line in setting.notice.splitlines():
        observer(line)
    metrics = folder.last_metrics()
    status = "completed"
    buffered = setting.config.rounds.mode == "buffered"
    ahead = NoiseAhead(
        coordinator.mechanism,
        setting.engine,
        possible=job.plan.noise == "once" and coordinator.clipping is None and not buffered,
    )
    buffers = BufferedRounds(setting, job, observer) if buffered else None
    states = ClientStates(folder.path / CLIENT_STATES)
    states.keep_only(job.ledger.committed)
    try:
        while coordinator.reserved < job.plan.rounds:
            if (stands := _standstill(setting.config, folder)) is not None:
                observer(f"stopped early: {stands.text}")
                status = STOPPED
                break
            started = time.monotonic()
            with disk_errors(folder.path):
                if buffers is None:
                    trained = _one_round(setting, job, observer, ahead, states)
                else:
                    trained = buffers.next()
                if evaluated := tested_after(job.config, coordinator.reserved):
                    with uninterrupted():
                        coordinator.settle()
            clock.seconds.append(time.monotonic() - started)
            asked = turns_of(job.config).evaluates(coordinator.reserved)
            clock.clients.append(0 if asked else trained)
            if evaluated:
                population = setting.population
                metrics = population.trainer.evaluate(
                    coordinator.weights, setting.test, setting.config.evaluation.metrics
                )
                with disk_errors(folder.path), uninterrupted():
                    folder.append_metrics(coordinator.reserved, metrics)
            observer(_report(job, metrics, clock))
    except BudgetExceeded as reason:
        observer(str(reason))
        status = "budget-exhausted"
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        ahead.close()
        states.close()
        if buffers is not None:
            buffers.close()
    with disk_errors(folder.path), uninterrupted():
        coordinator.settle()
        if setting.config.evaluation.clients and status != "interrupted":
            figures = measured(setting, coordinator.weights)
            folder.write_clients(figures)
            observer(text_of(figures))
        if before_end is not None and status != "interrupted":
            before_end()
        if status == "interrupted":
            folder.write_summary(
                summarize(
                    job,
                    status=status,
                    model_sha256=None,
                    metrics=metrics,
                    seconds=clock.seconds,
                    clients=clock.clients,
                )
            )
        else:
            end_job(
                job,
                status=status,
                model=_model(setting, job),
                metrics=metrics,
                seconds=clock.seconds,
                clients=clock.clients,
            )
    return RunResult(
        folder=folder.path,
        rounds=coordinator.reserved,
        interrupted=status == "interrupted",
        metrics=metrics,
    )


def _standstill(config: Config, folder: RunFolder) -> Standing | None:
    """Whether the run's metric ends it; evaluations are read only where they may."""
    return standstill(config, folder.evaluations()) if config.evaluation.stop.metric else None


def _one_round(
    setting: Setting, job: Job, observer: Observer, ahead: NoiseAhead, states: ClientStates
) -> int:
    """Run one round up to its checkpoint and commit, which reaches the disk with the next round's
    reservation or at `settle`; returns how many clients trained."""
    coordinator, randomness = job.coordinator, setting.randomness
    with uninterrupted():
        open_ = coordinator.begin_round(randomness.sampling(coordinator.reserved + 1))
    asks = turns_of(job.config).evaluates(open_.number)
    nonces: dict[int, bytes] = {}

    def top_up(survivors: Sequence[int]) -> NDArray[np.int64]:
        nonces.update(setting.nonces(open_.number, survivors))
        return coordinator.noise_for(len(survivors), nonces)

    try:
        with working(
            setting.between if asks else None, setting.population, setting.engine, randomness
        ) as (population, engine):
            cohort = Cohort(
                round=open_,
                plan=job.plan,
                mechanism=coordinator.mechanism,
                aggregation=setting.config.aggregation,
                population=population,
                engine=engine,
                chunk=setting.chunk,
                faults=setting.faults,
                randomness=randomness,
                now=setting.clock.now,
                exhausted=coordinator.exhausted,
                states="" if asks or not population.trainer.keeps_state else str(states.path),
                weight_cap=0 if setting.parts is None else setting.parts.weight_cap,
                top_up=top_up,
            )
            summed = _sum(cohort)
    except RoundAborted as abort:
        with uninterrupted():
            states.forget(open_.number)
            coordinator.abort_round(str(abort), before_unmask=abort.nothing_summed)
        observer(f"round {open_.number} gave no model: {abort}")
        for client, reason in list(abort.refusals.items())[:1]:
            observer(f"  client {client} (one of {len(abort.refusals)}) refused at {reason}")
        return 0
    noise = ahead.take(open_.number)
    if summed.noise is not None:
        noise = summed.noise
    else:
        nonces = setting.nonces(open_.number, summed.survivors)
    if open_.number < job.plan.rounds:
        entropy = randomness.sampling(open_.number + 1)
        ahead.begin(open_.number + 1, lambda: coordinator.noise_ahead(entropy))
    try:
        with uninterrupted():
            if cohort.states:
                states.settle(open_.number)
            coordinator.finish_round(
                summed.total,
                summed.survivors,
                nonces=nonces,
                noise=noise,
                held=True,
                diagnostics={
                    "dropped": summed.dropped,
                    "clipped_fraction": summed.clipped / max(summed.trained, 1),
                    "not_finite": summed.unusable,
                    **_simulated(setting, cohort),
                },
            )
    except SumRefused as refused:
        states.forget(open_.number)
        observer(f"round {open_.number} gave no model: {refused}")
        return 0
    if summed.unusable:
        with uninterrupted():
            coordinator.settle()
        report_unusable(summed, f"round {open_.number}", job.folder.path, observer)
    return summed.trained


def _simulated(setting: Setting, cohort: Cohort) -> dict[str, float]:
    """The simulated clock at the end of a round, where time is simulated."""
    if not setting.faults.seconds_per_example:
        return {}
    number, now = cohort.round.number, cohort.now
    present = [
        client
        for client in cohort.round.cohort
        if setting.faults.reachable(round=number, client=client, now=now)
    ]
    work = {client: cohort.work_of(client) for client in present}
    return {"simulated_seconds": setting.clock.advance(setting.faults, work)}


def _sum(cohort: Cohort) -> Summed:
    event = cohort.mechanism.event
    if len(cohort.round.cohort) > event.cap:
        raise RoundAborted("the cohort exceeds the cap", nothing_summed=True)
    return summation(cohort)


def _model(setting: Setting, job: Job) -> bytes | None:
    """The content of ``model.pt``; None where rounds asked."""
    if job.config.job.kind != "train":
        return None
    return model_bytes(setting.population.trainer.state_dict(job.coordinator.weights))


def _report(job: Job, metrics: dict[str, float], clock: _Clock) -> RoundReport:
    return RoundReport(
        number=job.coordinator.reserved,
        of=job.plan.rounds,
        metrics=metrics,
        spent=lambda: None if job_withheld(job.plan, job.facts) else job.epsilon,
        budget=job.budget,
        clients_per_second=clock.clients[-1] / max(clock.seconds[-1], 1e-9),
    )
