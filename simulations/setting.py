"""Prepares a simulation: task, data, virtual population and privacy plan. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client.answering.evaluated import respondent_for
from client.answering.respondent import Respondent
from client.training import ExamplePrivacy, ExampleTrainer, LocalConfig, Trainer
from client.training.held_out import kept_for
from client.training.whole_metrics import whole_metrics
from fedsys import tasks
from fedsys.config import Config
from fedsys.errors import ConfigError
from fedsys.preprocessing import Preprocessing
from fedsys.privacy import AdaptiveClipping, AesCtrStream, PrivacyPlan
from fedsys.privacy.encoding.parts import Parts
from fedsys.privacy.ledger.openings import NONCE_BYTES
from fedsys.privacy.sampling.turns import turns_last, turns_needed
from fedsys.tasks import Examples
from fedsys.tasks.partition import Compressed
from secure_agg.params import MAX_COHORT
from server.asking import everybody
from server.job import JobFacts, job_withheld
from server.job_settings import (
    check_rate,
    clipping_for,
    example_steps,
    parts_of,
    plan_for,
    sampler_of,
    strategy_of,
)
from server.standstill import check_metric
from simulations.between import clients_between
from simulations.engine.base import Engine, using_threads
from simulations.engine.layout import lay_out, recruits_for
from simulations.faults import FaultPlan, SimulatedClock
from simulations.population import Population
from simulations.randomness import Randomness, SeededRandomness, SystemRandomness, derived_key
from simulations.rounding import check_clip, unclipped
from simulations.secure_fit import check_secure

__all__ = [
    "Setting",
    "check_turns",
    "clients_at_once",
    "device_for",
    "partition_of",
    "prepare",
    "trainer_for",
]

_FEWEST = 4
_LARGE = 1 << 23  # coordinates of updates that are not large together
_TRIAL = 20

NOT_PRIVATE = (
    "NOT PRIVATE: cohorts, noise and keys are drawn from a seed (job.reproducible = true), so "
    "anybody who knows it can subtract the noise; the run's audit will fail, and its model must "
    "not be released"
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a simulated job runs on.

    Attributes:
        config: resolved: everything derived or measured is written into it.
        plan: the privacy parameters.
        population: virtual clients, their data and their trainer.
        engine: where its clients train; to be closed.
        test: examples for evaluation.
        randomness: where secrets come from.
        faults: who vanishes when.
        clipping: the first round's norms, where they adapt.
        clock: simulated seconds since the job began.
        notice: lines that anyone who watches the run should read; may be empty.
        preprocessing: what the task declares.
        reading: what was read of the data, where the task says so.
        parts: what lies where in a client's vector.
        between: the same clients as they evaluate between rounds of training; None if they do not.
        rows: the rows on which clients are evaluated one by one, if they are.
    """

    config: Config
    plan: PrivacyPlan
    population: Population
    engine: Engine
    test: Examples
    randomness: Randomness
    faults: FaultPlan
    clipping: AdaptiveClipping | None = None
    clock: SimulatedClock = field(default_factory=SimulatedClock)
    notice: str = ""
    preprocessing: Preprocessing = "undeclared"
    reading: tasks.DataReading | None = None
    parts: Parts | None = None
    between: Population | None = None
    rows: tasks.Partition | None = None

    @property
    def chunk(self) -> int:
        """Clients that the engine takes at once."""
        return clients_at_once(self.config.engine.chunk, self.population.trainer.dimension)

    @property
    def gives_nonces(self) -> bool:
        """Whether virtual clients mix nonces into the coordinator's randomness, as devices do. Not
        where cohorts are to be repeatable, too large for that, or noise is drawn ahead."""
        plan = self.plan
        return plan.protected and plan.noise != "once" and plan.cap <= MAX_COHORT

    def nonces(self, round: int, clients: Iterable[int]) -> dict[int, bytes]:
        """What these clients send with their uploads, by client."""
        if not self.gives_nonces:
            return {}
        return {client: self.randomness.nonce(round, client)(NONCE_BYTES) for client in clients}

    @property
    def facts(self) -> JobFacts:
        """The facts for the ledger's header."""
        trainer = self.population.trainer
        return JobFacts(
            population_known="simulated: exact",
            roster="made by this simulation: the server is honest but curious",
            randomness=self.randomness.name,
            reproducible=self.randomness.reproducible,
            preprocessing=self.preprocessing,
            frozen_sha256=trainer.frozen_sha256 if self.config.job.kind == "train" else None,
        )

    @property
    def withheld(self) -> str | None:
        """Why this job can make no privacy claim, for a warning before it runs; None if it can."""
        return job_withheld(self.plan, self.facts)


def partition_of(config: Config, held: tasks.FederatedData, kind: str = "") -> tasks.Partition:
    """Which examples each client looks at in a round of a kind, by default the job's, as the
    configuration divides them."""
    section = config.population
    whole = tasks.split(
        held,
        section.partition,
        section.clients,
        config.job.seed,
        alpha=section.alpha,
        shards=section.shards,
        examples=section.examples,
    )
    if not section.held_out or not isinstance(whole, Compressed):
        return whole
    kind, fraction = kind or config.job.kind, section.held_out
    kept = [kept_for(kind, whole.indices_of(k), fraction) for k in range(whole.clients)]
    sizes = np.array([0, *map(len, kept)], dtype=np.int64)
    return Compressed(offsets=np.cumsum(sizes), indices=np.concatenate(kept))


def prepare(
    config: Config,
    *,
    data: Path | None = None,
    device: str = "auto",
    randomness: Randomness | None = None,
    origin: tasks.Origin | None = None,
) -> Setting:
    """Resolve every name and number of a configuration, before anything is written.

    Args:
        config: As returned by `fedsys.config.load`.
        data: Folder with data files.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        randomness: Sources of secrets; by default the operating system.
        origin: A task that is loaded already; None loads the one that the configuration names.

    Raises:
        FedsysError: Something does not fit; one line says what.
    """
    _check_names(config)
    origin = origin or tasks.Origin.named(config.task.name, config.task.options)
    task = origin.task
    examples = tasks.read_data(task, tasks.DataSource.locate(data))
    tasks.check_contract(task, examples, config.job.seed)
    if config.evaluation.data != "none":
        tasks.check_test_rows(task, examples.test)
    partition = partition_of(config, examples)
    config = everybody(config, partition.clients)
    if config.cohort.expected > partition.clients:
        raise ConfigError(
            f"cohort.expected = {config.cohort.expected} is more than the population of "
            f"{partition.clients} clients that partition '{config.population.partition}' yields; "
            f"ask for at most {partition.clients}"
        )
    config = _in_this_process(_with_example_rate(config, partition))
    sources = randomness or _randomness(config)
    trainer = trainer_for(config, task, device_for(device), sources, examples.train)
    population = Population(
        train_set=trainer.conformed(examples.train),
        partition=partition,
        trainer=trainer,
        seed=config.job.seed,
        by_client=examples.by_client,
        origin=origin,
    )
    _check_trainer(config, trainer, examples)
    sizes = trainer.layout.sizes
    parts = parts_of(config, trainer.parts)
    with ExitStack() as held:
        recruits = recruits_for(config, population)
        if recruits is not None:
            held.callback(recruits.close)
        unasked, clipped = "", ""
        threads = config.engine.threads or int(trainer.device.type == "cpu")
        trains = config.job.kind == "train"
        if trains:
            with using_threads(threads):
                config, unasked = unclipped(config, population)
            parts = parts_of(config, trainer.parts)
        further = parts.length - parts.dimension
        plan = plan_for(config, population=partition.clients, layers=sizes, further=further)
        strategy_of(config, plan, trainer.dimension, parts)
        _try_sampler(config, plan)
        impossible = check_secure(config, plan)
        config = _resolved(config, plan, population)
        if trains:
            with using_threads(threads):
                clipped = check_clip(config, plan, population)
        notices = [unasked, clipped, check_turns(plan), impossible, check_rate(config)]
        at_once = clients_at_once(config.engine.chunk, trainer.dimension)
        between = clients_between(config, plan, population, examples, partition_of)
        layout = lay_out(config, plan, population, sources, at_once, recruits)
        notices.insert(0, layout.notice)
        if sources.reproducible:
            notices.insert(0, NOT_PRIVATE)
        held.pop_all()
    used = {"processes": layout.processes, "threads": layout.threads}
    return Setting(
        config=config.model_copy(update={"engine": config.engine.model_copy(update=used)}),
        plan=plan,
        population=population,
        engine=layout.engine,
        test=examples.test,
        randomness=sources,
        faults=FaultPlan(seed=config.job.seed, **config.faults.model_dump()),
        clipping=clipping_for(config, plan, sizes),
        notice="\n".join(each for each in notices if each),
        preprocessing=tasks.preprocessing_of(task),
        reading=examples.reading,
        parts=parts,
        between=between,
        rows=_evaluated_rows(config, examples),
    )


def _check_names(config: Config) -> None:
    """Refuse what needs neither task nor data to be refused."""
    if config.population.devices:
        raise ConfigError(
            f"population.devices = '{config.population.devices}': is for jobs on devices; a "
            f"simulation has none: leave it out"
        )
    whole_metrics(config.evaluation.metrics)
    if ":" not in config.server.strategy:
        strategy_of(config)


def _try_sampler(config: Config, plan: PrivacyPlan) -> None:
    """Have code of the user's own choose a first cohort, before anything is spent on one."""
    if plan.sampling == "chosen":
        sampler_of(config, plan).draw(1, AesCtrStream(bytes(32)))


def _evaluated_rows(config: Config, held: tasks.FederatedData) -> tasks.Partition | None:
    """The rows on which clients are evaluated one by one; None where they are not, or on those that
    they train on."""
    if not (config.evaluation.clients and config.population.held_out):
        return None
    job = config.job.model_copy(update={"kind": "evaluate"})
    return partition_of(config.model_copy(update={"job": job}), held)


def clients_at_once(chunk: int, dimension: int) -> int:
    """Clients that the engine takes at once: a multiple of the trainer's chunk, at least four
    unless their updates are large."""
    fewest = max(1, min(_FEWEST, _LARGE // max(1, dimension)))
    return chunk * -(-fewest // chunk)


def trainer_for(
    config: Config, task: tasks.Task, device: str, randomness: Randomness, sample: Examples
) -> Trainer:
    """The trainer of this configuration's clients, whose lazy modules get the shape of `sample`."""
    if config.job.kind != "train":
        return respondent_for(config, task, device, sample)
    local, privacy = LocalConfig(**config.local.model_dump()), config.privacy
    if privacy.mechanism == "example-gaussian":
        if privacy.noise_multiplier is None or privacy.example_rate is None:
            raise ConfigError(
                "privacy.mechanism = 'example-gaussian' needs privacy.noise_multiplier (find it "
                "with `fedsys privacy calibrate`)"
            )
        return ExampleTrainer(
            task,
            local,
            ExamplePrivacy(
                clip=privacy.example_clip,
                noise_multiplier=privacy.noise_multiplier,
                example_rate=privacy.example_rate,
                steps=example_steps(config),
            ),
            device,
            seed=config.job.seed,
            entropy=randomness.noise(0, 0),
            sample=sample,
        )
    engine = config.engine
    return Trainer(task, local, device, engine.path, engine.chunk or None, config.job.seed, sample)


def _check_trainer(config: Config, trainer: Trainer, held: tasks.FederatedData) -> None:
    """What is asked of the trainer suits it and the data."""
    if isinstance(trainer, Respondent):
        trainer.check(held.train)
    _check_procedure(config, trainer)
    _check_stop(config, trainer, held.test)


def _check_procedure(config: Config, trainer: Trainer) -> None:
    """A procedure of one's own goes where its clients' states can be kept."""
    if not trainer.keeps_state:
        return
    if config.rounds.mode == "buffered":
        raise ConfigError(
            "rounds.mode = 'buffered' with a local procedure: what a client keeps belongs to a "
            "round, and its rounds overlap here; set rounds.mode = 'synchronous'"
        )
    if config.engine.backend == "ray":
        raise ConfigError(
            "engine.backend = 'ray' with a local procedure: what clients keep is a file of this "
            "machine; set engine.backend = 'local'"
        )


def _check_stop(config: Config, trainer: Trainer, test: Examples) -> None:
    """The metric by which the run may end is one that its evaluations have."""
    if config.evaluation.stop.metric:
        one = trainer.evaluate(trainer.initial_weights(), test[:1])
        check_metric(config, [*one, *whole_metrics(config.evaluation.metrics)])


def _in_this_process(config: Config) -> Config:
    """The configuration with one process where rounds ask: counting rows is quick."""
    if config.job.kind == "train":
        return config
    if config.engine.backend != "local":
        raise ConfigError(
            f"engine.backend = '{config.engine.backend}' with job.kind = '{config.job.kind}': "
            f"questions are answered in this process; leave it out"
        )
    return config.model_copy(update={"engine": config.engine.model_copy(update={"processes": 1})})


def _with_example_rate(config: Config, partition: tasks.Partition) -> Config:
    """The configuration with the example rate for batches of `local.batch_size` examples on
    average, where the mechanism samples examples."""
    privacy = config.privacy
    if privacy.mechanism != "example-gaussian":
        return config
    update: dict[str, Any] = {
        "engine": config.engine.model_copy(update={"path": "loop", "chunk": 1, "processes": 1})
    }
    if privacy.example_rate is None:
        sizes = [len(partition.indices_of(id)) for id in range(partition.clients)]
        rate = min(1.0, config.local.batch_size * len(sizes) / max(sum(sizes), 1))
        update["privacy"] = privacy.model_copy(update={"example_rate": rate})
    return config.model_copy(update=update)


def device_for(asked: str) -> str:
    """The device to train on; ``auto`` is ``cuda`` where there is a GPU, otherwise ``cpu``.

    Raises:
        ConfigError: There is no such device.
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


def _resolved(config: Config, plan: PrivacyPlan, population: Population) -> Config:
    """The configuration with everything derived or measured written into it."""
    trainer = population.trainer
    with using_threads(config.engine.threads or int(trainer.device.type == "cpu")):
        floats = config.aggregation.protocol == "float"
        choice = population.choose(plan.event().clip if floats else None)
    update: dict[str, Any] = {
        "population": config.population.model_copy(update={"clients": population.size}),
        "cohort": config.cohort.model_copy(
            update={"cap": plan.cap, "min_survivors": plan.min_survivors}
        ),
        "aggregation": config.aggregation.model_copy(
            update={"noise": plan.noise, "modulus_bits": plan.modulus_bits}
        ),
        "engine": config.engine.model_copy(update={"path": choice.path, "chunk": choice.chunk}),
    }
    if plan.protected:
        update["privacy"] = config.privacy.model_copy(
            update={"noise_multiplier": plan.noise_multiplier}
        )
    return config.model_copy(update=update)


def _randomness(config: Config) -> Randomness:
    """The OS's randomness; without privacy, cohorts follow the seed, so that a run repeats."""
    if config.job.reproducible:
        return SeededRandomness(derived_key(config.job.seed.to_bytes(8, "big"), "everything"))
    if config.privacy.mechanism != "none":
        return SystemRandomness()
    seed = derived_key(config.job.seed.to_bytes(8, "big"), "cohorts")
    return SeededRandomness(seed, everything=False)


def check_turns(plan: PrivacyPlan) -> str:
    """One line if clients' turns end before the rounds do.

    Raises:
        ConfigError: fewer than half of the turns that the rounds ask for are there, in a job of
            more rounds than a trial has.
    """
    most = plan.max_participations
    if most is None or plan.sampling not in ("poisson", "fixed"):
        return ""
    lasts = turns_last(plan.population, plan.expected_cohort, most)
    if lasts >= plan.rounds:
        return ""
    wanted = turns_needed(plan.population, plan.expected_cohort, plan.rounds)
    text = (
        f"rounds.count = {plan.rounds}, but the turns of {plan.population} clients last about "
        f"{lasts} rounds (privacy.max_participations = {most}, cohort.expected = "
        f"{plan.expected_cohort:g}); from then on most of them send zeros: rounds.count = {lasts}, "
        f"or privacy.max_participations = {wanted}"
    )
    if 2 * lasts < plan.rounds and plan.rounds >= _TRIAL:
        raise ConfigError(text)
    return text
