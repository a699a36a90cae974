"""``fedsys tune``: search for settings, and account for what the search costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulations.tuning import Tuned

__all__ = ["tune"]


def tune(
    config: Annotated[
        str | None,
        typer.Argument(help="A TOML file or a shipped recipe's name.", show_default="quickstart"),
    ] = None,
    trials: Annotated[
        int,
        typer.Option(min=1, max=100_000, help="Number of trials in all, including resumed ones."),
    ] = 20,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=SPACE",
            help="What to vary: local.learning_rate=log:0.01..1, server.momentum=0..0.95, "
            "local.optimizer=sgd,adam or 'task.options.hidden=8|16'; may be given several times.",
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Metric of the last evaluation; its name says which way is better.")
    ] = "accuracy",
    minimize: Annotated[
        bool | None,
        typer.Option(
            "--minimize/--maximize",
            help="Which way --metric is better, where its name does not say.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace one key for all trials."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The search's folder; new or empty.")
    ] = Path("runs/tuned"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search in --out.")] = False,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:ATTR",
            help="With --resume: import this task, which the search names; only if you trust it.",
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:ATTR",
            help="With --resume: import this strategy, which the search names.",
        ),
    ] = None,
    code: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:ATTR",
            help="With --resume: import this procedure, partition or metric, which the search "
            "names.",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="With --resume: use this Ray cluster, which the search names.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with data files.", show_default="$FEDSYS_DATA"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")] = False,
) -> None:
    """Search for settings with Optuna; every trial is a run, and their privacy costs add up."""
    from fedsys.cli.extras import require

    require("optuna", "sqlalchemy", extra="tune")
    from fedsys import tasks
    from fedsys.cli.finish import audit_and_report
    from fedsys.config import load
    from fedsys.config.named_code import NamedCode
    from fedsys.errors import ConfigError
    from fedsys.report.progress import observer
    from fedsys.run_folder import RunFolder
    from simulations import tuning
    from simulations.search import Search

    changed = config is not None or over or overrides or minimize is not None
    if resume and (changed or metric != "accuracy"):
        raise ConfigError(
            f"--resume goes on with the search that {out} holds; leave out CONFIG, --over, "
            f"--metric, --minimize, --maximize and --set"
        )
    named = NamedCode(task=task, strategy=strategy, cluster=backend, code=tuple(code or ()))
    if not resume and named != NamedCode():
        raise ConfigError(
            "--task, --strategy, --code and --backend say that you trust what a search's folder "
            "names: use them with --resume; a new search takes --set task.name, server.strategy "
            "and the like"
        )
    search = None
    if not resume:
        tasks.look_beside(config)
        base = load(config, overrides or ())
        search = Search.of(base, over or (), metric, minimize=minimize)
    try:
        with observer(quiet=quiet) as watch:
            tuned = tuning.tune(
                search,
                out,
                trials=trials,
                data=data,
                device=device,
                observer=watch,
                finish=audit_and_report,
                named=named,
            )
    except KeyboardInterrupt:
        again = NamedCode.of(RunFolder(out).read_config()).options
        say(
            f"interrupted; continue with `fedsys tune --resume --out {out} --trials {trials}"
            f"{again and f' {again}'}`",
            err=True,
        )
        raise typer.Exit(130) from None
    if not quiet:
        _print(tuned)
    if tuned.best is None:
        raise ConfigError(f"{out}: no trial gave a value; widen --over, in a new --out")


def _print(tuned: Tuned) -> None:
    """The trials, the best of them, and what all of them cost together."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    keys = list(tuned.trials[0].settings)
    headings = ["trial", tuned.metric, *keys]
    rows = [
        [
            str(trial.number),
            "failed" if trial.value is None else f"{trial.value:.4f}",
            *(_shown(trial.settings.get(key, "")) for key in keys),
        ]
        for trial in tuned.trials
    ]
    best = tuned.best.number if tuned.best is not None else None
    if console.is_terminal:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for heading in headings:
            table.add_column(heading)
        for row in rows:
            table.add_row(*row, style="bold green" if row[0] == str(best) else None)
        console.print(table)
    else:
        for row in [headings, *rows]:
            say("  ".join(f"{cell:>{max(len(h), 9)}}" for cell, h in _pairs(row, headings)))
    for line in _conclusions(tuned):
        say(line)


def _pairs(row: Sequence[str], headings: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(row, headings, strict=True))


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _conclusions(tuned: Tuned) -> list[str]:
    from fedsys.report import figures

    lines = []
    total = tuned.total
    if not tuned.protected:
        lines.append("No differential privacy: every trial may reveal anything about any client.")
    elif total is not None and total.curve:
        spent, runs = total.curve[-1].spent, len(total.details.get("runs", [1]))
        together = "1 run cost" if runs == 1 else f"{runs} runs together cost"
        lines.append(
            f"{together} epsilon outsider {figures.epsilon(spent.outsider)}, "
            f"participant {figures.epsilon(spent.participant)}, "
            f"server {figures.epsilon(spent.server)} at delta {figures.small(total.delta)}"
            f" ({tuned.folder / 'total.json'})"
        )
    if tuned.protected and total is not None and not total.passed:
        failed = ", ".join(claim.name for claim in total.claims if claim.holds is False)
        lines.append(f"no privacy claim holds for these runs, audits fail: {failed}")
    if tuned.best is not None:
        value = tuned.best.value or 0.0
        lines += [
            f"best: trial {tuned.best.number}, {tuned.metric} {value:.4f} "
            f"({'lowest' if tuned.minimize else 'highest'}), {tuned.best.folder}",
            f"run it with `fedsys simulate {tuned.folder / 'best.toml'}`: its cost adds to theirs, "
            f"and its ledger, summary, report and export state the total",
        ]
    return lines
