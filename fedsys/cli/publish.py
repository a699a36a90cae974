"""``fedsys publish``: the folder that the outsider's epsilon covers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsys.cli.terminal import say

__all__ = ["publish"]


def publish(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path, typer.Argument(help="The folder to publish; new or empty.")],
) -> None:
    """Write a folder that may be shown to anybody: no private.jsonl, no realised cohorts."""
    from fedsys.cli.finish import audit_and_report
    from fedsys.release.publication import publish_run

    publish_run(run, out)
    checked = audit_and_report(out, private=False)
    if not checked.passed:
        failed = ", ".join(claim.name for claim in checked.claims if claim.holds is False)
        say(f"error: the published folder's audit failed: {failed}", err=True)
        raise typer.Exit(1)
    say(f"published {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
