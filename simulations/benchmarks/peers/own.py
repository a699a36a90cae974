"""fedsys. ``own.py job|engine CONFIG DATA OUT``

``job`` is the whole harness: sampling, ledger, checkpoints, accounting. ``engine`` does only what
the peers' simulations do, with clipping and noise added: train, sum, decode, step.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from fedsys import config, tasks
from fedsys.privacy import add_noise
from fedsys.privacy.ledger import read_private
from simulations import harness
from simulations.benchmarks.peers.clock import Clock
from simulations.benchmarks.peers.work import cohorts
from simulations.engine.chunk import RoundWork, in_ring
from simulations.engine.noise_ahead import NoiseAhead
from simulations.harness import RoundReport
from simulations.setting import partition_of, prepare


def run_job(job: config.Config, data: Path, clock: Clock) -> None:
    """Run a job as a user would."""

    def note(event: RoundReport | str) -> None:
        if isinstance(event, RoundReport):
            clock.lap(0, 0)

    with tempfile.TemporaryDirectory() as folder:
        run = harness.run(job, out=Path(folder) / "run", data=data, observer=note)
        rounds, _ = read_private(run.folder / "private.jsonl")
        survivors = [rounds[number]["survivors"] for number in sorted(rounds)]
        clock.facts["engine"] = config.load(run.folder / "config.toml").engine.model_dump()
    held = tasks.load(job.task.name, job.task.options).clients(tasks.DataSource.locate(data))
    recount(clock, survivors, partition_of(job, held))


def run_engine(job: config.Config, data: Path, clock: Clock) -> None:
    """Run rounds on the engine alone, without records."""
    setting = prepare(job, data=data)
    population = setting.population
    mechanism, protocol = setting.plan.build_mechanism(), job.aggregation.protocol
    weights = population.trainer.initial_weights()
    drawn = list(cohorts(job.job.seed, population.size, job.cohort.expected, job.rounds.count))
    once = setting.plan.noise == "once"
    ahead = NoiseAhead(mechanism, setting.engine, possible=once)
    with setting.engine as engine, closing(ahead):
        for number, cohort in enumerate(drawn, start=1):
            work = RoundWork(
                number=number,
                weights=weights,
                seed=bytes(32),
                mechanism=mechanism.event.to_json(),
                protocol=protocol,
            )
            chunks = population.chunks(cohort, setting.chunk, processes=engine.processes)
            flat, tally = engine.total(work, chunks, mechanism.length)
            total = in_ring(flat, mechanism, protocol, invited=len(cohort))
            noise = ahead.take(number)
            ahead.begin(number + 1, lambda: os.urandom(32))
            if noise is None:
                noise = mechanism.top_up(tally.trained, os.urandom)
            mean = mechanism.decode(add_noise(total, noise, bits=mechanism.modulus_bits))
            weights = (weights + mean).astype(np.float32)
            clock.lap(tally.trained, 0)
    recount(clock, drawn, population.partition)
    clock.facts["engine"] = setting.config.engine.model_dump()


def recount(clock: Clock, trained: Sequence[Sequence[int]], partition: tasks.Partition) -> None:
    """Set the clock's numbers from the clients that trained in each round."""
    examples = [sum(len(partition.indices_of(id)) for id in cohort) for cohort in trained]
    clock.recount([len(cohort) for cohort in trained], examples)


def main() -> None:
    """Entry point of the process."""
    how, path, data, out = sys.argv[1], *map(Path, sys.argv[2:5])
    clock = Clock()
    (run_job if how == "job" else run_engine)(config.load(path), data, clock)
    clock.write(out)


if __name__ == "__main__":
    main()
