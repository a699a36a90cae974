"""Figures for a notebook: a metric over the rounds, and privacy spent next to it."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedsys.errors import FedsysError
from fedsys.report import figures
from fedsys.runs.rows import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_comparison", "draw_run", "metric_names"]

_OTHER = ("round", "outcome", "sampled", "survivors", "clipped_fraction")
_VIEWS = ("outsider", "participant", "server")


def metric_names(history: Rows) -> list[str]:
    """The columns that come from evaluations, accuracy and loss first."""
    found = [
        name for name in history.columns if name not in _OTHER and not name.startswith("epsilon_")
    ]
    leading = ("accuracy", "loss")
    return sorted(found, key=lambda name: leading.index(name) if name in leading else 2)


def draw_run(history: Rows, *, title: str, metric: str | None, budget: float | None) -> Figure:
    """A metric on the left, epsilon by view on the right where any is finite.

    Raises:
        FedsysError: there is nothing to draw, or no such metric.
    """
    name = _chosen(metric, metric_names(history))
    curves = {view: points for view in _VIEWS if (points := _points(history, f"epsilon_{view}"))[0]}
    figure, panels = _figure(2 if curves else 1)
    panels[0].plot(*_points(history, name), marker=_marker(history))
    panels[0].set_ylabel(name)
    panels[0].set_title(title)
    if curves:
        axes = panels[1]
        for view, (rounds, values) in curves.items():
            axes.plot(rounds, values, label=f"{view}: {figures.epsilon(values[-1])}")
        if budget is not None and math.isfinite(budget):
            axes.axhline(
                budget, color="0.5", linestyle=":", label=f"budget: {figures.epsilon(budget)}"
            )
        lowest = min(values[-1] for _, values in curves.values())
        if lowest > 0 and max(values[-1] for _, values in curves.values()) > 5 * lowest:
            axes.set_yscale("log")
        axes.set_ylabel("epsilon spent")
        axes.legend()
    return figure


def draw_comparison(histories: Mapping[str, Rows], metric: str | None) -> Figure:
    """A metric of several runs over the rounds, and over the outsider's epsilon where it is finite.

    Raises:
        FedsysError: there is nothing to draw, or no metric that all runs have.
    """
    shared = [metric_names(history) for history in histories.values()]
    name = _chosen(metric, [each for each in shared[0] if all(each in names for names in shared)])
    costs = {run: _points(history, name, "epsilon_outsider") for run, history in histories.items()}
    private = any(x for x, _ in costs.values())
    figure, panels = _figure(2 if private else 1)
    for run, history in histories.items():
        panels[0].plot(*_points(history, name), label=run, marker=_marker(history))
    panels[0].set_ylabel(name)
    panels[0].legend()
    if private:
        for run, (x, y) in costs.items():
            panels[1].plot(x, y, label=run)
        panels[1].set_xlabel("epsilon spent (outsider)")
        panels[1].set_ylabel(name)
    return figure


def _chosen(metric: str | None, names: Sequence[str]) -> str:
    if metric is None and names:
        return names[0]
    if metric is None:
        raise FedsysError("nothing to draw: no evaluation yet; see evaluation.data and .every")
    if metric not in names:
        raise FedsysError(f"no metric {metric!r} to draw; there are {', '.join(names) or 'none'}")
    return metric


def _points(history: Rows, y: str, x: str = "round") -> tuple[list[float], list[float]]:
    """The points at which both columns hold finite numbers."""
    if x not in history.columns or y not in history.columns:
        return [], []
    pairs = [
        (one, other)
        for one, other in zip(history.column(x), history.column(y), strict=True)
        if _finite(one) and _finite(other)
    ]
    return [one for one, _ in pairs], [other for _, other in pairs]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _marker(history: Rows) -> str:
    """Markers for short histories: a line of one point would be invisible."""
    return "o" if len(history) < 20 else ""


def _figure(panels: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    class Shown(Figure):
        """Shows itself in a notebook, whether or not pyplot was imported."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=100)
            return buffer.getvalue()

    figure = Shown(figsize=(5.2 * panels, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, panels, at + 1) for at in range(panels)]
    for each in axes:
        each.set_xlabel("round")
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
        each.grid(alpha=0.3)
    return figure, axes
