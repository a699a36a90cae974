"""Privacy-utility curves on a page in the style of a run's report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fedsys.report import figures
from fedsys.report.comparison import Comparison, Table
from fedsys.report.plots import Chart, Series
from simulations.benchmarks.utility_curves import (
    CURVES,
    NO_NOISE,
    Run,
    accuracies,
    gaps,
    key_of,
    targets_of,
    worst,
)

__all__ = ["page_of"]

_VIEWS = ("outsider", "participant", "server")


def page_of(results: Mapping[str, Any]) -> Comparison:
    """The page that `simulations.benchmarks.utility` writes next to its table."""
    runs: list[Run] = results["runs"]
    targets, first, host = targets_of(runs), runs[0], results["machine"]
    seeds = len({run["seed"] for run in runs})
    cpu = sum(run["cpu_seconds"] for run in runs)
    return Comparison(
        eyebrow="fedsys privacy-utility report",
        title="Accuracy bought by a privacy budget",
        intro=f"{len(runs)} whole jobs that differ in mechanism and outsider's ε alone: "
        f"{first['population']:,} clients, {first['cohort']:g} expected in a round, "
        f"{first['rounds']} rounds, {first['dimension']:,} parameters, clipping norm "
        f"{first['clip']:g}, δ = {figures.small(first['delta'])}, "
        f"{seeds} seed{'' if seeds == 1 else 's'}.",
        chart=_chart(runs, targets),
        findings=[*_findings(runs)],
        tables=[_accuracy(runs, targets), _cost(runs, targets)],
        origin=[
            ("Command", results["command"], True),
            (
                "Machine",
                f"{host['processor']}, {host['cores']} cores, torch {host['torch']}",
                False,
            ),
            ("Spent", f"{cpu:,.0f} s of CPU in {len(runs)} runs", False),
            ("Seeds", "of initial weights and partition; cohorts and noise never repeat", False),
        ],
        config=results["base"],
    )


def _chart(runs: Sequence[Run], targets: Sequence[str]) -> Chart:
    series = []
    for name, curve in CURVES.items():
        held = [(float(target), accuracies(runs, name, target)) for target in targets]
        held = [(x, found) for x, found in held if found]
        if held:
            series.append(
                Series(
                    label=curve.label,
                    value="",
                    x=[x for x, _ in held],
                    y=[statistics.mean(found) for _, found in held],
                    low=[min(found) for _, found in held],
                    high=[max(found) for _, found in held],
                )
            )
    free = accuracies(runs, NO_NOISE, "inf")
    ends = ", ".join(f"{one.label} {100 * one.y[0]:.1f} %" for one in series)
    return Chart(
        title="Test accuracy by the outsider's ε",
        summary=f"Accuracy over ε from {targets[0]} to {targets[-1]}; at ε = {targets[0]}: {ends}.",
        series=tuple(series),
        scale="percent",
        reference=(statistics.mean(free), "no noise") if free else None,
        note="Mean of the seeds; the band reaches from the lowest to the highest.",
        axis="ε, outsider's view",
        ticks=tuple(float(target) for target in targets),
    )


def _findings(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    found = []
    for name, by_target in gaps(runs).items():
        target, points = max(by_target.items(), key=lambda item: abs(item[1]))
        near = abs(points) <= 1
        found.append(
            (
                "good" if near else "warning",
                "within 1 point" if near else "further",
                f"{CURVES[name].label}: at most {abs(points):.2f} points from central noise "
                f"(at ε = {target}, {_signed(points)})",
            )
        )
    return found


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def _accuracy(runs: Sequence[Run], targets: Sequence[str]) -> Table:
    rows: list[tuple[str, list[tuple[str, str]]]] = []
    for name, curve in CURVES.items():
        cells = [_spread(accuracies(runs, name, target)) for target in targets]
        if any(mean for mean, _ in cells):
            rows.append((curve.label, [*cells, _spread(accuracies(runs, NO_NOISE, "inf"))]))
    return Table(
        title="Accuracy",
        lead="Test accuracy in %, mean of the seeds, lowest to highest below, by the outsider's ε.",
        columns=("mechanism", *(f"ε = {target}" for target in targets), "no noise"),
        rows=rows,
    )


def _cost(runs: Sequence[Run], targets: Sequence[str]) -> Table:
    rows: list[tuple[str, list[tuple[str, str]]]] = []
    for name, curve in CURVES.items():
        for target in targets:
            cell = [run for run in runs if key_of(run)[:2] == (name, target)]
            if cell:
                views = [(worst([run["epsilon"][view] for run in cell]), "") for view in _VIEWS]
                noise = (f"{cell[0]['noise_multiplier']:.4g}", "")
                accountant = (cell[0]["accountant"].upper(), "")
                rows.append((curve.label, [*views, noise, accountant]))
    return Table(
        title="Cost, by who looks",
        lead="ε as it came about, worst client of the seeds. ∞: the server sees sums without "
        "noise. Equal ε by another accountant asks for another noise multiplier.",
        columns=("mechanism", *_VIEWS, "noise multiplier", "accountant"),
        rows=rows,
    )


def _spread(found: Sequence[float]) -> tuple[str, str]:
    if not found:
        return "", ""
    mean = f"{100 * statistics.mean(found):.1f}"
    if len(found) == 1:
        return mean, ""
    return mean, f"{100 * min(found):.1f}–{100 * max(found):.1f}"
