"""``fedsys job``: submit and follow a coordinator's jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.deployment import prepare
from fedsys.cli.job_lines import describe, fetched_json, job_json
from fedsys.cli.terminal import say
from fedsys.cli.tracking import TRACK_HELP, send_to, trackers_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedsys.wire import fleet_pb2

__all__ = ["app"]

app = typer.Typer(help="Submit jobs to a running coordinator.", no_args_is_help=True)
app.callback()(prepare)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one job a line, instead of text.")]
_AWAY_SECONDS = 600.0
"""How long `watch` waits for a coordinator that is being started again."""
Id = Annotated[str | None, typer.Argument(metavar="[ID]", show_default="the newest job")]


@app.command()
def submit(
    folder: Folder,
    config: Annotated[str, typer.Argument(help="A TOML file or a shipped recipe's name.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace one key, e.g. rounds.count=10."),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            "--from", metavar="ID", help="Start from the model that another job, now over, reached."
        ),
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the job's id.")] = False,
    as_json: Json = False,
) -> None:
    """Queue a job, once it was checked that this fleet could run it.

    Jobs on devices that do not overlap run at once.
    """
    from fedsys.cli.grpc_operator import operator
    from fedsys.config import dump, load
    from fedsys.errors import ConfigError
    from fedsys.preprocessing import REMEDY, builtin, why_not_deployed, why_withheld

    loaded = load(config, overrides or [])
    reason = why_not_deployed(builtin(loaded.task.name, loaded.task.options))
    if reason is not None:
        raise ConfigError(f"task {loaded.task.name} cannot run on devices: {reason}")
    with operator(folder) as calls:
        status = calls.submit(dump(loaded), start=start)
    withheld = why_withheld(builtin(loaded.task.name, loaded.task.options), loaded.privacy.unit)
    if withheld is not None and loaded.privacy.mechanism != "none":
        say(f"NO PRIVACY CLAIM: {withheld}; the job's audit will fail: {REMEDY}", err=True)
    if as_json:
        say(job_json(status))
    elif quiet:
        say(status.id)
    else:
        say(f"submitted job {status.id} ({status.name})")
        say(f"watch it with: fedsys job watch {folder} {status.id}")


@app.command("list")
def list_(folder: Folder, as_json: Json = False) -> None:
    """List all jobs in order of submission."""
    from fedsys.cli.grpc_operator import operator

    with operator(folder) as calls:
        for status in calls.list():
            say(job_json(status) if as_json else describe(status))


@app.command()
def show(folder: Folder, id: Id = None, as_json: Json = False) -> None:
    """Show one job and its refusals."""
    from fedsys.cli.grpc_operator import operator

    with operator(folder) as calls:
        status = calls.show(_id([each.id for each in calls.list()], id))
    if as_json:
        say(job_json(status))
        return
    say(describe(status))
    if status.reason:
        say(f"  {status.reason}")
    for refusal in status.refusals:
        say(f"  refused: {refusal}")


@app.command()
def watch(folder: Folder, id: Id = None, as_json: Json = False) -> None:
    """Follow a job to its end, over restarts of the coordinator; exit 0 only if it completed."""
    status = None
    for status in _followed(folder, id):
        say(job_json(status) if as_json else describe(status))
    if status is None or status.status not in ("completed", "stopped-early"):
        if status is not None and not as_json:
            for refusal in status.refusals:
                say(f"  refused: {refusal}", err=True)
            if status.reason:
                say(f"error: {status.reason}", err=True)
        raise typer.Exit(1)


def _followed(folder: Path, id: str | None) -> Iterator[fleet_pb2.JobStatus]:
    """Every change of a job's status until it is over; a coordinator that is away is waited for.

    Raises:
        NoCoordinator: it was not there at first, or did not come back.
    """
    import time

    from fedsys.cli.grpc_operator import NoCoordinator, operator

    with operator(folder) as calls:
        wanted = _id([each.id for each in calls.list()], id)
    away: float | None = None
    while True:
        try:
            with operator(folder) as calls:
                for status in calls.watch(wanted):
                    away = None
                    yield status
            return
        except NoCoordinator:
            if away is None:
                away = time.monotonic()
                say("the coordinator is away; waiting for it", err=True)
            if time.monotonic() - away > _AWAY_SECONDS:
                raise
        time.sleep(1.0)


@app.command()
def resume(folder: Folder, id: Id = None, as_json: Json = False) -> None:
    """Have a job go on that was paused because too few devices were there."""
    from fedsys.cli.grpc_operator import operator

    with operator(folder) as calls:
        status = calls.resume(_id([each.id for each in calls.list()], id))
    say(job_json(status) if as_json else describe(status))


@app.command()
def cancel(folder: Folder, id: Id = None, as_json: Json = False) -> None:
    """Stop a job after the current round; what it spent stays spent."""
    from fedsys.cli.grpc_operator import NoCoordinator, operator

    after = "it ends after the current round"
    try:
        with operator(folder) as calls:
            status = calls.cancel(_id([each.id for each in calls.list()], id))
    except NoCoordinator:
        status, after = _cancel_without(folder, id), "the coordinator ends it at its next start"
    if as_json:
        say(job_json(status))
        return
    say(describe(status))
    if status.status != "cancelled":
        say(after)


@app.command()
def fetch(
    folder: Folder,
    id: Annotated[str, typer.Argument(metavar="ID")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    track: Annotated[
        list[str] | None, typer.Option("--track", metavar="TRACKER", help=TRACK_HELP)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
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
        target.path.chmod(0o700)  # who took part is in it
    checked = audit_and_report(out)
    send_to(trackers, out)
    if as_json:
        say(fetched_json(row.id, row.status, out, audit=checked.passed))
    else:
        say(f"{out}: {row.status}, audit {'passes' if checked.passed else 'FAILS'}")
    if not checked.passed:
        raise typer.Exit(1)


def _cancel_without(folder: Path, id: str | None) -> fleet_pb2.JobStatus:
    """Cancel a job whose coordinator is not running."""
    from server.grpc_operator import job_status
    from server.home.folder import Home
    from server.home.state import State

    home = Home.open(folder)
    with home.alone():
        state = State.open(folder)
        try:
            row = state.cancel_job(_id([each.id for each in state.jobs()], id))
            return job_status(home, state, row)
        finally:
            state.close()


def _id(jobs: list[str], id: str | None) -> str:
    from fedsys.errors import ConfigError

    if id is not None:
        return id
    if not jobs:
        raise ConfigError("there is no job yet; submit one with `fedsys job submit`")
    return jobs[-1]
