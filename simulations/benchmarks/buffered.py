"""Simulated time to the same accuracy: buffered rounds beside rounds that wait for the slowest.

    python -m simulations.benchmarks.buffered --seeds 5

Both sides are the shipped recipe ``buffered`` without noise: the same model, population, local
training, clipping norm, speeds and losses of clients, and the same number of clients that train at a
time. The synchronous side has a fixed cohort of that many in every round, and the server's settings
of the recipe ``quickstart``, with which it converges best; it takes as many rounds as give both sides
equally many uploads. The target of a seed is the accuracy at the end of its synchronous run. A seed
decides initial weights, speeds and losses. Protocol ``ideal``, equal to secure aggregation's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fedsys import config
from fedsys.config import Config
from fedsys.errors import FedsysError
from fedsys.privacy.ledger import read_private
from simulations import harness
from simulations.benchmarks.machine import machine

__all__ = ["Curve", "configurations", "main", "measure", "table"]

_BOTH = {
    "privacy.mechanism": "none",
    "privacy.noise_multiplier": None,
    "aggregation.protocol": "ideal",
    "engine.processes": 1,
    "engine.threads": 1,
}
_SYNCHRONOUS = {
    "rounds.mode": None,
    "rounds.buffer": None,
    "rounds.concurrency": None,
    "cohort.sampling": "fixed",
    "server.learning_rate": 4.0,
    "server.momentum": 0.9,
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run.

    Attributes:
        points: simulated seconds and accuracy after each round.
    """

    points: tuple[tuple[float, float], ...]

    @property
    def last(self) -> float:
        """Accuracy at the end."""
        return self.points[-1][1]

    def reaches(self, accuracy: float) -> float | None:
        """Simulated seconds after which a round was first as accurate; None if none was."""
        return next((seconds for seconds, found in self.points if found >= accuracy), None)


def configurations(seed: int, *, rounds: int | None = None) -> tuple[Config, Config]:
    """The buffered job of a seed, and the synchronous one.

    Args:
        seed: of the job.
        rounds: of the synchronous job; by default as many as take the recipe's uploads.
    """
    recipe = config.load("buffered").rounds
    training, size = recipe.concurrency or 1, recipe.buffer or 1
    if rounds is None:
        rounds = recipe.count * size // training
    both = {**_BOTH, "job.seed": seed}
    buffered = {**both, "rounds.count": rounds * training // size}
    synchronous = {
        **both, **_SYNCHRONOUS, "rounds.count": rounds, "cohort.expected": training,
        "privacy.max_participations": None,
    }  # fmt: skip
    return config.load("buffered", values=buffered), config.load("buffered", values=synchronous)


def measure(job: Config, folder: Path) -> Curve:
    """Run a job in a new folder."""
    run = harness.run(job, out=folder, device="cpu")
    ends = {
        number: float(line["simulated_seconds"])
        for number, line in read_private(run.folder / "private.jsonl")[0].items()
        if "simulated_seconds" in line
    }
    evaluations = harness.RunFolder.open(run.folder).evaluations()
    return Curve(
        points=tuple(
            (ends[int(line["round"])], float(line["accuracy"]))
            for line in evaluations
            if int(line["round"]) in ends
        )
    )


def table(curves: Sequence[tuple[Curve, Curve]]) -> str:
    """Markdown, a line a seed: buffered, synchronous."""
    lines = [
        "| seed | target | synchronous s | buffered s | times faster | buffered at its end |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ratios = []
    for seed, (buffered, synchronous) in enumerate(curves):
        target = synchronous.last
        slow, fast = synchronous.reaches(target), buffered.reaches(target)
        times = None if slow is None or not fast else slow / fast
        ratios.append(0.0 if times is None else times)
        lines.append(
            f"| {seed} | {target:.3f} | {_seconds(slow)} | {_seconds(fast)} "
            f"| {'never' if times is None else f'{times:.1f}'} | {buffered.last:.3f} |"
        )
    lines.append(f"\nMedian: {median(ratios):.1f} times faster.")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:,.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args(arguments)
    curves = []
    try:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["FEDSYS_HOME"] = str(Path(scratch) / "home")
            for seed in range(asked.seeds):
                jobs = configurations(seed)
                names = ("buffered", "synchronous")
                found = [
                    measure(job, Path(scratch) / f"{name}-{seed}")
                    for name, job in zip(names, jobs, strict=True)
                ]
                curves.append((found[0], found[1]))
    except FedsysError as error:
        print(f"buffered: {error}", file=sys.stderr)
        return 2
    print(table(curves))
    print(f"\n{machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
