"""``fedsys task export``: a task's gradient for devices that have neither torch nor its code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from fedsys.graphs import Vetted

__all__ = ["export"]


def export(
    task: Annotated[str, typer.Argument(help="A built-in task, or MODULE:ATTR of your own.")],
    batch_size: Annotated[
        int, typer.Option(help="Examples per step: local.batch_size of the jobs that will use it.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="A new file.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Export again and compare with this file instead."),
    ] = None,
    per_example: Annotated[
        bool,
        typer.Option("--per-example", help='Each example\'s gradient, for unit = "example".'),
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the task; repeatable."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with data files.", show_default="$FEDSYS_DATA"),
    ] = None,
) -> None:
    """Write a task's gradient as an ONNX graph without code, weights or data.

    The graph is compared with torch on full and on padded batches before it is written. The same
    task yields the same bytes: anyone who has the task can re-export it and compare (--check).
    Devices run it with `fedsys agent run --graph`; jobs name its hash in task.graph_sha256.

    A recurrent model is unrolled, which takes up to a minute.
    """
    from fedsys import tasks
    from fedsys.cli.task_options import options_of
    from fedsys.durable import write_atomically
    from fedsys.errors import ConfigError
    from fedsys.tasks.export import export_task

    if (out is None) == (check is None):
        raise ConfigError("give a new file, --out FILE, or a file to compare with, --check FILE")
    if out is not None and out.exists():
        raise ConfigError(f"--out {out}: already exists; give another file")
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    if per_example and batch_size != 1:
        raise ConfigError(
            f"--batch-size {batch_size}: --per-example takes 1, because devices refuse graphs that "
            f"could mix examples"
        )
    options = options_of(option or [])
    loaded = tasks.load(task, options)
    examples = loaded.clients(tasks.DataSource.locate(data)).train
    made = export_task(
        loaded,
        examples,
        name=task,
        options=options,
        batch_size=batch_size,
        kind="example-gradients" if per_example else "gradient",
    )
    if check is not None:
        _compare(made, check)
        return
    if out is None:
        raise ConfigError("--out FILE is missing")
    try:
        write_atomically(out, made.encoded)
    except OSError as error:
        raise ConfigError(f"{out}: {(error.strerror or str(error)).lower()}") from None
    say(f"{out}: {summary(made)}")
    say(f"sha256 {made.sha256}")


def summary(made: Vetted) -> str:
    """What a graph is and costs, on one line."""
    graph = made.graph
    return (
        f"{len(made.encoded):,} bytes, {graph.dimension:,} weights, batches of "
        f"{graph.batch_size}; a step takes {made.memory / 1e6:.1f} MB and "
        f"{made.work / 1e6:,.1f} MFLOP"
    )


def _compare(made: Vetted, path: Path) -> None:
    from fedsys.errors import ConfigError

    try:
        with path.open("rb") as file:
            given = file.read(len(made.encoded) + 1)
    except OSError as error:
        raise ConfigError(f"--check {path}: {(error.strerror or str(error)).lower()}") from None
    if given != made.encoded:
        raise ConfigError(
            f"--check {path}: differs from what this task exports to here (sha256 {made.sha256}): "
            f"the task, its options, --batch-size or the version of torch is another"
        )
    say(f"{path}: is what this task exports to")
    say(f"sha256 {made.sha256}")
