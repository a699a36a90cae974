"""``fedsys witness``: check that ledgers only grow, and cosign them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsys.cli.extras import require
from fedsys.cli.terminal import say

__all__ = ["app"]

app = typer.Typer(help="Cosign ledgers that only ever grow.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The witness's folder.")]


@app.callback()
def witness() -> None:
    """Cosign ledgers that only ever grow."""


@app.command()
def init(
    folder: Folder,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of its key, by convention a URL without scheme.",
            show_default="this host's name",
        ),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(help="A coordinator's public key, or a log's verifier key; repeatable."),
    ] = None,
) -> None:
    """Create a folder with a key; never restore one from a backup."""
    import socket

    from fedsys.witness.folder import WitnessFolder

    made = WitnessFolder.create(folder, name=name or socket.gethostname(), logs=log or [])
    say(f"witness in {folder}")
    say(str(made.vkey_of(made.settings().name, made.key())))
    if not log:
        say(f"It watches no log yet: fedsys witness watch {folder} KEY", err=True)


@app.command()
def watch(
    folder: Folder,
    key: Annotated[
        str,
        typer.Argument(help="A coordinator's public key (64 hex digits), or a log's verifier key."),
    ],
) -> None:
    """Watch another coordinator's ledgers, or another log; then restart the witness."""
    from fedsys.witness.folder import WitnessFolder, checked_log

    opened = WitnessFolder.open(folder)
    settings = opened.settings()
    logs = list(dict.fromkeys([*settings.logs, checked_log(key)]))
    opened.write_settings(settings.model_copy(update={"logs": logs}))
    say(f"watching {len(logs)}; restart the witness")


@app.command()
def run(
    folder: Folder,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where logs submit; port 0 picks one.")
    ] = "127.0.0.1:7450",
    log: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Serve add-checkpoint until stopped; put TLS in front of it if it is publicly reachable."""
    import sys

    from fedsys.cli.deployment import no_core_dumps
    from fedsys.logs import configure
    from fedsys.witness.folder import WitnessFolder

    require("starlette", "uvicorn", extra="witness")
    from fedsys.witness.http import serve

    configure(log)
    no_core_dumps()

    def ready(port: int) -> None:
        say(f"listening on {listen.rpartition(':')[0]}:{port}")
        sys.stdout.flush()

    serve(WitnessFolder.open(folder), listen=listen, ready=ready)
