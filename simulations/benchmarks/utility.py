"""Accuracy for a privacy budget: central, distributed and correlated noise at equal epsilon.

    python -m simulations.benchmarks.utility --data DIR --epsilons 1,2,4,8,inf --seeds 3

Every run is a whole job of the shipped recipe ``mnist-private``: the same model, population,
cohorts, rounds, clipping norm and learning rates; only the mechanism and the outsider's epsilon
differ. Nothing is tuned for a mechanism. The distributed mechanisms and the central one use Poisson
sampling; ``banded-mf`` assumes no secret sampling and so gets no amplification: every client comes
back after the same number of rounds. ``inf`` clips but adds no noise, so it is one run for all
mechanisms. Sums are those of protocol ``ideal``, equal to secure aggregation's. A seed decides
initial weights and partition; cohorts and noise come from the operating system, so runs never
repeat.

Runs already in the output folder are kept, so a grid can be computed in several sessions. The
command writes ``utility.json``, ``utility.md`` (a table), plots, and ``report.html`` (one page with
everything).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsys import config
from fedsys.config import Config
from fedsys.errors import FedsysError
from fedsys.privacy import PrivacyPlan, read_ledger
from fedsys.report.comparison import build_comparison
from simulations import harness
from simulations.benchmarks.machine import machine
from simulations.benchmarks.utility_curves import (
    CEILING,
    CURVES,
    NO_NOISE,
    Run,
    gaps,
    key_of,
    plot,
    table,
    written,
)
from simulations.benchmarks.utility_page import page_of

__all__ = ["Grid", "job_of", "main", "measure"]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid of runs.

    Attributes:
        recipe: Name or file of a recipe.
        settings: Settings that replace the recipe's, for every run.
        mechanisms: Keys of `CURVES`.
        epsilons: The outsider's epsilons; infinity is the run without noise.
        seeds: Number of jobs in each cell, with seeds 0, 1, ...
    """

    recipe: str
    settings: tuple[str, ...] = ()
    mechanisms: tuple[str, ...] = tuple(CURVES)
    epsilons: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, math.inf)
    seeds: int = 1

    @property
    def cells(self) -> list[tuple[str, float, int]]:
        """Mechanism, epsilon and seed of each run, in order of seeds, so that a grid cut short
        still has all curves."""
        finite = [epsilon for epsilon in self.epsilons if math.isfinite(epsilon)]
        cells = []
        for seed in range(self.seeds):
            if len(finite) < len(self.epsilons):
                cells.append((NO_NOISE, math.inf, seed))
            cells += [(name, epsilon, seed) for epsilon in finite for name in self.mechanisms]
        return cells

    def base(self) -> str:
        """The configuration that all cells share, as TOML."""
        return config.dump(config.load(self.recipe, self.settings))


def job_of(
    recipe: str, mechanism: str, epsilon: float, seed: int, settings: Sequence[str] = ()
) -> Config:
    """One job: the recipe with another mechanism, budget and seed.

    Min-separation takes as many clients in a round as Poisson sampling does on average, n of N. A
    client then comes back after floor(N / n) rounds at the earliest, and so takes part in at most
    ceil(T / floor(N / n)) of T rounds.

    Args:
        recipe: Name or file of a recipe.
        mechanism: Key of `CURVES`, or `NO_NOISE`.
        epsilon: The outsider's epsilon; infinite for `NO_NOISE`.
        seed: Seed of initial weights and partition.
        settings: Settings that replace the recipe's, ``section.key=value``.
    """
    curve = CURVES.get(mechanism, CEILING)
    changes = ["aggregation.noise=per-client", *settings, f"job.seed={seed}", *curve.settings]
    if mechanism != NO_NOISE:
        changes.append(f"privacy.epsilon={epsilon}")
    if mechanism == "banded-mf":
        base = config.load(recipe, settings)
        if base.population.clients is None:
            raise FedsysError(f"recipe {recipe}: banded-mf needs population.clients")
        apart = base.population.clients // base.cohort.expected
        turns = math.ceil(base.rounds.count / apart)
        changes += [f"cohort.min_separation={apart}", f"privacy.max_participations={turns}"]
    return config.load(recipe, changes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = _parser().parse_args(arguments)
    grid = Grid(
        recipe=options.recipe,
        settings=_settings(options),
        mechanisms=tuple(options.mechanisms.split(",")),
        epsilons=tuple(_epsilon(text) for text in options.epsilons.split(",")),
        seeds=1 if options.quick else options.seeds,
    )
    if unknown := sorted(set(grid.mechanisms) - set(CURVES)):
        raise SystemExit(
            f"--mechanisms: unknown {', '.join(unknown)}; there are {', '.join(CURVES)}"
        )
    if options.seeds < 1:
        raise SystemExit(f"--seeds: {options.seeds}; at least one is needed")
    options.out.mkdir(parents=True, exist_ok=True)
    given = sys.argv[1:] if arguments is None else arguments
    shown = ["DIR" if part == str(options.data) else part for part in given]
    command = " ".join(["python -m simulations.benchmarks.utility", *shown])
    try:
        results = measure(grid, options.out / "utility.json", data=options.data, command=command)
    except FedsysError as error:
        raise SystemExit(str(error)) from None
    text = table(results)
    (options.out / "utility.md").write_text(text)
    for kind in ("png", "svg"):
        plot(results, options.out / f"utility.{kind}")
    build_comparison(options.out / "report.html", page_of(results))
    print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with data files; else $FEDSYS_DATA")
    parser.add_argument("--recipe", default="mnist-private", help="a recipe's name, or a file")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, every run")
    parser.add_argument("--epsilons", default="1,2,4,8,inf", help="the outsider's epsilons")
    parser.add_argument("--mechanisms", default=",".join(CURVES))
    parser.add_argument("--rounds", type=int, help="instead of the recipe's")
    parser.add_argument("--seeds", type=int, default=3, help="jobs a cell")
    parser.add_argument("--quick", action="store_true", help="five rounds, one seed")
    parser.add_argument("--out", type=Path, default=Path("build/utility"))
    return parser


def _settings(options: argparse.Namespace) -> tuple[str, ...]:
    rounds = 5 if options.quick and options.rounds is None else options.rounds
    return (*options.set, *([] if rounds is None else [f"rounds.count={rounds}"]))


def _epsilon(text: str) -> float:
    try:
        epsilon = float(text)
    except ValueError:
        epsilon = math.nan
    if not epsilon > 0:
        raise SystemExit(f"--epsilons: '{text}' is no positive number, nor inf")
    return epsilon


def measure(
    grid: Grid, path: Path, *, data: Path | None = None, command: str = ""
) -> dict[str, Any]:
    """Run every cell that `path` does not hold yet; `path` is written after each run.

    Raises:
        FedsysError: `path` holds runs of other settings, or a job cannot run.
    """
    results: dict[str, Any] = {"base": grid.base(), "runs": []}
    if path.exists():
        results = json.loads(path.read_text())
        if results.get("base") != grid.base():
            raise FedsysError(f"{path}: holds runs of other settings; give another --out")
    results |= {"command": command, "machine": machine()}
    held = {key_of(run) for run in results["runs"]}
    for mechanism, epsilon, seed in grid.cells:
        if (mechanism, written(epsilon), seed) in held:
            continue
        found = _one(job_of(grid.recipe, mechanism, epsilon, seed, grid.settings), data)
        results["runs"].append(
            {"mechanism": mechanism, "target": written(epsilon), "seed": seed, **found}
        )
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(
            f"{mechanism} epsilon {epsilon:g} seed {seed}: accuracy {found['accuracy']:.4f} "
            f"({found['seconds']:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
    results["gaps"] = gaps(results["runs"])
    path.write_text(json.dumps(results, indent=1) + "\n")
    return results


def _one(job: Config, data: Path | None) -> Run:
    """Run a job in a temporary folder; returns figures from its summary and ledger."""
    started = _cpu(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        result = harness.run(job, out=Path(name) / "run", data=data)
        summary = json.loads((result.folder / "summary.json").read_text())
        header = read_ledger(result.folder / "ledger.jsonl").header
        plan = PrivacyPlan.from_json(header["plan"])
    privacy = summary["privacy"]
    return {
        "accuracy": result.metrics["accuracy"],
        "status": summary["status"],
        "rounds": result.rounds,
        "epsilon": {view: _json_number(value) for view, value in privacy["epsilon"].items()},
        "accountant": plan.accountant if plan.protected else None,
        "noise_multiplier": plan.noise_multiplier,
        "delta": plan.delta,
        "clip": plan.clip,
        "population": plan.population,
        "cohort": plan.expected_cohort,
        "dimension": plan.dimension,
        "sampling": plan.sampling,
        "cpu_seconds": round(_cpu() - started[0], 1),
        "seconds": round(time.monotonic() - started[1], 1),
    }


def _cpu() -> float:
    """CPU seconds of this process and of the children that it has waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _json_number(value: float | str | None) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None


if __name__ == "__main__":
    main()
