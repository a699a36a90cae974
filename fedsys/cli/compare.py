"""``fedsys compare``: runs side by side, in the terminal or as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsys.cli.terminal import say

__all__ = ["compare"]


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, ended or not.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one run a line, instead of a table.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page, too.")
    ] = None,
) -> None:
    """Show what runs reached and cost, and in which settings they differ."""
    import json
    import shlex

    from fedsys.cli.extras import require
    from fedsys.report.terminal import print_comparison
    from fedsys.run_folder import plain_json
    from fedsys.runs.comparison import compare as compared
    from fedsys.runs.side_by_side import page_of

    if html is not None:
        require("jinja2", "matplotlib", extra="audit")
    table = compared(runs)
    command = shlex.join(["fedsys", "compare", *map(str, runs)])
    page = page_of(table, command=command)
    if html is not None:
        from fedsys.report.comparison import build_comparison

        build_comparison(html, page)
    if as_json:
        for row in table:
            say(json.dumps(plain_json(row), allow_nan=False))
        return
    print_comparison(page)
    if html is not None:
        say(f"wrote {html}")
