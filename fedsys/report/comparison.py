"""A page that compares runs: one chart, tables, findings, and where they come from.

Styled like a run's report, and self-contained too: no script, nothing fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsys import __version__
from fedsys.report.pages import environment, figure, write
from fedsys.report.plots import Chart

__all__ = ["Comparison", "Table", "build_comparison"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table whose rows are a name and cells.

    Attributes:
        title: what it shows.
        lead: how to read it.
        columns: headings of the names and of each cell.
        rows: a name, and (figure, fine print) for each cell.
    """

    title: str
    lead: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What the page says; all of it is escaped.

    Attributes:
        eyebrow: the kind of page.
        title: its heading.
        intro: one or two sentences on what was run.
        chart: the comparison at a glance; None where there is nothing to draw.
        findings: (tone such as "good" or "warning", one word, one sentence) each.
        tables: in order.
        origin: (label, value, whether it is code) each, including the command.
        config: the configuration that all runs share, as TOML.
    """

    eyebrow: str
    title: str
    intro: str
    chart: Chart | None
    findings: Sequence[tuple[str, str, str]]
    tables: Sequence[Table]
    origin: Sequence[tuple[str, str, bool]]
    config: str = ""


def build_comparison(path: Path, page: Comparison) -> Path:
    """Writes the page and returns its path.

    Raises:
        RunFolderError: it cannot be written.
    """
    template = environment().get_template("comparison.html.j2")
    drawn = None if page.chart is None else figure(page.chart, "c", wide=True)
    return write(path, template.render(version=__version__, page=page, drawn=drawn))
