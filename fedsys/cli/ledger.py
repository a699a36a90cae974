"""``fedsys ledger``: what to record elsewhere, so that nobody can rewrite a run's history."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Annotated

import typer

from fedsys.cli.terminal import say

__all__ = ["app"]

app = typer.Typer(help="A run's privacy ledger.", no_args_is_help=True)


@app.callback()
def ledger() -> None:
    """A run's privacy ledger."""


@app.command()
def head(
    run: Annotated[Path, typer.Argument(help="A run's folder, finished or not.")],
    key: Annotated[
        str | None,
        typer.Option(help="The signer's public key (64 hex digits) or a file that holds it."),
    ] = None,
) -> None:
    """Verify the ledger and print its head: keep it where the coordinator cannot change it.

    The Merkle root that witnesses are asked to cosign, and where they show it, go to standard
    error.

    Anyone who kept a head can check later that no line up to it was changed, added or removed.
    """
    from fedsys.errors import LedgerError
    from fedsys.privacy import load_public_key, read_ledger

    path = run / "ledger.jsonl"
    if not path.exists():
        raise LedgerError(f"{run}: not a run's folder: it holds no ledger.jsonl")
    pinned = None if key is None else load_public_key(key)
    view = read_ledger(path, key=pinned, allow_torn=True)
    say(view.head)
    state = "closed" if view.closed is not None else "open: more lines may follow"
    say(
        f"{view.lines} lines, {len(view.rounds)} rounds, {state}; signed by {view.signer}", err=True
    )
    say(f"log {view.origin}", err=True)
    say(f"root of {view.lines} lines {base64.b64encode(view.tree.root()).decode()}", err=True)
    name = hashlib.sha256(view.origin.encode()).hexdigest()
    say(f"a witness shows its checkpoint at /{name}/checkpoint", err=True)
