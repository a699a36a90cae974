"""Privacy-utility curves: the mechanisms compared, and their results as a table and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "CEILING",
    "CURVES",
    "NO_NOISE",
    "Curve",
    "Run",
    "accuracies",
    "gaps",
    "key_of",
    "plot",
    "table",
    "targets_of",
    "worst",
    "written",
]

NO_NOISE = "none"
Run = dict[str, Any]
"""One job: ``mechanism``, ``target`` (its epsilon as text), ``seed``, and its results."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One mechanism of the comparison.

    Attributes:
        label: Name shown in tables and plots.
        settings: Settings that differ from the recipe's.
        colour: Colour of its line, as in a run's report.
        dashes: Dashes of its line, so that lines do not differ by colour alone.
    """

    label: str
    settings: tuple[str, ...]
    colour: str
    dashes: tuple[float, ...] = ()


def _narrow(bits: int, colour: str, dashes: tuple[float, ...]) -> Curve:
    settings = ("privacy.mechanism=distributed-gaussian", "aggregation.noise=once")
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
    "distributed-gaussian": Curve(
        label="distributed, wide",
        settings=("privacy.mechanism=distributed-gaussian", "aggregation.noise=once"),
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
CEILING = Curve(
    label="no noise", settings=("privacy.mechanism=none",), colour="#6d747c", dashes=(2, 3)
)


def key_of(run: Run) -> tuple[str, str, int]:
    """The key that identifies a run in a grid: mechanism, target, seed."""
    return run["mechanism"], run["target"], run["seed"]


def written(epsilon: float) -> str:
    """An epsilon as text, because JSON has no infinity."""
    return f"{epsilon:g}"


def accuracies(runs: Sequence[Run], mechanism: str, target: str) -> list[float]:
    """Accuracy of every seed in one cell."""
    return [run["accuracy"] for run in runs if key_of(run)[:2] == (mechanism, target)]


def targets_of(runs: Sequence[Run]) -> list[str]:
    """The finite target epsilons of these runs, increasing."""
    return sorted({run["target"] for run in runs} - {"inf"}, key=float)


def gaps(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Mean accuracy minus that of central noise, in points, by mechanism and epsilon."""
    found: dict[str, dict[str, float]] = {}
    for mechanism in CURVES:
        for target in targets_of(runs):
            own = accuracies(runs, mechanism, target)
            central = accuracies(runs, "central-gaussian", target)
            if mechanism != "central-gaussian" and own and central:
                points = 100 * (statistics.mean(own) - statistics.mean(central))
                found.setdefault(mechanism, {})[target] = round(points, 3)
    return found


def table(results: Mapping[str, Any]) -> str:
    """The result as Markdown: accuracy, then the cost of each run in every view."""
    runs: list[Run] = results["runs"]
    targets = targets_of(runs)
    lines = [
        "Test accuracy in %, mean of the seeds (lowest to highest), by the outsider's ε:",
        "",
        "| mechanism | seeds | " + " | ".join(targets) + " | inf |",
        "| --- | ---: |" + " ---: |" * (len(targets) + 1),
    ]
    ceiling = _spread(accuracies(runs, NO_NOISE, "inf"))
    for name, curve in CURVES.items():
        cells = [_spread(accuracies(runs, name, target)) for target in targets]
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
            cell = [run for run in runs if key_of(run)[:2] == (name, target)]
            if cell:
                views = [
                    worst([run["epsilon"][view] for run in cell])
                    for view in ("outsider", "participant", "server")
                ]
                lines.append(
                    f"| {curve.label} | {cell[0]['accountant'].upper()} | "
                    + " | ".join(views)
                    + f" | {cell[0]['noise_multiplier']:.4g} |"
                )
    return lines


def worst(values: Sequence[float | None]) -> str:
    """The largest value as text; infinity where one is None."""
    known = [value for value in values if value is not None]
    return f"{max(known):.3g}" if len(known) == len(values) else "∞"


def _verdict(results: Mapping[str, Any]) -> list[str]:
    """The widest gap between each mechanism and central noise, in points."""
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
    """Plot accuracy over epsilon, with a band from the lowest to the highest seed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    runs: list[Run] = results["runs"]
    targets = targets_of(runs)
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
            held = [(float(target), accuracies(runs, name, target)) for target in targets]
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
        if ceiling := accuracies(runs, NO_NOISE, "inf"):
            level = 100 * statistics.mean(ceiling)
            axes.axhline(
                level, color=CEILING.colour, dashes=CEILING.dashes, linewidth=1.2, zorder=1,
                label=CEILING.label,
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
        axes.legend(frameon=False, loc="lower right", handlelength=4.5)
        figure.savefig(path, dpi=150, metadata=_UNDATED[path.suffix])


_UNDATED: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None}}
