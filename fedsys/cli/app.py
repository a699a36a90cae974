"""The command tree."""

from __future__ import annotations

from typing import Annotated

import typer

from fedsys import __version__
from fedsys.cli import (
    agent,
    audit,
    compare,
    coordinator,
    doctor,
    export,
    init,
    job,
    ledger,
    predict,
    privacy,
    publish,
    query,
    runs,
    simulate,
    task,
    task_bundle,
    task_export,
    tune,
    witness,
)
from fedsys.cli.pipes import WithoutPipes
from fedsys.cli.terminal import say

__all__ = ["app"]

app = typer.Typer(
    cls=WithoutPipes,
    help="Federated learning with secure aggregation and privacy that anybody can check.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"fedsys {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    """Federated learning with secure aggregation and privacy that anybody can check."""


app.command("simulate")(simulate.simulate)
app.command("query")(query.query)
app.command("audit")(audit.audit)
app.command("compare")(compare.compare)
app.command("runs")(runs.runs)
app.command("publish")(publish.publish)
app.command("tune")(tune.tune)
app.command("export")(export.export)
app.command("predict")(predict.predict)
app.command("init")(init.init)
app.command("doctor")(doctor.doctor)
_task = task.app
_task.command("export")(task_export.export)
_task.command("hash")(task_bundle.hash_)
_task.command("bundle")(task_bundle.bundle)
app.add_typer(_task, name="task")
app.add_typer(ledger.app, name="ledger")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(job.app, name="job")
app.add_typer(agent.app, name="agent")
app.add_typer(privacy.app, name="privacy")
app.add_typer(witness.app, name="witness")
