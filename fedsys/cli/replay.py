"""``fedsys simulate --replay``: recompute a run without noise, and say whether it is equal."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from fedsys.config.named_code import NamedCode
    from simulations.replay import Replay

__all__ = ["replay_run"]


def replay_run(
    run: Path,
    *,
    named: NamedCode,
    data: Path | None,
    device: str,
    shards: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Replay a run and print the result; exit 1 where something differs.

    Raises:
        FedsysError: the run cannot be replayed; the message says why.
    """
    from simulations.replay import replay

    live = sys.stderr.isatty() and not (quiet or as_json)

    def show(number: int, of: int) -> None:
        typer.echo(f"\r{number} of {of} rounds are equal", nl=number == of, err=True)

    found = replay(
        run,
        named=named,
        data=data,
        device=device,
        shards=None if shards is None else shards.split(","),
        observer=show if live else None,
    )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
    elif not quiet:
        for name, value in _rows(run, found):
            say(f"{name:12s}{value}")
    if found.difference is not None:
        raise typer.Exit(1)


def _rows(run: Path, found: Replay) -> list[tuple[str, str]]:
    kind = "devices" if found.deployed else "virtual clients"
    lost = f", {found.lost} more without a model" if found.lost else ""
    answers = f", {found.answered} answers about the model" if found.answered else ""
    rows = [
        ("run", f"{run}: {found.clients} {kind}, {found.committed} committed rounds{lost}"),
        (
            "replayed",
            f"{found.replayed} rounds are bit-identical, {found.trained} updates{answers}",
        ),
    ]
    if found.difference is not None:
        rows += [
            ("DIFFERS", found.difference.what),
            ("  ledger", found.difference.recorded),
            ("  replay", found.difference.replayed),
        ]
        if found.other_versions:
            rows.append(("versions", "here " + ", ".join(found.other_versions)))
        held = "the devices' --shard, their threads" if found.deployed else "the data, --device"
        rows.append(("check", f"{held}, versions and processor type must be those of the run"))
    elif found.model_sha256 is not None:
        rows.append(("model", f"bit-identical: {found.model_sha256}"))
    else:
        rows.append(("model", "none yet: the run has not ended"))
    return rows
