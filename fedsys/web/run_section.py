"""One run as a page shows it: numbers as the report writes them, and its charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedsys.printable import printable
from fedsys.privacy import VIEWS
from fedsys.report import figures
from fedsys.report.charts import epsilon_chart, metric_charts
from fedsys.report.views import tier
from fedsys.runs.progress import Progress
from fedsys.web.charts import chart_json

__all__ = ["RunSections", "run_section"]

_MOST_METRICS = 8
_TITLES = {"outsider": "An outsider", "participant": "A participant", "server": "The server"}


class RunSections:
    """Sections by key; one is made again only when its run has changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Progress, dict[str, Any]]] = {}

    def of(self, key: str, progress: Progress) -> dict[str, Any]:
        """The section of a run, which is not to be changed."""
        known = self._known.get(key)
        if known is None or known[0] != progress:
            self._known[key] = known = progress, run_section(progress)
        return known[1]

    def drop(self, key: str) -> None:
        """Forget a run."""
        self._known.pop(key, None)


def run_section(progress: Progress) -> dict[str, Any]:
    """What is known of a run, as JSON values.

    Args:
        progress: as read from its folder.
    """
    contents = progress.contents
    charts = metric_charts(contents)[:4] + epsilon_chart(progress.curve, progress)
    task = contents.setting("task", "name")
    mechanism = contents.setting("privacy", "mechanism")
    return {
        "name": contents.name,
        "status": progress.status,
        "task": printable(task, 80) if isinstance(task, str) else "",
        "mechanism": printable(mechanism, 60) if isinstance(mechanism, str) else "",
        "round": progress.round,
        "rounds": progress.rounds,
        "metrics": _metrics(progress),
        "views": _views(progress),
        "budget": figures.epsilon(progress.budget) if progress.budget is not None else "",
        "guarantee": progress.guarantee,
        "delta": figures.small(progress.delta),
        "withheld": printable(progress.withheld),
        "charts": [chart_json(chart) for chart in charts],
        "head": progress.head,
        "lines": progress.lines,
        "cosigned": [
            {"name": printable(each.name, 100), "size": each.size, "at": each.at}
            for each in progress.cosigned
        ],
        "written": round(progress.written),
        "problem": printable(progress.problem),
    }


def _metrics(progress: Progress) -> Sequence[tuple[str, str]]:
    """Names and figures of the last evaluation."""
    return [
        (name.replace("_", " "), figures.metric(name, value))
        for name, value in list(progress.metrics.items())[:_MOST_METRICS]
    ]


def _views(progress: Progress) -> list[dict[str, Any]]:
    """What the run has spent in each view, the share of the budget where it is for that view."""
    sections = []
    for view in map(str, VIEWS):
        value = None if progress.spent is None else getattr(progress.spent, view)
        word, tone = ("withheld", "warning") if progress.withheld else tier(value)
        part = None
        if view == progress.guarantee and progress.budget and value is not None:
            part = min(value / progress.budget, 1.0) if math.isfinite(value) else 1.0
        sections.append(
            {
                "view": view,
                "title": _TITLES[view],
                "epsilon": figures.epsilon(value),
                "tier": word,
                "tone": tone,
                "part": part,
            }
        )
    return sections
