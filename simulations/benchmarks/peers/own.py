"""fedsys. ``own.py job|engine CONFIG DATA OUT``

``job`` is the whole harness: sampling, ledger, checkpoints, accounting. ``engine`` is what the
peers' simulations do and no more, but with clipping and noise: train, sum, decode, step.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from fedsys import config
from fedsys.privacy import add_noise
from fedsys.privacy.ledger import read_private
from simulations import harness
from simulations.benchmarks.peers.work import Clock
from simulations.chunk import RoundWork, in_ring
from simulations.harness import RoundReport
from simulations.setting import prepare


def run_job(job: config.Config, data: Path, clock: Clock) -> None:
    """A run as a user starts it."""

    def note(event: RoundReport | str) -> None:
        if isinstance(event, RoundReport):
            clock.lap(0)

    with tempfile.TemporaryDirectory() as folder:
        run = harness.run(job, out=Path(folder) / "run", data=data, observer=note)
        rounds, _ = read_private(run.folder / "private.jsonl")
        clock.recount([len(rounds[number]["survivors"]) for number in sorted(rounds)])
        clock.facts["engine"] = config.load(run.folder / "config.toml").engine.model_dump()


def run_engine(job: config.Config, data: Path, clock: Clock) -> None:
    """Rounds without records."""
    setting = prepare(job, data=data)
    mechanism, protocol = setting.plan.build_mechanism(), job.aggregation.protocol
    weights = setting.population.trainer.initial_weights()
    rng = np.random.default_rng(0)
    with setting.engine as engine:
        for number in range(1, job.rounds.count + 1):
            cohort = rng.choice(setting.population.size, size=job.cohort.expected, replace=False)
            work = RoundWork(
                number=number,
                weights=weights,
                seed=bytes(32),
                mechanism=mechanism.event.to_json(),
                noise=setting.plan.noise,
                protocol=protocol,
            )
            chunks = setting.population.chunks(
                cohort.tolist(), setting.chunk, processes=engine.processes
            )
            flat, tally = engine.total(work, chunks, mechanism.length)
            total = in_ring(flat, mechanism, protocol)
            noise = mechanism.top_up(tally.trained, os.urandom)
            mean = mechanism.decode(add_noise(total, noise, bits=mechanism.modulus_bits))
            weights = (weights + mean).astype(np.float32)
            clock.lap(tally.trained)
    clock.facts["engine"] = setting.config.engine.model_dump()


def main() -> None:
    """Entry point of the process."""
    how, path, data, out = sys.argv[1], *map(Path, sys.argv[2:5])
    clock = Clock()
    (run_job if how == "job" else run_engine)(config.load(path), data, clock)
    clock.write(out)


if __name__ == "__main__":
    main()
