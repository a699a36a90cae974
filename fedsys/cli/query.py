"""``fedsys query``: ask what data clients hold, or how good a model is on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedsys.cli.terminal import say

__all__ = ["query"]


def query(
    target: Annotated[
        str,
        typer.Argument(metavar="TASK|DIR", help="A task, or a running coordinator's folder."),
    ],
    spec: Annotated[Path, typer.Argument(metavar="SPEC.toml", help="The questions.")],
    of: Annotated[
        Path | None,
        typer.Option("--of", metavar="RUN", help="Evaluate this run's model on clients' own rows."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace one key, e.g. privacy.epsilon=1."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder; it must be new or empty.", show_default="runs/<name>"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with data files.", show_default="$FEDSYS_DATA"),
    ] = None,
    population: Annotated[
        Path | None,
        typer.Option(
            "--population", metavar="DIR", help="Folder of all runs on these clients, one budget."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
) -> None:
    """Ask clients one round of questions: only noisy sums of their answers are seen."""
    from fedsys.config import dump, validate
    from fedsys.config.overrides import apply
    from fedsys.errors import ConfigError
    from simulations.asking import spec_settings

    deployed = Path(target, "coordinator.toml").is_file()
    if deployed and of is not None:
        kept = Path(target, "jobs", of)
        of = (kept if kept.is_dir() else of).resolve()
    tree = spec_settings(spec, task=None if deployed else target, of=of)
    if deployed:
        tree.get("population", {}).pop("clients", None)
    apply(overrides or [], tree)
    config = validate(tree)
    if deployed:
        if out is not None or data is not None or population is not None or json:
            raise ConfigError(
                f"{target} is a coordinator's folder, whose devices have the data: leave out "
                f"--out, --data, --population and --json"
            )
        from fedsys.cli.grpc_operator import operator

        with operator(Path(target)) as calls:
            status = calls.submit(dump(config))
        say(f"submitted job {status.id} ({status.name})")
        say(f"watch it with: fedsys job watch {target} {status.id}")
        return
    from fedsys.report.progress import observer
    from simulations import harness

    with observer(quiet=True) as watch:
        result = harness.run(config, out=out, data=data, observer=watch, population=population)
    _finish(result.folder, as_json=json)


def _finish(folder: Path, *, as_json: bool) -> None:
    import json

    from fedsys.cli.finish import audit_and_report
    from fedsys.report.answers import print_answers
    from fedsys.report.terminal import print_run

    checked = audit_and_report(folder)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    stated = summary.get("query")
    if as_json:
        typer.echo(json.dumps(stated, indent=2))
    else:
        if stated is not None:
            print_answers(stated)
        print_run(folder, checked)
    if not checked.passed:
        failed = ", ".join(claim.name for claim in checked.claims if claim.holds is False)
        say(f"error: the run's own audit failed: {failed}", err=True)
        raise typer.Exit(1)
    if stated is None:
        say(f"error: the round gave no answer; see {folder}", err=True)
        raise typer.Exit(1)
