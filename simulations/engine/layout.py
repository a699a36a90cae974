"""How many processes and threads train, measured once if the job is long enough to repay it.

On a CPU, one thread for each process is usually fastest: threads that share a small matrix product
spend their time waiting for each other. Starting a process takes seconds, so short jobs stay in
this one, and longer ones start their processes early, to import while the job is being planned.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedsys import tasks
from fedsys.config import Config
from fedsys.errors import ConfigError
from fedsys.installation import how_to_install
from fedsys.privacy import PrivacyPlan
from server.job_settings import clipping_for, parts_of, strategy_of
from server.strategy_base import shared_by
from simulations.engine.base import Chunk, Engine, InProcess
from simulations.engine.chunk import RoundWork
from simulations.engine.devices import Devices, device_names
from simulations.engine.processes import Processes, Recruits
from simulations.engine.worker import PopulationSpec
from simulations.population import Population
from simulations.randomness import Randomness

__all__ = ["LARGE", "Layout", "cores", "lay_out", "recruits_for"]

_WORTHWHILE = 1.0
"""Seconds of training from which more processes are used."""

_LONG = 20.0
"""Seconds of training from which it is measured whether they help."""

_SLOWEST = 5e9
"""Floating-point operations a second that any path is sure to reach on one core."""

LARGE = 1 << 20
"""Coordinates from which a vector is encrypted in a thread of its own: the calls that encrypt it
are long enough for threads not to wait for the interpreter."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where clients train.

    Attributes:
        engine: The engine, ready for use.
        processes: Number of processes; 1 is this one.
        threads: Threads of each process.
        clients_per_second: Measured rate by number of processes; empty where none was measured.
        notice: Why this process trains alone where more were asked for or would be faster.
    """

    engine: Engine
    processes: int
    threads: int
    clients_per_second: dict[int, float]
    notice: str = ""


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _most_processes(config: Config, dimension: int) -> int:
    """Processes that may train where the configuration leaves it open.

    Encrypting a large vector takes about as long as training it, so it gets half of the cores.
    """
    encrypts = config.aggregation.protocol == "secure" and dimension >= LARGE
    return min(max(1, cores() // 2) if encrypts else cores(), config.cohort.expected)


def recruits_for(config: Config, population: Population) -> Recruits | None:
    """Workers for a job that may use them, started before it is planned; the caller closes them.

    Args:
        config: The configuration, before anything is derived.
        population: The virtual clients.

    Raises:
        TrainingError: A worker process could not be started.
    """
    engine, trainer = config.engine, population.trainer
    if engine.backend == "ray" or trainer.device.type != "cpu" or engine.processes == 1:
        return None
    if _obstacle(population):
        return None
    count = engine.processes or _most_processes(config, trainer.dimension)
    if not engine.processes:
        trained = config.rounds.count * config.cohort.expected * config.local.epochs
        lazy = population.by_client
        examples = len(population.train_set) if lazy is None else int(lazy.sizes.sum())
        held = examples / population.size
        # In a dense model an example costs 6 operations a weight: 2 forward and 4 backward.
        if count == 1 or trained * held * 6 * trainer.dimension < _WORTHWHILE * _SLOWEST:
            return None
    return Recruits(count, threads=engine.threads or 1)


def lay_out(
    config: Config,
    plan: PrivacyPlan,
    population: Population,
    randomness: Randomness,
    chunk: int,
    recruits: Recruits | None = None,
) -> Layout:
    """The engine that the configuration asks for, or the faster one by a short measurement.

    Args:
        config: The configuration, with path and chunk chosen.
        plan: The job's privacy plan.
        population: The virtual clients.
        randomness: Source of their noise.
        chunk: Clients that the engine takes at once.
        recruits: As returned by `recruits_for`; closed by the engine, or before this returns.

    Raises:
        TrainingError: A worker process could not be started.
    """
    layout = _laid_out(config, plan, population, randomness, chunk, recruits)
    if recruits is not None and layout.processes == 1:
        recruits.close()
    return layout


def _laid_out(
    config: Config,
    plan: PrivacyPlan,
    population: Population,
    randomness: Randomness,
    chunk: int,
    recruits: Recruits | None,
) -> Layout:
    engine = config.engine
    threads = engine.threads or 1
    if engine.backend == "ray":
        return _on_ray(config, population, randomness, threads)
    if population.trainer.device.type != "cpu":
        return _on_devices(config, population, randomness)
    if engine.processes == 1:
        return _alone(population, randomness, threads)

    def several(processes: int) -> Layout:
        crew = Processes(
            population,
            population_spec(config, randomness, threads=threads, origin=population.origin),
            mechanism=plan.build_mechanism(),
            processes=processes,
            chunk=chunk,
            singly=config.aggregation.protocol == "secure",
            deadline=engine.deadline,
            recruits=recruits,
        )
        return Layout(engine=crew, processes=processes, threads=threads, clients_per_second={})

    obstacle = _obstacle(population)
    if engine.processes > 1 and not obstacle:
        return several(engine.processes)
    alone = _alone(population, randomness, threads)
    if engine.processes > 1:
        return replace(alone, notice=f"engine.processes = 1: {obstacle}")
    workers = _most_processes(config, population.trainer.dimension)
    if workers == 1:
        return alone
    work = _probe_work(config, plan, population)
    chunks = _probe(population, config.cohort.expected, chunk)
    length = plan.build_mechanism().length
    rate = _rate(alone.engine, work, chunks[:1], length)
    seconds = config.rounds.count * config.cohort.expected / rate
    # Without recruits the job has few operations: only a busy machine makes it look large.
    if seconds < (_LONG if recruits is None else _WORTHWHILE):
        return alone
    if obstacle:
        return replace(alone, notice=f"engine.processes = 1: {obstacle}")
    shared = several(workers)
    if seconds < _LONG:
        alone.engine.close()
        return shared
    parts = _probe(population, config.cohort.expected, chunk, processes=workers)
    rates = {
        workers: _rate(shared.engine, work, parts, length),
        1: _rate(alone.engine, work, chunks, length),
    }
    _log.info("engine: clients/s by processes: %s", rates)
    slower = alone if rates[workers] > rates[1] else shared
    slower.engine.close()
    return replace(shared if slower is alone else alone, clients_per_second=rates)


def _alone(population: Population, randomness: Randomness, threads: int) -> Layout:
    return Layout(
        engine=InProcess(population, randomness, threads=threads),
        processes=1,
        threads=threads,
        clients_per_second={},
    )


def _on_devices(config: Config, population: Population, randomness: Randomness) -> Layout:
    """GPUs: all of them, or the one asked for."""
    if config.privacy.mechanism == "example-gaussian" or population.by_client is not None:
        return _alone(population, randomness, config.engine.threads)
    spec = population_spec(
        config,
        randomness,
        threads=config.engine.threads,
        origin=population.origin,
        pickled=False,
    )
    others = [
        replace(spec, device=name).build(population.train_set, population.partition)
        for name in device_names(population.trainer.device)[1:]
    ]
    engine = Devices(
        [population, *others],
        randomness,
        path=config.engine.path,
        deadline=config.engine.deadline,
    )
    return Layout(engine=engine, processes=1, threads=config.engine.threads, clients_per_second={})


def _on_ray(config: Config, population: Population, randomness: Randomness, threads: int) -> Layout:
    try:
        from simulations.engine.ray import RayEngine
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise ConfigError(
            f"engine.backend = 'ray': Ray is not installed; install it: {how_to_install('ray')}"
        ) from None
    cluster = RayEngine(
        population,
        population_spec(
            config, randomness, threads=threads, origin=population.origin, pickled=False
        ),
        address=config.engine.address,
        actors=config.engine.processes,
        deadline=config.engine.deadline,
    )
    return Layout(
        engine=cluster, processes=cluster.processes, threads=threads, clients_per_second={}
    )


def _obstacle(population: Population) -> str:
    """Why the task cannot be built in other processes; empty where it can."""
    try:
        pickle.dumps(population.by_client)
    except Exception as error:  # whatever an object raises that is asked for its state
        return (
            f"ByClient.load cannot be sent to other processes ({type(error).__name__}); make it a "
            f"module's function, or a method of an object that can be pickled"
        )
    return "" if population.origin is None else population.origin.obstacle


def population_spec(
    config: Config,
    randomness: Randomness,
    *,
    threads: int,
    origin: tasks.Origin | None = None,
    pickled: bool = True,
) -> PopulationSpec:
    """How a resolved configuration's population is built in another process.

    Args:
        config: The resolved configuration.
        randomness: Source of the clients' noise.
        threads: Threads of each process.
        origin: Where the task came from; None builds it from the configuration.
        pickled: Whether a task that was given as an object is pickled, or passed on as it is.
    """
    if origin is None:
        task = tasks.Recipe(name=config.task.name, options=config.task.options)
    else:
        task = origin.recipe(pickled=pickled)
    return PopulationSpec(
        task=task,
        local=config.local.model_dump(),
        device="cpu",
        path=config.engine.path,
        chunk=config.engine.chunk,
        seed=config.job.seed,
        randomness=randomness,
        threads=threads,
    )


def _probe_work(config: Config, plan: PrivacyPlan, population: Population) -> RoundWork:
    protocol = config.aggregation.protocol
    clipping = clipping_for(config, plan, population.trainer.layout.sizes)
    return RoundWork(
        number=0,
        weights=population.trainer.initial_weights(),
        seed=bytes(32),
        mechanism=plan.event().to_json(),
        protocol="ideal" if protocol == "secure" else protocol,
        clipping=None if clipping is None else clipping.to_json(),
        shared=shared_by(strategy_of(config, plan, population.trainer.dimension)),
        weight_cap=parts_of(config, population.trainer.parts).weight_cap,
    )


def _probe(population: Population, expected: int, chunk: int, *, processes: int = 1) -> list[Chunk]:
    """Chunks of as many clients as a round expects."""
    return population.chunks(range(min(expected, population.size)), chunk, processes=processes)


def _rate(engine: Engine, work: RoundWork, chunks: Sequence[Chunk], length: int) -> float:
    """Clients a second, after a warm-up."""
    engine.total(work, chunks[:1], length)
    started, trained = time.perf_counter(), 0
    while time.perf_counter() - started < 0.5:
        trained += engine.total(work, chunks, length)[1].trained
    return trained / (time.perf_counter() - started)
