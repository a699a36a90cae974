"""Accuracy bought by a budget: central, distributed and correlated noise at equal epsilon.

    python -m simulations.benchmarks.utility --data DIR --epsilons 1,2,4,8,inf --seeds 3

Every run is a whole job of the shipped recipe ``mnist-private``: the same model, population,
cohorts, rounds, clipping norm and learning rates; only the mechanism and the outsider's epsilon
differ. Nothing is tuned for a mechanism. The distributed mechanisms and the central one sample by
Poisson; ``banded-mf`` assumes no secret sampling and so gets no amplification: every client comes
back after the same number of rounds. ``inf`` clips and adds no noise: one curve, the ceiling of
all. Sums are those of protocol ``ideal``, equal to secure aggregation's; a seed decides initial
weights and partition, cohorts and noise come from the operating system, so runs never repeat.
Runs that the output folder already holds are kept, so a grid can be made in several sittings.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedsys import config
from fedsys.config import Config
from fedsys.errors import FedsysError
from fedsys.privacy import PrivacyPlan, read_ledger
from simulations import harness

__all__ = ["CURVES", "NO_NOISE", "Curve", "job_of", "main", "measure", "plot", "table"]

NO_NOISE = "none"
Run = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One mechanism of the comparison.

    Attributes:
        label: for people.
        settings: what distinguishes it from the recipe.
        colour: of its line, as in a run's report.
        dashes: of its line, so that colour is not all that tells lines apart.
    """

    label: str
    settings: tuple[str, ...]
    colour: str
    dashes: tuple[float, ...] = ()


def _narrow(bits: int, colour: str, dashes: tuple[float, ...]) -> Curve:
    settings = ("privacy.mechanism=distributed-skellam", "aggregation.noise=once")
    encoding = ("aggregation.encoding=narrow", f"aggregation.modulus_bits={bits}")
    return Curve(
        label=f"distributed, narrow {bits} bits",
        settings=settings + encoding,
        colour=colour,
        dashes=dashes,
    )


CURVES: Mapping[str, Curve] = {
    "central-gaussian": Curve(
        label="central Gaussian",
        settings=("privacy.mechanism=central-gaussian", "aggregation.noise=once"),
        colour="#1f5fd0",
    ),
    "distributed-skellam": Curve(
        label="distributed, wide",
        settings=("privacy.mechanism=distributed-skellam", "aggregation.noise=once"),
        colour="#c05e00",
        dashes=(6, 2.5),
    ),
    "narrow-20": _narrow(20, "#a0218a", (1.5, 2)),
    "narrow-16": _narrow(16, "#137a66", (8, 2, 1.5, 2)),
    "narrow-12": _narrow(12, "#6b6f1d", (3, 3)),
    "banded-mf": Curve(
        label="banded-mf, unamplified",
        settings=("privacy.mechanism=banded-mf", "cohort.sampling=min-separation"),
        colour="#7a5cc8",
        dashes=(10, 4),
    ),
}
_CEILING = Curve(
    label="no noise", settings=("privacy.mechanism=none",), colour="#6d747c", dashes=(2, 3)
)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What to run.

    Attributes:
        recipe: name or file.
        settings: that replace its own, for every run.
        mechanisms: keys of `CURVES`.
        epsilons: the outsider's; infinity is the run without noise.
        seeds: 0, 1, ... of so many jobs each.
    """

    recipe: str
    settings: tuple[str, ...] = ()
    mechanisms: tuple[str, ...] = tuple(CURVES)
    epsilons: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, math.inf)
    seeds: int = 1
    cells: list[tuple[str, float, int]] = field(init=False)

    def __post_init__(self) -> None:
        """Seed by seed, so that a grid that is cut short has every cell as often."""
        finite = [epsilon for epsilon in self.epsilons if math.isfinite(epsilon)]
        cells = []
        for seed in range(self.seeds):
            if len(finite) < len(self.epsilons):
                cells.append((NO_NOISE, math.inf, seed))
            cells += [(name, epsilon, seed) for epsilon in finite for name in self.mechanisms]
        object.__setattr__(self, "cells", cells)

    def job(self, mechanism: str, epsilon: float, seed: int) -> Config:
        """The configuration of one cell."""
        return job_of(self.recipe, mechanism, epsilon, seed, self.settings)

    def same_runs(self, results: Mapping[str, Any]) -> bool:
        """Whether earlier results are of the same recipe and settings."""
        return bool(results.get("base") == self.base())

    def base(self) -> str:
        """What all cells share, as TOML."""
        return config.dump(config.load(self.recipe, self.settings))


def job_of(
    recipe: str, mechanism: str, epsilon: float, seed: int, settings: Sequence[str] = ()
) -> Config:
    """One job: the recipe, another mechanism, another budget, another seed.

    Min-separation takes as many clients a round as Poisson does on average. A client then comes
    back after floor(N / n) rounds, and so takes part ceil(T / floor(N / n)) times at most.

    Args:
        recipe: name or file.
        mechanism: key of `CURVES`, or `NO_NOISE`.
        epsilon: of the outsider, infinite for `NO_NOISE`.
        seed: of initial weights and partition.
        settings: that replace the recipe's, ``section.key=value``.
    """
    curve = CURVES.get(mechanism, _CEILING)
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
    options.out.mkdir(parents=True, exist_ok=True)
    given = sys.argv[1:] if arguments is None else arguments
    shown = [part for part in given if part not in ("--data", str(options.data))]
    command = " ".join(["python -m simulations.benchmarks.utility", *shown])
    try:
        results = measure(grid, options.out / "utility.json", data=options.data, command=command)
    except FedsysError as error:
        raise SystemExit(str(error)) from None
    text = table(results)
    (options.out / "utility.md").write_text(text)
    for kind in ("png", "svg"):
        plot(results, options.out / f"utility.{kind}")
    print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with data files; else $FEDSYS_DATA")
    parser.add_argument("--recipe", default="mnist-private", help="a recipe's name, or a file")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, for all")
    parser.add_argument("--epsilons", default="1,2,4,8,inf", help="of the outsider")
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
    """Run every cell that `path` does not hold yet; `path` is written after each.

    Raises:
        FedsysError: `path` holds runs of other settings, or a job cannot run.
    """
    results: dict[str, Any] = {"base": grid.base(), "runs": []}
    if path.exists():
        results = json.loads(path.read_text())
        if not grid.same_runs(results):
            raise FedsysError(f"{path}: holds runs of other settings; give another --out")
    results |= {"command": command, "machine": _machine()}
    held = {_cell(run) for run in results["runs"]}
    for mechanism, epsilon, seed in grid.cells:
        if (mechanism, _written(epsilon), seed) in held:
            continue
        found = _one(grid.job(mechanism, epsilon, seed), data)
        results["runs"].append(
            {"mechanism": mechanism, "target": _written(epsilon), "seed": seed, **found}
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


def _cell(run: Run) -> tuple[str, str, int]:
    return run["mechanism"], run["target"], run["seed"]


def _written(epsilon: float) -> str:
    """JSON has no infinity."""
    return f"{epsilon:g}"


def _one(job: Config, data: Path | None) -> Run:
    """A job in a folder of its own, and what its summary and ledger say."""
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
    """Seconds of CPU of this process and of those that it has waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": cores, "torch": torch.__version__}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _json_number(value: float | str | None) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None


def _accuracies(runs: Sequence[Run], mechanism: str, target: str) -> list[float]:
    return [run["accuracy"] for run in runs if _cell(run)[:2] == (mechanism, target)]


def _targets(runs: Sequence[Run]) -> list[str]:
    return sorted({run["target"] for run in runs} - {"inf"}, key=float)


def gaps(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Mean accuracy less that of central noise, in points, by mechanism and epsilon."""
    found: dict[str, dict[str, float]] = {}
    for mechanism in CURVES:
        for target in _targets(runs):
            own = _accuracies(runs, mechanism, target)
            central = _accuracies(runs, "central-gaussian", target)
            if mechanism != "central-gaussian" and own and central:
                points = 100 * (statistics.mean(own) - statistics.mean(central))
                found.setdefault(mechanism, {})[target] = round(points, 3)
    return found


def table(results: Mapping[str, Any]) -> str:
    """The result for people, as Markdown: accuracy, then what each run cost in every view."""
    runs: list[Run] = results["runs"]
    targets = _targets(runs)
    lines = [
        "Test accuracy in %, mean of the seeds (lowest to highest), by the outsider's ε:",
        "",
        "| mechanism | seeds | " + " | ".join(targets) + " | inf |",
        "| --- | ---: |" + " ---: |" * (len(targets) + 1),
    ]
    ceiling = _spread(_accuracies(runs, NO_NOISE, "inf"))
    for name, curve in CURVES.items():
        cells = [_spread(_accuracies(runs, name, target)) for target in targets]
        if any(cells):
            seeds = len({run["seed"] for run in runs if run["mechanism"] == name})
            lines.append(f"| {curve.label} | {seeds} | " + " | ".join(cells) + f" | {ceiling} |")
    lines += ["", *_costs(runs, targets), "", *_verdict(results), ""]
    host, first = results["machine"], runs[0]
    cpu = sum(run["cpu_seconds"] for run in runs)
    lines += [
        f"N = {first['population']}, {first['cohort']:g} expected in a round, {first['rounds']} "
        f"rounds, d = {first['dimension']}, clip {first['clip']:g}, δ = {first['delta']:g}.",
        f"{host['processor']}, {host['cores']} cores, torch {host['torch']}; {len(runs)} runs, "
        f"{cpu:.0f} s of CPU; `{results['command']}`",
    ]
    return "\n".join(lines) + "\n"


def _spread(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return ""
    mean = f"{100 * statistics.mean(accuracies):.1f}"
    if len(accuracies) == 1:
        return mean
    return f"{mean} ({100 * min(accuracies):.1f}–{100 * max(accuracies):.1f})"


def _costs(runs: Sequence[Run], targets: Sequence[str]) -> list[str]:
    lines = [
        "What it cost, by view (realised, worst client of the seeds; ∞: the server sees sums "
        "without noise):",
        "",
        "| mechanism | accountant | outsider | participant | server | noise multiplier |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, curve in CURVES.items():
        for target in targets:
            cell = [run for run in runs if _cell(run)[:2] == (name, target)]
            if cell:
                views = [
                    _worst([run["epsilon"][view] for run in cell])
                    for view in ("outsider", "participant", "server")
                ]
                lines.append(
                    f"| {curve.label} | {cell[0]['accountant'].upper()} | "
                    + " | ".join(views)
                    + f" | {cell[0]['noise_multiplier']:.4g} |"
                )
    return lines


def _worst(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.3g}" if len(known) == len(values) else "∞"


def _verdict(results: Mapping[str, Any]) -> list[str]:
    """Distributed beside central noise: the widest gap, in points."""
    lines = []
    for name, by_target in gaps(results["runs"]).items():
        target, points = max(by_target.items(), key=lambda item: abs(item[1]))
        within = "within" if abs(points) <= 1 else "not within"
        lines.append(
            f"- {CURVES[name].label}: at most {abs(points):.2f} points from central (ε = {target}, "
            f"{points:+.2f}): {within} 1 point."
        )
    return lines


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Accuracy over epsilon, a band from the lowest to the highest seed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    runs: list[Run] = results["runs"]
    targets = _targets(runs)
    text, axis, grid = "#5b626b", "#b9bdc1", "#e9eae8"
    style: Any = {
        "font.size": 10,
        "text.color": text,
        "axes.edgecolor": axis,
        "axes.labelcolor": text,
        "xtick.color": axis,
        "ytick.color": axis,
        "xtick.labelcolor": text,
        "ytick.labelcolor": text,
        "grid.color": grid,
        "svg.hashsalt": "utility",
    }
    with rc_context(style):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for name, curve in CURVES.items():
            held = [(float(target), _accuracies(runs, name, target)) for target in targets]
            held = [(x, found) for x, found in held if found]
            if not held:
                continue
            x = [at for at, _ in held]
            low, high = ([100 * edge(found) for _, found in held] for edge in (min, max))
            axes.fill_between(x, low, high, color=curve.colour, alpha=0.08, linewidth=0)
            axes.plot(
                x,
                [100 * statistics.mean(found) for _, found in held],
                color=curve.colour,
                dashes=curve.dashes or (None, None),
                linewidth=1.9,
                marker="o",
                markersize=4,
                label=curve.label,
            )
        if ceiling := _accuracies(runs, NO_NOISE, "inf"):
            level = 100 * statistics.mean(ceiling)
            axes.axhline(
                level, color=_CEILING.colour, dashes=_CEILING.dashes, linewidth=1.2, zorder=1,
                label=_CEILING.label,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks([float(target) for target in targets], targets)
        axes.minorticks_off()
        axes.set_xlabel("epsilon, outsider's view")
        axes.set_ylabel("test accuracy, %")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(path, dpi=150, metadata=_UNDATED[path.suffix])


_UNDATED: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None}}


if __name__ == "__main__":
    main()
