"""A report's charts as JSON, for the page's script to draw in the report's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedsys.report.plots import MAX_POINTS, Chart, Series

__all__ = ["chart_json"]


def chart_json(chart: Chart) -> dict[str, Any]:
    """The chart's values; None where a series has none.

    Args:
        chart: as the report draws it.
    """
    return {
        "title": chart.title,
        "summary": chart.summary,
        "note": chart.note,
        "scale": chart.scale,
        "floor": chart.floor,
        "axis": chart.axis,
        "reference": list(chart.reference) if chart.reference is not None else None,
        "series": [_series(each) for each in chart.series],
    }


def _series(series: Series) -> dict[str, Any]:
    kept = _kept(len(series.x))
    return {
        "label": series.label,
        "value": series.value,
        "x": [float(series.x[at]) for at in kept],
        "y": [_finite(series.y[at]) for at in kept],
    }


def _kept(points: int) -> Sequence[int]:
    """At most `MAX_POINTS` evenly spaced places, including the first and the last."""
    if points <= MAX_POINTS:
        return range(points)
    return [round(at * (points - 1) / (MAX_POINTS - 1)) for at in range(MAX_POINTS)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
