"""``fedsys agent approve``: the owner's consent to a version of a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from client.approval import Candidate
    from fedsys.wire.bundle import Bundle

__all__ = ["approve"]


def approve(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The device's folder.")],
    what: Annotated[
        str,
        typer.Argument(
            metavar="TASK|GRAPH|BUNDLE",
            help="An installed task, a graph's file, or a file that `fedsys task bundle` wrote.",
        ),
    ],
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the task; repeatable."),
    ] = None,
    options_file: Annotated[
        Path | None,
        typer.Option(
            "--options", metavar="FILE", help="A configuration whose \\[task.options] are used."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Approve it, instead of showing it.")] = False,
) -> None:
    """Show a task's hash, its options and what changed, and with --yes let it run.

    The hash covers every file of the task's package, or its graph. The rest of policy.toml stays;
    comments of your own in it are kept in policy.toml.before alone.
    """
    from client.approval import approve as approve_
    from client.approval import changes_since
    from client.identity import Credentials
    from fedsys.cli.task_options import options_in, options_of
    from fedsys.errors import ConfigError

    credentials = Credentials.load(folder)
    stored = {} if options_file is None else options_in(options_file, what)
    options = {**stored, **options_of(option or [])}
    candidate, bundle = _candidate(what, options, credentials.signer)
    say(f"task     {candidate.task}")
    say(f"sha256   {candidate.sha256}")
    say(f"options  {dict(candidate.options)}")
    for line in changes_since(folder, candidate):
        say(f"  {line}")
    if not yes:
        say(f"nothing was changed; to let it run: fedsys agent approve {folder} {what} ... --yes")
        return
    try:
        kept = None if bundle is None else _keep(folder, bundle)
        approve_(folder, candidate)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{folder}: {reason}; the agent must own its folder") from None
    say(f"approved in {folder / 'policy.toml'}")
    if kept is not None and bundle is not None and bundle.kind == "wheel":
        say(f"next: pip install --no-deps {kept}")
    elif kept is not None:
        say(f"next: fedsys agent run {folder} --graph {kept} --data SOURCE")
    say("an agent that runs has loaded the former version: restart it")


def _candidate(
    what: str, options: dict[str, object], signer: bytes
) -> tuple[Candidate, Bundle | None]:
    from client.approval import Candidate
    from fedsys.errors import ConfigError
    from fedsys.graphs import read_graph
    from fedsys.wire.bundle import is_bundle, read_bundle

    path = Path(what)
    if not path.is_file():
        from fedsys import tasks
        from fedsys.tasks.code import code_of

        code = code_of(tasks.load(what, options))
        made = Candidate(task=what, sha256=code.sha256, options=options, files=code.files)
        return made, None
    if options:
        raise ConfigError(f"{what}: a file contains its options; leave --option and --options out")
    if not is_bundle(path):
        graph = read_graph(path)
        return _of_graph(graph.graph.task, graph.graph.options, graph.sha256), None
    bundle = read_bundle(path, signer)
    if bundle.kind == "graph":
        return _checked_graph(path, bundle), bundle
    return _checked_wheel(path, bundle), bundle


def _of_graph(task: str, options: object, sha256: str) -> Candidate:
    from client.approval import Candidate

    return Candidate(
        task=task,
        sha256=sha256,
        options=dict(options),  # type: ignore[call-overload]
        files={"the graph": sha256},
    )


def _checked_graph(path: Path, bundle: Bundle) -> Candidate:
    """The graph of a bundle, vetted as an agent would."""
    import tempfile

    from fedsys.errors import ConfigError
    from fedsys.graphs import read_graph

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, bundle.name)
        file.write_bytes(bundle.payload)
        graph = read_graph(file)
    if graph.sha256 != bundle.sha256 or graph.graph.task != bundle.task:
        raise ConfigError(f"{path}: its graph is not the one that its manifest states")
    return _of_graph(graph.graph.task, graph.graph.options, graph.sha256)


def _checked_wheel(path: Path, bundle: Bundle) -> Candidate:
    """The wheel of a bundle, hashed as it will be once it is installed; nothing is imported."""
    import io

    from client.approval import Candidate
    from fedsys.errors import ConfigError
    from fedsys.wire.task_hash import hash_of, wheel_files

    files = wheel_files(io.BytesIO(bundle.payload), bundle.name)
    if hash_of(bundle.entry, files) != bundle.sha256:
        raise ConfigError(f"{path}: its wheel does not have the hash that its manifest states")
    return Candidate(task=bundle.task, sha256=bundle.sha256, options=bundle.options, files=files)


def _keep(folder: Path, bundle: Bundle) -> Path:
    from fedsys.durable import make_folder, write_atomically

    place = folder / "tasks" / bundle.sha256
    make_folder(place, mode=0o700)
    write_atomically(place / bundle.name, bundle.payload)
    return place / bundle.name
