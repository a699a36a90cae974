"""``fedsys audit``: re-derive every claim that a run's folder can support."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["audit"]


def audit(
    run: Annotated[Path, typer.Argument(help="A run's folder, private or published.")],
    key: Annotated[
        str | None,
        typer.Option(help="The signer's public key (64 hex digits) or a file that holds it."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print audit.json.")] = False,
) -> None:
    """Check a run: exit 0 if every claim holds, 1 if one does not, 2 if nothing is there."""
    from fedsys.audit import audit_run, to_json

    result = audit_run(run, key=key)
    text = to_json(result)
    if json:
        typer.echo(text)
    else:
        from fedsys.report.terminal import print_audit

        print_audit(result)
    if not result.passed:
        raise typer.Exit(1)
