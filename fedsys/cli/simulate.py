"""``fedsys simulate``: train over virtual clients, then audit and report the result."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.terminal import say
from fedsys.cli.tracking import TRACK_HELP

if TYPE_CHECKING:
    from simulations.harness import RunResult

__all__ = ["NAMED_HELP", "simulate"]

NAMED_HELP = (
    "With --resume, --replay or --from: import this {}, which the run names; only if you trust it."
)


def simulate(
    config: Annotated[
        str | None,
        typer.Argument(help="A TOML file or a shipped recipe's name.", show_default="quickstart"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace one key, e.g. rounds.count=10."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder; it must be new or empty.", show_default="runs/<name>"),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same as --set job.seed=N.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with data files.", show_default="$FEDSYS_DATA"),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="local, ray, or a cluster: ray://HOST:PORT.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Continue an interrupted run.")
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Recompute a run without noise; exit 0 if equal."),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="I/N,...",
            help="With --replay: each device's --shard, in order of joining.",
            show_default="0/N,1/N,...",
        ),
    ] = None,
    population: Annotated[
        Path | None,
        typer.Option(
            "--population", metavar="DIR", help="Folder of all runs on these clients, one budget."
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Start from a finished run's model; without CONFIG, more rounds of that run.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="MODULE:ATTR", help=NAMED_HELP.format("task")),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(metavar="MODULE:ATTR", help=NAMED_HELP.format("strategy")),
    ] = None,
    code: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE:ATTR", help=NAMED_HELP.format("other code")),
    ] = None,
    canaries: Annotated[
        int | None,
        typer.Option(min=1, metavar="M", help="Plant M canaries, for `fedsys audit --empirical`."),
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option("--track", metavar="TRACKER", help=TRACK_HELP)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print summary.json at the end.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")] = False,
) -> None:
    """Train one model over many virtual clients and report what it cost in privacy."""
    from fedsys import tasks
    from fedsys.config import load
    from fedsys.config.named_code import NamedCode
    from fedsys.errors import ConfigError, LedgerClosed
    from simulations import harness

    tasks.look_beside(config)

    settings = list(overrides or [])
    if seed is not None:
        settings.append(f"job.seed={seed}")
    goes_on = start is not None and config is None
    stored = resume is not None or goes_on
    named = NamedCode(
        task=task,
        strategy=strategy,
        cluster=backend if stored else None,
        code=tuple(code or ()),
    )
    if backend is not None and resume is None:
        name, _, host = backend.partition("://")
        settings.append(f"engine.backend={name}")
        if host:
            settings.append(f'engine.address="{backend}"')
    if resume is not None and (config is not None or out is not None or settings):
        raise ConfigError(
            f"--resume {resume} uses the configuration stored there; leave out CONFIG, "
            f"--set, --seed and --out"
        )
    if replay is not None:
        if config is not None or settings or resume or out or canaries or start:
            raise ConfigError(
                f"--replay {replay} uses the configuration stored there and writes nothing; "
                f"combine it only with --task, --strategy, --code, --data, --device, --shards, "
                f"--json and --quiet"
            )
        from fedsys.cli.replay import replay_run

        replay_run(
            replay,
            named=named,
            data=data,
            device=device,
            shards=shards,
            as_json=json,
            quiet=quiet,
        )
        return
    if not stored and (task is not None or strategy is not None or code):
        raise ConfigError(
            "--task, --strategy and --code say that you trust the code that a run's folder names: "
            "use them with --resume or --replay; a new run takes --set task.name and the like"
        )
    if start is not None and (resume is not None or canaries is not None):
        raise ConfigError(f"--from {start} begins a new run; leave out --resume and --canaries")
    if shards is not None:
        raise ConfigError("--shards says what devices held; use it with --replay RUN")
    if population is not None and (resume is not None or canaries is not None):
        raise ConfigError("--population takes new runs; leave out --resume and --canaries")
    if resume is not None and canaries is not None:
        raise ConfigError("--canaries plants them in a separate run; leave out --resume")
    if track and canaries is not None:
        raise ConfigError("--canaries makes a run only for its audit; leave out --track")
    from fedsys.cli.tracking import tracked
    from fedsys.report.progress import observer
    from fedsys.run_folder import free_name

    if goes_on and start is not None:
        from simulations.continuing import continued

        asked = continued(start, settings)
        named.require(asked, start)
    else:
        asked = load(config, settings)
    if track and resume is None and out is None:
        out = free_name(population or Path("runs"), asked.job.name)
    with (
        redirect_stdout(sys.stderr) if json else nullcontext(),  # whatever a task's code prints
        observer(quiet=quiet or json) as shown,
        tracked(track, resume or out, shown, quiet=quiet or json) as watch,
    ):
        if resume is not None:
            try:
                result = harness.resume(
                    resume, data=data, device=device, observer=watch, named=named
                )
            except LedgerClosed:
                if _is_reported(resume):
                    raise
                result = harness.ended(resume)
        elif canaries is not None:
            from simulations import canaries as planted

            result = planted.run(
                asked,
                canaries=canaries,
                out=out,
                data=data,
                device=device,
                observer=watch,
            )
        else:
            result = harness.run(
                asked,
                out=out,
                data=data,
                device=device,
                observer=watch,
                population=population,
                start=start,
            )
    _finish(result, json=json, quiet=quiet)


def _resuming(folder: Path) -> str:
    """The command that continues a run of this user's."""
    from fedsys.config.named_code import NamedCode
    from fedsys.run_folder import RunFolder

    named = NamedCode.of(RunFolder(folder).read_config()).options
    return " ".join(filter(None, ["fedsys simulate --resume", shlex.quote(str(folder)), named]))


def _is_reported(folder: Path) -> bool:
    """Whether the page was written since the ledger was."""
    from fedsys.run_folder import RunFolder

    run = RunFolder(folder)
    return run.report.is_file() and run.report.stat().st_mtime >= run.ledger.stat().st_mtime


def _finish(result: RunResult, *, json: bool, quiet: bool) -> None:
    from fedsys.cli.finish import audit_and_report
    from fedsys.errors import RunFolderError

    try:
        checked = audit_and_report(result.folder)
    except (OSError, RunFolderError) as error:
        raise RunFolderError(
            f"{error}; what was trained is kept: fix that, then `{_resuming(result.folder)}` "
            f"writes the report"
        ) from error
    if json:
        typer.echo(result.folder.joinpath("summary.json").read_text(encoding="utf-8"), nl=False)
    elif not quiet:
        from fedsys.report.terminal import print_run

        print_run(result.folder, checked)
    if result.interrupted:
        say(
            f"interrupted after round {result.rounds}; continue with `{_resuming(result.folder)}`",
            err=True,
        )
        raise typer.Exit(130)
    if not checked.passed:
        failed = ", ".join(claim.name for claim in checked.claims if claim.holds is False)
        say(f"error: the run's own audit failed: {failed}", err=True)
        raise typer.Exit(1)
