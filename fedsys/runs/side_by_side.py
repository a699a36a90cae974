"""What a page or a terminal shows of a comparison: a chart, findings, tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedsys.printable import printable
from fedsys.report import figures
from fedsys.report.comparison import Comparison as Page
from fedsys.report.comparison import Table
from fedsys.report.contents import RunContents, read
from fedsys.report.plots import Chart, Series
from fedsys.runs.comparison import Comparison

__all__ = ["MOST_LINES", "page_of", "shown"]

MOST_LINES = 6
"""Lines that a chart tells apart."""
_LEADING = ("accuracy", "loss")
_ENDED = ("completed", "budget-exhausted")


def shown(column: str, value: Any) -> str:
    """A cell of a comparison as text; epsilon is rounded up.

    >>> shown("accuracy", 0.91234), shown("epsilon_outsider", 8.5912), shown("rounds", 40)
    ('91.2 %', '8.60', '40')
    """
    if value is None:
        return "–"
    if column.startswith("epsilon_"):
        return figures.epsilon(value)
    if column == "delta":
        return figures.small(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return printable(value, 200)
    if isinstance(value, int):
        return str(value)
    return "∞" if math.isinf(value) else figures.metric(column, value)


def page_of(comparison: Comparison, *, command: str) -> Page:
    """The comparison as a page.

    Args:
        comparison: the runs.
        command: what makes the same page again.
    """
    contents = {name: read(run.folder, private=False) for name, run in comparison.runs.items()}
    metrics = _metric_names(contents)
    names = {name: printable(name, 80) for name in comparison.runs}
    return Page(
        eyebrow="Comparison",
        title=" · ".join(names.values()) if len(names) <= 3 else f"{len(names)} runs compared",
        intro=_intro(comparison),
        chart=_chart(contents, metrics, names),
        findings=_findings(comparison, metrics),
        tables=[each for each in (_results(comparison), _settings(comparison)) if each],
        origin=[
            ("Command", printable(command, 2000), True),
            *((names[name], printable(run.folder, 1000), True) for name, run in _runs(comparison)),
            (
                "Epsilons",
                "as each run's summary states them; `fedsys audit RUN` derives them",
                False,
            ),
        ],
    )


def _runs(comparison: Comparison) -> Sequence[tuple[str, Any]]:
    return list(comparison.runs.items())


def _intro(comparison: Comparison) -> str:
    count = len(comparison.differing)
    if len(comparison) == 1:
        return "One run; give more to see in what they differ."
    if not count:
        return "The runs have the same settings."
    some = ", ".join(printable(key, 60) for key in comparison.differing[:4])
    return f"They differ in {count} setting{'' if count == 1 else 's'}: {some}" + (
        "." if count <= 4 else ", …"
    )


def _metric_names(contents: Mapping[str, RunContents]) -> list[str]:
    """Metrics by how many runs have them, accuracy and loss first among equals."""
    counts: dict[str, int] = {}
    for each in contents.values():
        for name in each.metrics:
            counts[name] = counts.get(name, 0) + 1

    def rank(name: str) -> tuple[int, int]:
        return -counts[name], _LEADING.index(name) if name in _LEADING else len(_LEADING)

    return sorted(counts, key=rank)


def _chart(
    contents: Mapping[str, RunContents], metrics: Sequence[str], names: Mapping[str, str]
) -> Chart | None:
    """The first metric of up to `MOST_LINES` runs over the rounds."""
    if not metrics:
        return None
    metric = metrics[0]
    drawn = [
        (names[name], each.metrics[metric])
        for name, each in contents.items()
        if metric in each.metrics
    ]
    series = tuple(
        Series(label=name, value=figures.metric(metric, values[-1]), x=rounds, y=values)
        for name, (rounds, values) in drawn[:MOST_LINES]
    )
    values = [value for each in series for value in each.y]
    fraction = "accuracy" in metric and all(0 <= value <= 1 for value in values)
    title = metric.replace("_", " ").capitalize()
    ends = ", ".join(f"{each.label} {each.value}" for each in series)
    left = len(drawn) - len(series)
    return Chart(
        title=title,
        summary=f"{title} over the rounds, ending at: {ends}.",
        series=series,
        scale="percent" if fraction else "linear",
        floor=0.0 if not fraction and min(values) >= 0 else None,
        note=f"test data; the first {MOST_LINES} runs of {len(drawn)}" if left else "test data",
    )


def _findings(comparison: Comparison, metrics: Sequence[str]) -> list[tuple[str, str, str]]:
    found = []
    for metric, best, word in (("accuracy", max, "highest"), ("loss", min, "lowest")):
        rows = [row for row in comparison if _finite(row.get(metric))]
        if metric in metrics and len(rows) > 1:
            top = best(rows, key=lambda row: row[metric])
            text = f"{printable(top['run'], 80)}: {figures.metric(metric, top[metric])}"
            found.append(("good", f"{word} {metric}", text))
            break
    spent = [row for row in comparison if _finite(row["epsilon_outsider"])]
    if len(spent) > 1:
        least = min(spent, key=lambda row: row["epsilon_outsider"])
        text = f"{printable(least['run'], 80)}: ε {figures.epsilon(least['epsilon_outsider'])}"
        found.append(("good", "least ε (outsider)", text))
    if len({row["delta"] for row in spent}) > 1:
        found.append(("warning", "δ differs", "epsilons at different δ do not compare"))
    going = [printable(row["run"], 80) for row in comparison if row["status"] not in _ENDED]
    if going:
        found.append(("note", "not ended", ", ".join(going[:10])))
    other = [key for key in ("task.name", "data.source") if key in comparison.differing]
    if other:
        found.append(("warning", "other data", f"the runs differ in {' and '.join(other)}"))
    return found


def _results(comparison: Comparison) -> Table:
    columns = [name for name in comparison.columns if name not in comparison.differing][1:]
    return Table(
        title="Results and costs",
        lead="Metrics of the last evaluation, and ε in the three views at each run's own δ.",
        columns=["run", *map(_heading, columns)],
        rows=[
            (printable(row["run"], 80), [(shown(name, row[name]), "") for name in columns])
            for row in comparison
        ],
    )


def _settings(comparison: Comparison) -> Table | None:
    if not comparison.differing:
        return None
    names = list(comparison.runs)
    return Table(
        title="Settings that differ",
        lead="All other settings are equal; those that affect speed alone are left out.",
        columns=["setting", *(printable(name, 80) for name in names)],
        rows=[
            (
                printable(key, 80),
                [(_setting(comparison.settings[name].get(key)), "") for name in names],
            )
            for key in comparison.differing
        ],
    )


def _heading(column: str) -> str:
    if column.startswith("epsilon_"):
        return f"ε {column.removeprefix('epsilon_')}"
    return "δ" if column == "delta" else printable(column.replace("_", " "), 40)


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else printable(value, 200)


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
