"""``fedsys task hash`` and ``fedsys task bundle``: what owners are asked to approve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from fedsys.wire.bundle import Bundle

__all__ = ["bundle", "hash_"]

Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An option of the task; repeatable."),
]
What = Annotated[
    str, typer.Argument(metavar="TASK|GRAPH", help="An installed task, or a graph's file.")
]


def hash_(
    what: What,
    option: Options = None,
    files: Annotated[bool, typer.Option("--files", help="List every file with its hash.")] = False,
) -> None:
    """Print the SHA-256 that policies and jobs state for a task.

    It covers every file of the distribution that the task was installed with, or of its package.
    """
    from fedsys.cli.task_options import options_of

    if Path(what).is_file():
        from fedsys.graphs import read_graph

        say(read_graph(Path(what)).sha256)
        return
    from fedsys import tasks
    from fedsys.tasks.code import code_of

    code = code_of(tasks.load(what, options_of(option or [])))
    if files:
        for name, sha256 in sorted(code.files.items()):
            say(f"{sha256}  {name}")
    say(code.sha256)


def bundle(
    what: What,
    coordinator: Annotated[
        Path, typer.Option(metavar="DIR", help="The coordinator's folder, whose key signs.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A new file.")],
    wheel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The wheel that installs the task.")
    ] = None,
    option: Options = None,
    options_file: Annotated[
        Path | None,
        typer.Option(
            "--options", metavar="FILE", help="A configuration whose \\[task.options] are used."
        ),
    ] = None,
) -> None:
    """Sign a version of a task for the owners of devices: `fedsys agent approve DIR FILE`.

    For a task of one's own, the wheel must be the one that is installed here.
    """
    from fedsys.cli.task_options import options_in, options_of
    from fedsys.errors import ConfigError
    from fedsys.wire.bundle import write_bundle
    from server.home.folder import Home

    if out.exists():
        raise ConfigError(f"--out {out}: already exists; give another file")
    stored = {} if options_file is None else options_in(options_file, what)
    options = {**stored, **options_of(option or [])}
    made = _of_graph(Path(what)) if Path(what).is_file() else _of_wheel(what, wheel, options)
    if made.kind == "graph" and (wheel is not None or options):
        raise ConfigError("a graph contains its options and needs no wheel; leave both out")
    try:
        write_bundle(out, made, Home.open(coordinator).signing_key)
    except OSError as error:
        raise ConfigError(f"--out {out}: {(error.strerror or str(error)).lower()}") from None
    say(f"wrote {out}: {made.task} with options {dict(made.options)}")
    say(f"sha256 {made.sha256}")


def _of_graph(path: Path) -> Bundle:
    from fedsys.graphs import read_graph
    from fedsys.wire.bundle import Bundle

    vetted = read_graph(path)
    return Bundle(
        task=vetted.graph.task,
        options=dict(vetted.graph.options),
        sha256=vetted.sha256,
        kind="graph",
        entry="",
        name=path.name,
        payload=vetted.encoded,
    )


def _of_wheel(task: str, wheel: Path | None, options: dict[str, object]) -> Bundle:
    from fedsys import tasks
    from fedsys.errors import ConfigError
    from fedsys.tasks.code import code_of
    from fedsys.wire.bundle import Bundle
    from fedsys.wire.task_hash import hash_of, wheel_files

    if wheel is None:
        raise ConfigError("--wheel FILE is missing: the wheel that installs the task on devices")
    if not wheel.is_file():  # the size of an archive in a device is not known beforehand
        raise ConfigError(f"--wheel {wheel}: no such file")
    code = code_of(tasks.load(task, options))
    try:
        with wheel.open("rb") as content:
            files = wheel_files(content, str(wheel))
        payload = wheel.read_bytes()
    except OSError as error:
        raise ConfigError(f"--wheel {wheel}: {(error.strerror or str(error)).lower()}") from None
    if hash_of(code.entry, files) != code.sha256:
        other = sorted(
            name
            for name in files.keys() | code.files.keys()
            if files.get(name) != code.files.get(name)
        )
        raise ConfigError(
            f"--wheel {wheel}: is not what is installed here ({', '.join(other[:5])} differ); "
            f"install it first: pip install --force-reinstall --no-deps {wheel}"
        )
    return Bundle(
        task=task,
        options=options,
        sha256=code.sha256,
        kind="wheel",
        entry=code.entry,
        name=wheel.name,
        payload=payload,
    )
