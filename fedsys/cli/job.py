"""``fedsys job``: submit and follow a coordinator's jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.deployment import prepare
from fedsys.cli.terminal import say
from fedsys.cli.tracking import TRACK_HELP, send_to, trackers_of

if TYPE_CHECKING:
    from fedsys.wire import fleet_pb2

__all__ = ["app"]

app = typer.Typer(help="Submit jobs to a running coordinator.", no_args_is_help=True)
app.callback()(prepare)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.")]
Id = Annotated[str | None, typer.Argument(metavar="[ID]", show_default="the newest job")]


@app.command()
def submit(
    folder: Folder,
    config: Annotated[str, typer.Argument(help="A TOML file or a shipped recipe's name.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace one key, e.g. rounds.count=10."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the job's id.")] = False,
) -> None:
    """Queue a job; jobs run one after another."""
    from fedsys.cli.grpc_operator import operator
    from fedsys.config import dump, load
    from fedsys.errors import ConfigError
    from fedsys.preprocessing import REMEDY, builtin, why_not_deployed, why_withheld

    loaded = load(config, overrides or [])
    reason = why_not_deployed(builtin(loaded.task.name, loaded.task.options))
    if reason is not None:
        raise ConfigError(f"task {loaded.task.name} cannot run on devices: {reason}")
    with operator(folder) as calls:
        status = calls.submit(dump(loaded))
    withheld = why_withheld(builtin(loaded.task.name, loaded.task.options), loaded.privacy.unit)
    if withheld is not None and loaded.privacy.mechanism != "none":
        say(f"NO PRIVACY CLAIM: {withheld}; the job's audit will fail: {REMEDY}", err=True)
    if quiet:
        say(status.id)
    else:
        say(f"submitted job {status.id} ({status.name})")
        say(f"watch it with: fedsys job watch {folder} {status.id}")


@app.command("list")
def list_(folder: Folder) -> None:
    """List all jobs in order of submission."""
    from fedsys.cli.grpc_operator import operator

    with operator(folder) as calls:
        for status in calls.list():
            say(describe(status))


@app.command()
def show(folder: Folder, id: Id = None) -> None:
    """Show one job and its refusals."""
    from fedsys.cli.grpc_operator import operator

    with operator(folder) as calls:
        status = calls.show(_id([each.id for each in calls.list()], id))
    say(describe(status))
    if status.reason:
        say(f"  {status.reason}")
    for refusal in status.refusals:
        say(f"  refused: {refusal}")


@app.command()
def watch(folder: Folder, id: Id = None) -> None:
    """Follow a job to its end; exit 0 only if it completed."""
    from fedsys.cli.grpc_operator import operator

    with operator(folder) as calls:
        status = None
        for status in calls.watch(_id([each.id for each in calls.list()], id)):
            say(describe(status))
    if status is None or status.status != "completed":
        if status is not None:
            for refusal in status.refusals:
                say(f"  refused: {refusal}", err=True)
            if status.reason:
                say(f"error: {status.reason}", err=True)
        raise typer.Exit(1)


@app.command()
def cancel(folder: Folder, id: Id = None) -> None:
    """Stop a job after the current round; what it spent stays spent."""
    from fedsys.cli.grpc_operator import NoCoordinator, operator

    try:
        with operator(folder) as calls:
            status = calls.cancel(_id([each.id for each in calls.list()], id))
        say(describe(status))
        if status.status != "cancelled":
            say("it ends after the current round")
    except NoCoordinator:
        say(_cancel_without(folder, id))


@app.command()
def fetch(
    folder: Folder,
    id: Annotated[str, typer.Argument(metavar="ID")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    track: Annotated[
        list[str] | None, typer.Option("--track", metavar="TRACKER", help=TRACK_HELP)
    ] = None,
) -> None:
    """Copy a finished job's run folder for `fedsys audit`; it holds server-side secrets."""
    import shutil

    from fedsys.cli.finish import audit_and_report
    from fedsys.errors import ConfigError
    from fedsys.run_folder import RunFolder, disk_errors
    from server.home.folder import Home
    from server.home.state import ACTIVE_JOB, State

    trackers = trackers_of(track)
    home, state = Home.open(folder), State.open(folder)
    try:
        row = state.job(id)
    finally:
        state.close()
    source = RunFolder(home.jobs / row.id)
    if row.status in ACTIVE_JOB or not source.summary.exists():
        raise ConfigError(f"job {id} has no result ({row.status}); see `fedsys job show`")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"OUT {out}: not empty; give a new folder")
    target = RunFolder.create(out)
    with disk_errors(out):
        shutil.copytree(source.path, target.path, dirs_exist_ok=True)
    checked = audit_and_report(out)
    send_to(trackers, out)
    say(f"{out}: {row.status}, audit {'passes' if checked.passed else 'FAILS'}")
    if not checked.passed:
        raise typer.Exit(1)


def describe(status: fleet_pb2.JobStatus) -> str:
    """One job as one line."""
    parts = [status.id, status.name, status.status]
    if status.rounds:
        parts.append(f"round {status.round}/{status.rounds}")
    if status.stage:
        parts.append(status.stage)
    if status.HasField("epsilon"):
        budget = f" of {status.budget:.2f}" if status.HasField("budget") else ""
        parts.append(f"epsilon {status.epsilon:.2f}{budget}")
    parts += [f"{name} {value:.4f}" for name, value in sorted(status.metrics.items())]
    return "  ".join(parts)


def _cancel_without(folder: Path, id: str | None) -> str:
    """Cancel a job whose coordinator is not running."""
    from server.home.folder import Home
    from server.home.state import State

    with Home.open(folder).alone():
        state = State.open(folder)
        try:
            row = state.cancel_job(_id([each.id for each in state.jobs()], id))
        finally:
            state.close()
    return f"cancelled job {row.id} ({row.name}); the coordinator ends it at its next start"


def _id(jobs: list[str], id: str | None) -> str:
    from fedsys.errors import ConfigError

    if id is not None:
        return id
    if not jobs:
        raise ConfigError("there is no job yet; submit one with `fedsys job submit`")
    return jobs[-1]
