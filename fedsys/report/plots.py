"""Line and bar charts as inline SVG that follows the page's light or dark theme.

A chart contains numbers and nothing else: names, units and legends are HTML next to it, so that
they wrap, scale and are escaped like the rest of the page. matplotlib draws with placeholder
colours; CSS variables replace them, so that one drawing serves both themes. Every chart is drawn
twice, for a phone and for a desktop, and the style sheet shows the one that fits: text keeps its
size instead of shrinking with the drawing.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Chart", "Series", "draw", "reference_swatch", "swatch"]

MAX_POINTS = 400
SIZES = {"phone": (322, 200), "desktop": (478, 240)}
WIDE = {"phone": (322, 220), "desktop": (860, 290)}
FONT_PX = 11.0

# Placeholder -> CSS variable. The names are roles; the style sheet gives them colours.
_PALETTE = {
    "#010101": "--c1",
    "#020202": "--c2",
    "#030303": "--c3",
    "#040404": "--c4",
    "#050505": "--c5",
    "#060606": "--c6",
    "#0a0a0a": "--chart-grid",
    "#0b0b0b": "--chart-axis",
    "#0c0c0c": "--chart-text",
    "#0d0d0d": "--chart-reference",
}
_COLOURS = tuple(_PALETTE)[:6]
_GRID, _AXIS, _TEXT, _REFERENCE = tuple(_PALETTE)[6:]
_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2.5), (1.5, 2), (8, 2, 1.5, 2), (3, 3), (10, 4))
_STEPS = [1, 2, 5, 10]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line or one layer of bars.

    Attributes:
        label: for the legend, plain text.
        value: the figure next to the label, usually the last one, already formatted.
        x: rounds, or whatever the chart's axis counts.
        y: values, NaN where there is none.
        low: the lower edge of a band around the line; empty for no band.
        high: its upper edge.
    """

    label: str
    value: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """What to draw and how to read it.

    Attributes:
        title: what is shown, plain text.
        summary: one sentence for readers who cannot see the drawing.
        kind: "line" or "bars" (stacked).
        scale: "linear", "percent" (0 to 1 shown as 0 to 100 %) or "log".
        reference: a level to compare with, and its label.
        floor: the lowest value that the axis must include.
        axis: what x counts.
        ticks: where x is marked, which makes its axis logarithmic; if empty, at whole numbers.
    """

    title: str
    summary: str
    series: tuple[Series, ...]
    kind: str = "line"
    scale: str = "linear"
    reference: tuple[float, str] | None = None
    floor: float | None = None
    note: str = ""
    axis: str = "round"
    ticks: tuple[float, ...] = ()


def draw(chart: Chart, prefix: str, *, wide: bool = False) -> dict[str, Markup]:
    """Draws a chart in every size of `SIZES`, or of `WIDE`.

    Args:
        chart: at most six series, finite reference.
        prefix: unique on the page; starts every identifier inside the SVG.
        wide: whether the chart has the page's width to itself.
    """
    return {
        size: Markup(_svg(chart, pixels, f"{prefix}-{size}"))
        for size, pixels in (WIDE if wide else SIZES).items()
    }


def swatch(index: int, kind: str) -> Markup:
    """The legend's sample of the line or layer ``index`` of a chart of that kind."""
    colour = _PALETTE[_COLOURS[index % 6]]
    if kind == "bars":
        shape = Markup('<rect x="6" y="0" width="10" height="8" rx="2" style="fill: var({})"/>')
        return _SWATCH.format(shape.format(colour))
    dashes = " ".join(str(length) for length in _DASHES[index % 6]) or "none"
    line = Markup('<path d="M1 4H21" style="stroke: var({}); stroke-dasharray: {}"/>')
    return _SWATCH.format(line.format(colour, dashes))


def reference_swatch() -> Markup:
    """The legend's sample of the reference line."""
    line = Markup('<path d="M1 4H21" style="stroke: var({}); stroke-dasharray: 2 3"/>')
    return _SWATCH.format(line.format(_PALETTE[_REFERENCE]))


_SWATCH = Markup('<svg class="swatch" viewBox="0 0 22 8" aria-hidden="true">{}</svg>')


def _svg(chart: Chart, pixels: tuple[int, int], prefix: str) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.family": "DejaVu Sans",
        "font.size": FONT_PX,
        "text.color": _TEXT,
        "axes.edgecolor": _AXIS,
        "axes.linewidth": 1.0,
        "xtick.color": _AXIS,
        "ytick.color": _AXIS,
        "xtick.labelcolor": _TEXT,
        "ytick.labelcolor": _TEXT,
        "grid.color": _GRID,
        "grid.linewidth": 1.0,
        "path.simplify": True,
    }
    # At 72 dpi a point is a pixel, so the sizes above are CSS pixels.
    with rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a single round gives an axis of zero width
        figure = Figure(
            figsize=(pixels[0] / 72, pixels[1] / 72),
            dpi=72,
            layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03),
        )
        FigureCanvasSVG(figure)
        _plot(chart, figure.add_subplot(), narrow=pixels[0] < 400)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return _themed(buffer.getvalue(), prefix)


def _plot(chart: Chart, axes: Axes, *, narrow: bool) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator

    thinned = [_thin(series) for series in chart.series]
    if chart.kind == "bars":
        _stack(axes, thinned)
    else:
        for index, (x, y) in enumerate(thinned):
            band = chart.series[index]
            if band.low:
                axes.fill_between(
                    band.x, band.low, band.high, color=_COLOURS[index % 6], alpha=0.07, linewidth=0
                )
            axes.plot(
                x,
                y,
                color=_COLOURS[index % 6],
                linewidth=1.9,
                dashes=_DASHES[index % 6] or (None, None),
                marker="o" if len(x) == 1 or chart.ticks else None,
                markersize=5 if len(x) == 1 else 4,
                solid_capstyle="round",
            )
    if chart.reference is not None:
        axes.axhline(chart.reference[0], color=_REFERENCE, linewidth=1.2, dashes=(2, 3), zorder=1)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0, pad=5)
    axes.tick_params(axis="x", length=3.5, pad=4)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    if chart.ticks:
        axes.set_xscale("log")
        axes.set_xticks(chart.ticks, [_number(tick) for tick in chart.ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(
            MaxNLocator(5 if narrow else 9, integer=True, min_n_ticks=1, steps=_STEPS)
        )
    _scale(chart, axes, narrow=narrow)
    axes.set_xlabel(chart.axis, color=_TEXT, labelpad=3)


def _scale(chart: Chart, axes: Axes, *, narrow: bool) -> None:
    from matplotlib.ticker import (
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        NullLocator,
    )

    low, high = _extent(chart)
    if chart.scale == "log":
        axes.set_yscale("log")
        axes.set_ylim(low / 1.15, high * 1.15)
        decades = np.log10(high / low)
        subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(_number))
        return
    if chart.floor is not None:
        low = min(low, chart.floor)
    margin = 0.04 * (high - low) or max(abs(high), 1.0) * 0.1
    bottom = low if chart.floor is not None and low == chart.floor else low - margin
    top = high + margin
    if chart.scale == "percent":
        bottom, top = max(bottom, 0.0), min(max(top, 0.01), 1.0)
        axes.yaxis.set_major_formatter(FuncFormatter(partial(_percent, span=top - bottom)))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(_number))
    whole = chart.kind == "bars"
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=whole, steps=_STEPS))
    axes.set_ylim(bottom, top)


def _number(value: float, _position: int | None = None) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.6g}"


def _percent(value: float, _position: int | None = None, *, span: float) -> str:
    return f"{100 * value:.0f} %" if span >= 0.04 else f"{100 * value:.1f} %"


def _extent(chart: Chart) -> tuple[float, float]:
    """The lowest and highest value drawn; bars reach from zero to their sums."""
    if chart.kind == "bars":
        totals = np.sum([series.y for series in chart.series], axis=0)
        return 0.0, float(max(np.max(totals, initial=0.0), 1.0))
    drawn = [edge for series in chart.series for edge in (series.y, series.low, series.high)]
    values = np.concatenate([np.asarray(edge, dtype=float) for edge in drawn])
    values = values[np.isfinite(values)]
    if chart.reference is not None:
        values = np.append(values, chart.reference[0])
    if chart.scale == "log":
        values = values[values > 0]
    if not values.size:
        return (1.0, 10.0) if chart.scale == "log" else (0.0, 1.0)
    return float(values.min()), float(values.max())


def _stack(axes: Axes, layers: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
    base = np.zeros(len(layers[0][0]) if layers else 0)
    for index, (x, y) in enumerate(layers):
        step = float(np.min(np.diff(x))) if len(x) > 1 else 1.0
        axes.bar(x, y, 0.8 * step, bottom=base, color=_COLOURS[index % 6], linewidth=0)
        base = base + y


def _thin(series: Series) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `MAX_POINTS` evenly spaced points, including the first and the last."""
    x, y = np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)
    if len(x) <= MAX_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).astype(int))
    return x[kept], y[kept]


def _themed(svg: str, prefix: str) -> str:
    """Makes matplotlib's document safe to embed in a page, with the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    referenced = set(re.findall(r"(?:url\(#|href=\"#)([\w.-]+)", svg))
    svg = re.sub(r' id="([\w.-]+)"', _keep_identifier(referenced, prefix), svg)
    svg = re.sub(r"(url\(#|xlink:href=\"#|href=\"#)", rf"\g<1>{prefix}-", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r" ?font: [^;\"]*;?| ?font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"#0[0-9a-f]{5}\b", lambda match: _variable(match.group()), svg)
    svg = re.sub(
        r"\d+\.\d{2,}", lambda match: f"{float(match.group()):.1f}".removesuffix(".0"), svg
    )
    svg = re.sub(r">\s+<", "><", re.sub(r" ?\n", " ", svg))
    return svg.replace("<svg", '<svg class="chart" aria-hidden="true" focusable="false"', 1).strip()


def _keep_identifier(referenced: set[str], prefix: str) -> Callable[[re.Match[str]], str]:
    def rewrite(match: re.Match[str]) -> str:
        return f' id="{prefix}-{match.group(1)}"' if match.group(1) in referenced else ""

    return rewrite


def _variable(colour: str) -> str:
    return f"var({_PALETTE[colour]})" if colour in _PALETTE else colour
