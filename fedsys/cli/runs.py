"""``fedsys runs``: a page over run folders, live while they train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsys.cli.extras import require
from fedsys.cli.terminal import say

__all__ = ["runs"]


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="A folder with runs, or a run's folder.")
    ] = Path("runs"),
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT|unix:PATH", help="On this machine alone; port 0 picks a free one."
        ),
    ] = "localhost:0",
) -> None:
    """Show runs in a browser, live while they train, and side by side; it only reads."""
    import asyncio
    import sys

    require("starlette", "uvicorn", extra="web")
    from fedsys.web.runs import serve_runs

    def ready(url: str) -> None:
        say(f"showing {folder} at {url}")
        say("Ctrl+C ends it", err=True)
        sys.stdout.flush()

    asyncio.run(serve_runs(folder, listen, ready=ready))
