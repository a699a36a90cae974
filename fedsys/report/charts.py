"""Which charts a report shows, and their summaries in text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from fedsys.records import EpsilonPoint
from fedsys.report import figures
from fedsys.report.contents import RoundDiagnostics, RunContents
from fedsys.report.plots import Chart, Series

__all__ = [
    "Budgeted",
    "client_charts",
    "diagnostic_charts",
    "epsilon_chart",
    "metric_charts",
]

VIEWS = ("outsider", "participant", "server")


def metric_charts(folder: RunContents) -> list[Chart]:
    """One chart per metric over the rounds."""
    charts = []
    for name, (rounds, values) in folder.metrics.items():
        fraction = "accuracy" in name and all(0 <= value <= 1 for value in values)
        last = figures.metric(name, values[-1])
        title = name.replace("_", " ").capitalize()
        devices = _device_series(folder, name)
        series = (Series(label="test data", value=last, x=rounds, y=values), *devices)
        also = "".join(f"; {each.label}: {each.value}" for each in devices)
        charts.append(
            Chart(
                title=title,
                summary=f"{title} over rounds {rounds[0]} to {rounds[-1]}, ending at {last}{also}.",
                series=series,
                scale="percent" if fraction else "linear",
                floor=0.0 if not fraction and min(values) >= 0 else None,
            )
        )
    return charts


def _device_series(folder: RunContents, name: str) -> tuple[Series, ...]:
    """A metric's mean over devices' own rows, with its intervals, where rounds asked for it."""
    asked = folder.setting("evaluation", "questions")
    questions = asked if isinstance(asked, list) else []
    wanted = [
        each.get("name")
        for each in questions
        if isinstance(each, dict) and each.get("ask") == "mean" and each.get("column") == name
    ]
    points = [
        (float(each.round), answer.estimates[0])
        for each in folder.on_devices
        for answer in each.answers
        if wanted and answer.name == wanted[0] and answer.estimates
    ]
    if not points:
        return ()
    return (
        Series(
            label="devices' own rows",
            value=figures.metric(name, points[-1][1].value),
            x=[at for at, _ in points],
            y=[each.value for _, each in points],
            low=[each.value if each.low is None else each.low for _, each in points],
            high=[each.value if each.high is None else each.high for _, each in points],
        ),
    )


class Budgeted(Protocol):
    """What a run's budget is, and in which view."""

    @property
    def budget(self) -> float | None:
        """Epsilon that may be spent; None without a budget."""

    @property
    def guarantee(self) -> str:
        """The view that the budget is for."""


def epsilon_chart(curve: Sequence[EpsilonPoint], facts: Budgeted) -> list[Chart]:
    """Privacy spent against the budget; no chart where nothing finite was derived."""
    series, endless = [], []
    for view in VIEWS:
        values = [getattr(point.spent, view) for point in curve]
        drawn = [
            value if value is not None and math.isfinite(value) else math.nan for value in values
        ]
        if any(not math.isnan(value) for value in drawn):
            series.append(
                Series(
                    label=view,
                    value=figures.epsilon(values[-1]),
                    x=[point.round for point in curve],
                    y=drawn,
                )
            )
        elif values and values[-1] is not None:
            endless.append(view)
    if not series:
        return []
    budget = facts.budget if facts.budget is not None and math.isfinite(facts.budget) else None
    highest = max(value for one in series for value in one.y if not math.isnan(value))
    outsider = [value for value in series[0].y if not math.isnan(value)]
    scale = "log" if min(outsider) > 0 and highest > 5 * max(outsider) else "linear"
    ends = ", ".join(f"{one.label} {one.value}" for one in series)
    notes = ["Logarithmic scale."] if scale == "log" else []
    if endless:
        notes.append(f"Not drawn, because it is infinite: {' and '.join(endless)}.")
    return [
        Chart(
            title="Privacy spent (ε), by view",
            summary=f"Privacy spent over {len(curve)} rounds, ending at {ends}.",
            series=tuple(series),
            scale=scale,
            floor=0.0,
            reference=None
            if budget is None
            else (budget, f"budget ({facts.guarantee}) {figures.epsilon(budget)}"),
            note=" ".join(notes),
        )
    ]


def diagnostic_charts(folder: RunContents) -> list[Chart]:
    """What only the server may see: cohorts, dropouts, clipping, noise."""
    rounds = folder.diagnostics
    if not rounds:
        return []
    charts = [
        _time_to_accuracy(folder, rounds),
        _chart(
            "Cohort",
            "clients invited, and those that stayed to the end",
            rounds,
            (
                ("sampled", lambda each: each.sampled),
                ("survived", lambda each: each.survivors),
            ),
            floor=0.0,
        ),
        _dropouts(rounds),
        _chart(
            "Updates clipped",
            "share of updates longer than the clipping norm",
            rounds,
            (("clipped", lambda each: each.clipped_fraction),),
            scale="percent",
            floor=0.0,
        ),
        _chart(
            "Updates that were not finite",
            "clients whose update counted as zero",
            rounds if any(each.not_finite for each in rounds) else (),
            (("not finite", lambda each: each.not_finite),),
            floor=0.0,
        ),
        _chart(
            "Noise to signal",
            "norm of the noise over that of the summed updates",
            rounds,
            (("noise / signal", lambda each: each.noise_to_signal),),
            floor=0.0,
        ),
    ]
    return [chart for chart in charts if chart is not None]


def client_charts(folder: RunContents) -> list[Chart]:
    """How the last model serves single clients: a histogram of each metric."""
    if folder.clients is None:
        return []
    charts = []
    for name, each in folder.clients.metrics.items():
        if not each.values or each.mean is None or each.worst_decile is None:
            continue
        low, high = min(each.values), max(each.values)
        counts = [0] * _BINS
        for value in each.values:
            place = _BINS * (value - low) / (high - low) if high > low else 0.0
            counts[min(_BINS - 1, int(place))] += 1
        mean, worst = figures.plain(each.mean), figures.plain(each.worst_decile)
        label = name.replace("_", " ")
        charts.append(
            Chart(
                title=f"{label.capitalize()}, client by client",
                summary=f"{label} of {figures.count(len(each.values))} clients from "
                f"{figures.plain(low)} to {figures.plain(high)}: mean {mean}, worst decile "
                f"{worst}.",
                series=(
                    Series(
                        label="clients",
                        value=f"mean {mean}, worst decile {worst}",
                        x=list(range(1, _BINS + 1)),
                        y=counts,
                    ),
                ),
                kind="bars",
                note=f"clients in each tenth of the range from {figures.plain(low)} to "
                f"{figures.plain(high)}",
                axis="tenth of the range",
            )
        )
    return charts


_BINS = 10
_UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def _time_to_accuracy(folder: RunContents, rounds: Sequence[RoundDiagnostics]) -> Chart | None:
    """Accuracy over the simulated clock, where there is one."""
    ends = {each.round: each.simulated_seconds for each in rounds}
    evaluated, values = folder.metrics.get("accuracy", ([], []))
    points = [
        (end, value)
        for number, value in zip(evaluated, values, strict=True)
        if (end := ends.get(number)) is not None
    ]
    if not points:
        return None
    total = points[-1][0]
    size, unit = next((one for one in _UNITS if total >= 10 * one[0]), _UNITS[-1])
    last = figures.metric("accuracy", points[-1][1])
    return Chart(
        title="Accuracy over simulated time",
        summary=f"Accuracy over {figures.duration(total)} of simulated time, ending at {last}.",
        series=(
            Series(
                label="test data",
                value=last,
                x=[round(end / size) for end, _ in points],
                y=[value for _, value in points],
            ),
        ),
        scale="percent",
        note=f"over {unit} of simulated time, including stragglers and deadlines",
    )


def _chart(
    title: str,
    note: str,
    rounds: Sequence[RoundDiagnostics],
    lines: tuple[tuple[str, Callable[[RoundDiagnostics], float | None]], ...],
    *,
    scale: str = "linear",
    floor: float | None = None,
) -> Chart | None:
    series = []
    for label, pick in lines:
        known = [(each.round, value) for each in rounds if (value := pick(each)) is not None]
        if known:
            values = [value for _, value in known]
            mean = math.fsum(values) / len(values)
            shown = figures.percent(mean) if scale == "percent" else f"{mean:,.3g}"
            series.append(
                Series(label=label, value=f"mean {shown}", x=[each for each, _ in known], y=values)
            )
    if not series:
        return None
    ends = ", ".join(f"{one.label} {one.value}" for one in series)
    return Chart(
        title=title,
        summary=f"{title} over {len(rounds)} rounds: {ends}.",
        series=tuple(series),
        scale=scale,
        floor=floor,
        note=note,
    )


def _dropouts(rounds: Sequence[RoundDiagnostics]) -> Chart | None:
    stages = list(dict.fromkeys(stage for each in rounds for stage in each.dropped))
    if not stages:
        return None
    kept, rest = stages[:5], set(stages[5:])
    named = [(stage, {stage}) for stage in kept] + ([("other", rest)] if rest else [])
    series = []
    for label, members in named:
        counts = [
            sum(count for stage, count in each.dropped.items() if stage in members)
            for each in rounds
        ]
        series.append(
            Series(
                label=label,
                value=f"{figures.count(sum(counts))} in all",
                x=[each.round for each in rounds],
                y=counts,
            )
        )
    total = sum(sum(each.dropped.values()) for each in rounds)
    return Chart(
        title="Dropouts by stage",
        summary=f"Clients lost over {len(rounds)} rounds: {figures.count(total)}, by the stage of "
        "the protocol that they did not answer.",
        series=tuple(series),
        kind="bars",
        note="clients that did not answer, by protocol stage",
    )
