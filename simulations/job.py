"""A job made ready: task, data, population, privacy plan, ledger, coordinator."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.training import LocalConfig, Trainer
from fedsys import tasks
from fedsys.config import Config
from fedsys.errors import ConfigError, RunFolderError
from fedsys.privacy import (
    Ledger,
    PrivacyPlan,
    Signer,
    View,
    ViewAccountant,
    charge_rounds,
    guaranteed_epsilon,
    ledger_header,
    make_plan,
)
from fedsys.versions import code_hash, versions
from server.checkpoint import latest_checkpoint, sha256_of_weights
from server.cohorts import CohortSampler
from server.coordinator import Coordinator, JobTerms
from server.rounds import RoundAborted, round_params
from server.run_folder import RunFolder
from server.strategies import Strategy, build_strategy
from simulations.faults import FaultPlan
from simulations.population import Population
from simulations.randomness import Randomness, SeededRandomness, SystemRandomness, derived_key

__all__ = ["Job", "prepare"]


@dataclass(kw_only=True)
class Job:
    """Everything a run needs, before and after its folder exists."""

    config: Config
    plan: PrivacyPlan
    population: Population
    strategy: Strategy
    randomness: Randomness
    faults: FaultPlan
    signer: Signer = field(default_factory=Signer.load_or_create)
    _coordinator: Coordinator | None = field(default=None, repr=False)
    _ledger: Ledger | None = field(default=None, repr=False)

    @property
    def coordinator(self) -> Coordinator:
        """Set by `start` or `restore`."""
        if self._coordinator is None:
            raise RunFolderError("the job has no folder yet")
        return self._coordinator

    @property
    def ledger(self) -> Ledger:
        """Set by `start` or `restore`."""
        if self._ledger is None:
            raise RunFolderError("the job has no folder yet")
        return self._ledger

    @property
    def budget(self) -> float | None:
        """What epsilon may reach in the guaranteed view."""
        if not self.plan.protected:
            return None
        return self.plan.budget if self.plan.budget is not None else guaranteed_epsilon(self.plan)

    def spent_in(self, view: View) -> float | None:
        """Epsilon so far in one view."""
        return self.coordinator.spent.of(view)

    def due(self, round: int) -> bool:
        """Whether the model of this round is evaluated."""
        evaluation, last = self.config.evaluation, round >= self.config.rounds.count
        return evaluation.data != "none" and (round % evaluation.every == 0 or last)

    def evaluate(self) -> dict[str, float]:
        """Loss and metrics of the current model on the test data."""
        population = self.population
        return population.trainer.evaluate(self.coordinator.weights, population.data.test)

    def start(self, folder: RunFolder) -> None:
        """Write configuration and ledger header into an empty folder."""
        weights = self.population.trainer.initial_weights()
        job = os.urandom(32)
        folder.write_config(self.config)
        self._ledger = Ledger.create(
            folder.ledger,
            folder.private,
            signer=self.signer,
            header=self._header(folder, job, weights),
        )
        self._coordinate(job, weights, ViewAccountant(self.plan))

    def restore(self, folder: RunFolder) -> None:
        """Take an interrupted run up again: charge what its ledger holds, load the newest model.

        Raises:
            LedgerError: the ledger is closed, locked or does not hold.
            RunFolderError: it belongs to another configuration, or a checkpoint does not fit.
        """
        self._ledger = Ledger.open(folder.ledger, folder.private, signer=self.signer)
        view = self._ledger.view
        if view is None or view.header.get("plan") != self.plan.to_json():
            raise RunFolderError(
                f"{folder.config}: gives another privacy plan than {folder.ledger.name} was "
                f"started with; restore the file, or start a new run"
            )
        if view.header.get("randomness") != self.randomness.name:
            raise RunFolderError(f"{folder.path}: a seeded test run is not resumed; start a new one")
        weights = self.population.trainer.initial_weights()
        checkpoint = latest_checkpoint(folder.checkpoints)
        if checkpoint is not None:
            if checkpoint.weights.shape != weights.shape:
                raise RunFolderError(
                    f"{folder.checkpoints}: holds {len(checkpoint.weights)} weights, the task has "
                    f"{len(weights)}; is this the task that the run was started with?"
                )
            weights = checkpoint.weights
            self.strategy.load(checkpoint.strategy)
        accountant = ViewAccountant(self.plan)
        for _ in charge_rounds(accountant, view, self._ledger.private_rounds):
            pass
        self._coordinate(bytes.fromhex(view.header["job"]), weights, accountant)

    def close(self, status: str, *, model_sha256: str | None) -> None:
        """End the ledger, or leave it open for a resume."""
        if status != "interrupted":
            self.ledger.close(status, {"model_sha256": model_sha256})

    def _coordinate(
        self, job: bytes, weights: NDArray[np.float32], accountant: ViewAccountant
    ) -> None:
        config = self.config
        self._coordinator = Coordinator(
            terms=JobTerms(
                job=job,
                task=config.task.name,
                local=config.local.model_dump(),
                plan=self.plan,
                seed=config.job.seed,
            ),
            ledger=self.ledger,
            accountant=accountant,
            strategy=self.strategy,
            sampler=self._sampler(),
            weights=weights,
        )

    def _sampler(self) -> CohortSampler:
        """Knows the cohorts of rounds that are over; one whose cohort a crash lost had everybody."""
        sampler = CohortSampler(self.plan, min_separation=self.config.cohort.min_separation)
        view = self.ledger.view
        for record in () if view is None else view.rounds:
            line = self.ledger.private_rounds.get(record.round)
            known = record.outcome is not None and line is not None
            sampler.note(record.round, line["sampled"] if known and line is not None else None)
        return sampler

    def _header(
        self, folder: RunFolder, job: bytes, weights: NDArray[np.float32]
    ) -> dict[str, Any]:
        config = self.config
        return ledger_header(
            self.plan,
            job=job.hex(),
            name=config.job.name,
            protocol=config.aggregation.protocol,
            population={"clients": self.population.size, "known": "simulated: exact"},
            trust={
                "roster": "made by this simulation: the server is honest but curious",
                "corrupt": config.aggregation.corrupt,
                "dropout": config.aggregation.dropout,
            },
            randomness=self.randomness.name,
            reproducible=self.randomness.reproducible,
            config_sha256=hashlib.sha256(folder.config.read_bytes()).hexdigest(),
            code_sha256=code_hash(),
            initial_weights_sha256=sha256_of_weights(weights),
            versions=versions(),
        )


def prepare(
    config: Config,
    *,
    data: Path | None = None,
    device: str = "auto",
    randomness: Randomness | None = None,
) -> Job:
    """Resolve every name and number of a configuration, before anything is written.

    Raises:
        FedsysError: with one line that says what does not fit.
    """
    task = tasks.load(config.task.name, config.task.options)
    examples = task.clients(tasks.DataSource.locate(data))
    section = config.population
    partition = tasks.split(
        examples,
        section.partition,
        section.clients,
        config.job.seed,
        alpha=section.alpha,
        shards=section.shards,
        examples=section.examples,
    )
    if config.cohort.expected > partition.clients:
        raise ConfigError(
            f"cohort.expected = {config.cohort.expected} is more than the population of "
            f"{partition.clients} clients that partition '{section.partition}' yields; ask for at "
            f"most {partition.clients}"
        )
    trainer = Trainer(
        task,
        LocalConfig(**config.local.model_dump()),
        device=device_for(device),
        path=config.engine.path,
        chunk=config.engine.chunk or None,
        seed=config.job.seed,
    )
    population = Population(
        data=examples, partition=partition, trainer=trainer, seed=config.job.seed
    )
    plan = plan_for(config, population=partition.clients, dimension=trainer.dimension)
    _check_secure(config, plan)
    server = config.server
    strategy = build_strategy(
        server.strategy,
        learning_rate=server.learning_rate,
        momentum=server.momentum,
        beta1=server.beta1,
        beta2=server.beta2,
        tau=server.tau,
    )
    return Job(
        config=_resolved(config, plan, trainer, population),
        plan=plan,
        population=population,
        strategy=strategy,
        randomness=randomness or _randomness(config),
        faults=FaultPlan(dropout=config.faults.dropout, seed=config.job.seed),
    )


def plan_for(config: Config, *, population: int, dimension: int) -> PrivacyPlan:
    """The privacy plan that a configuration means for this population and model.

    Raises:
        MechanismError: its numbers do not fit one another.
    """
    privacy, cohort, aggregation = config.privacy, config.cohort, config.aggregation
    cap, least = cohort.cap, cohort.min_survivors
    if privacy.mechanism == "none":
        cap, least = cap or population, least or 1
    calibrated = privacy.noise_multiplier is None
    return make_plan(
        mechanism=privacy.mechanism,
        population=population,
        expected_cohort=float(cohort.expected),
        rounds=config.rounds.count,
        dimension=dimension,
        clip=privacy.clip,
        delta=privacy.delta,
        noise_multiplier=privacy.noise_multiplier,
        epsilon=privacy.epsilon if calibrated else None,
        budget=privacy.epsilon,
        cap=cap,
        min_survivors=least,
        encoding=aggregation.encoding,
        modulus_bits=aggregation.modulus_bits,
        sampling=cohort.sampling,
        participation=cohort.participation,
        guarantee=privacy.guarantee,
        colluders=privacy.max_colluders,
        dropout=aggregation.dropout,
        max_participations=privacy.max_participations,
        unit=privacy.unit,
    )


def device_for(asked: str) -> str:
    """``auto`` becomes ``cuda`` where there is one.

    Raises:
        ConfigError: a device that is not there.
    """
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ConfigError(f"--device {asked}: allowed are auto, cpu, cuda and cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {asked}: allowed are auto, cpu, cuda and cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {asked}: {torch.cuda.device_count()} CUDA devices are here; use --device cpu"
        )
    return asked


def _resolved(
    config: Config, plan: PrivacyPlan, trainer: Trainer, population: Population
) -> Config:
    """The configuration with everything that was derived or measured written into it."""
    probe = [population.partition.indices_of(id) for id in range(min(population.size, 64))]
    choice = trainer.choose(trainer.initial_weights(), population.data.train, probe)
    update: dict[str, Any] = {
        "population": config.population.model_copy(update={"clients": population.size}),
        "cohort": config.cohort.model_copy(
            update={"cap": plan.cap, "min_survivors": plan.min_survivors}
        ),
        "engine": config.engine.model_copy(update={"path": choice.path, "chunk": choice.chunk}),
    }
    if plan.protected:
        update["privacy"] = config.privacy.model_copy(
            update={"noise_multiplier": plan.noise_multiplier}
        )
    return config.model_copy(update=update)


def _randomness(config: Config) -> Randomness:
    """Without privacy the cohorts follow the seed too, so that a run can be repeated."""
    if config.privacy.mechanism != "none":
        return SystemRandomness()
    seed = derived_key(config.job.seed.to_bytes(8, "big"), "cohorts")
    return SeededRandomness(seed, everything=False)


def _check_secure(config: Config, plan: PrivacyPlan) -> None:
    """A cohort of the expected size must be one that secure aggregation can serve."""
    aggregation = config.aggregation
    if aggregation.protocol != "secure":
        return
    try:
        round_params(
            n=config.cohort.expected,
            corrupt=aggregation.corrupt,
            dropout=aggregation.dropout,
            modulus_bits=aggregation.modulus_bits,
            min_survivors=plan.min_survivors,
        )
    except RoundAborted as error:
        raise ConfigError(
            f"cohort.expected = {config.cohort.expected} with aggregation.corrupt = "
            f"{aggregation.corrupt:g} and dropout = {aggregation.dropout:g}: {error}"
        ) from None
