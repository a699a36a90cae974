"""What every page has in common: templates, the style sheet, and how a page is written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedsys.errors import RunFolderError
from fedsys.report import figures, plots

__all__ = ["Figure", "environment", "figure", "write"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A drawn chart with its legend: (swatch, label, value) each."""

    chart: plots.Chart
    drawings: dict[str, Markup]
    legend: Sequence[tuple[Markup, str, str]]


def figure(chart: plots.Chart, prefix: str, *, wide: bool = False) -> Figure:
    """Draws a chart for a page.

    Args:
        chart: what to draw.
        prefix: unique on the page.
        wide: whether it has the page's width to itself.
    """
    legend = [
        (plots.swatch(index, chart.kind), series.label, series.value)
        for index, series in enumerate(chart.series)
    ]
    if chart.reference is not None:
        legend.append((plots.reference_swatch(), chart.reference[1], ""))
    return Figure(chart=chart, drawings=plots.draw(chart, prefix, wide=wide), legend=legend)


def environment() -> Environment:
    """Templates that escape everything and refuse undefined names."""
    environment = Environment(
        loader=PackageLoader("fedsys.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        epsilon=figures.epsilon,
        small=figures.small,
        plain=figures.plain,
        count=figures.count,
    )
    environment.globals["stylesheet"] = Markup(
        (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    )
    return environment


def write(path: Path, page: str) -> Path:
    """Replaces the page atomically; a link in its place is replaced, not followed."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(page)
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RunFolderError(
            f"{path}: the report cannot be written: {error.strerror or error}"
        ) from error
    return path
