"""Simulated time to equal accuracy: buffered rounds against rounds that wait for the slowest.

    python -m simulations.benchmarks.buffered --seeds 5

All sides run the shipped recipe ``buffered`` without noise: the same model, population, local
training, clipping norm, client speeds and losses, and 100 clients that train at a time. The
synchronous sides have a fixed cohort of that size in every round, the server settings of the recipe
``quickstart``, and 40 rounds. One waits for every client; the other waits 20 s, twice what a client
of median speed takes, and goes on without the rest. The buffered side closes a buffer at 20 uploads
and takes the same number of uploads in all. A seed's target is the accuracy at the end of the
synchronous run that waits. A seed decides initial weights, speeds and losses, and with them which
clients are invited when. The protocol is ``ideal``, whose sums equal secure aggregation's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fedsys import config
from fedsys.config import Config
from fedsys.errors import FedsysError
from fedsys.privacy.ledger import read_private
from fedsys.run_folder import RunFolder
from simulations import harness
from simulations.benchmarks.machine import machine

__all__ = ["Curve", "configurations", "main", "measure", "table"]

_SIDES = ("synchronous", "deadline", "buffered")
_BUFFER = 20
_DEADLINE = 20.0  # seconds
_BOTH: dict[str, Any] = {
    "privacy.mechanism": "none",
    "privacy.noise_multiplier": None,
    "aggregation.protocol": "ideal",
    "engine.path": "batched",
    "engine.chunk": 64,
    "engine.processes": 1,
    "engine.threads": 1,
}
_SYNCHRONOUS: dict[str, Any] = {
    "rounds.mode": None,
    "rounds.buffer": None,
    "rounds.concurrency": None,
    "cohort.sampling": "fixed",
    "server.learning_rate": 4.0,
    "server.momentum": 0.9,
    "privacy.max_participations": None,
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run.

    Attributes:
        points: Simulated seconds and accuracy after each round.
    """

    points: tuple[tuple[float, float], ...]

    @property
    def last(self) -> float:
        """Accuracy at the end."""
        return self.points[-1][1]

    def reaches(self, accuracy: float) -> float | None:
        """Simulated seconds until a round first reached this accuracy; None if none did."""
        return next((seconds for seconds, found in self.points if found >= accuracy), None)


def configurations(seed: int, *, rounds: int = 40) -> dict[str, Config]:
    """The jobs of a seed, by side; each asks for the same number of uploads.

    Args:
        seed: Seed of the jobs.
        rounds: Number of rounds of the synchronous jobs.
    """
    training = config.load("buffered").rounds.concurrency or 1
    both = {**_BOTH, "job.seed": seed}
    synchronous = {**both, **_SYNCHRONOUS, "rounds.count": rounds, "cohort.expected": training}
    buffered = {
        **both,
        "rounds.buffer": _BUFFER,
        "rounds.count": rounds * training // _BUFFER,
    }
    jobs = {
        "synchronous": synchronous,
        "deadline": {**synchronous, "faults.deadline": _DEADLINE},
        "buffered": buffered,
    }
    return {side: config.load("buffered", values=values) for side, values in jobs.items()}


def measure(job: Config, folder: Path) -> Curve:
    """Run a job in a new folder."""
    run = harness.run(job, out=folder, device="cpu")
    ends = {
        number: float(line["simulated_seconds"])
        for number, line in read_private(run.folder / "private.jsonl")[0].items()
        if "simulated_seconds" in line
    }
    evaluations = RunFolder.open(run.folder).evaluations()
    return Curve(
        points=tuple(
            (ends[int(line["round"])], float(line["accuracy"]))
            for line in evaluations
            if int(line["round"]) in ends
        )
    )


def table(found: Sequence[Mapping[str, Curve]]) -> str:
    """Markdown, one line for each seed."""
    lines = [
        "| seed | target | synchronous s | with a deadline s | buffered s | times faster | "
        "at the end: with a deadline, buffered |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ratios = []
    for seed, curves in enumerate(found):
        target = curves["synchronous"].last
        slow, cut, fast = (curves[side].reaches(target) for side in _SIDES)
        times = slow / fast if slow and fast else 0.0
        ratios.append(times)
        lines.append(
            f"| {seed} | {target:.3f} | {_seconds(slow)} | {_seconds(cut)} | {_seconds(fast)} "
            f"| {f'{times:.1f}' if times else 'never'} "
            f"| {curves['deadline'].last:.3f}, {curves['buffered'].last:.3f} |"
        )
    lines.append(f"\nMedian: {median(ratios):.1f} times faster than rounds that wait.")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:,.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="buffered rounds against synchronous ones")
    parser.add_argument("--seeds", type=int, default=5, help="number of jobs a side: 0, 1, ...")
    asked = parser.parse_args(arguments)
    found = []
    try:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["FEDSYS_HOME"] = str(Path(scratch) / "home")
            for seed in range(asked.seeds):
                jobs = configurations(seed)
                found.append(
                    {
                        side: measure(job, Path(scratch) / f"{side}-{seed}")
                        for side, job in jobs.items()
                    }
                )
    except FedsysError as error:
        print(f"buffered: {error}", file=sys.stderr)
        return 2
    print(table(found))
    print(f"\n{machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
