"""Whatever path a command is given, it ends soon with one line: derived from the commands, so that
a new one cannot be forgotten."""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from fedsys.cli.app import app
from fedsys.errors import FedsysError
from tests.reading import reads_at_most

SECONDS = 40
MEBIBYTES = 1024
TABLE = "x.csv"

READ: dict[str, str] = {
    "simulate config": "simulate @.toml --out out",
    "simulate data": "simulate quickstart --data @ --out out --set task.name=mnist",
    "simulate resume": "simulate --resume @",
    "simulate replay": "simulate --replay @",
    "simulate population": "simulate quickstart --population @",
    "simulate start": "simulate --from @ --out out",
    "query target": "query @ spec.toml",
    "query spec": "query digits @.toml --out out",
    "query of": "query digits spec.toml --of @ --out out",
    "query data": "query mnist spec.toml --data @ --out out",
    "query population": "query digits spec.toml --population @",
    "audit runs": "audit @",
    "audit key": "audit empty --key @",
    "audit witness": "audit empty --witness @",
    "audit checkpoint": "audit empty --checkpoint @",
    "audit authority": "audit empty --authority @",
    "compare runs": "compare @",
    "publish run": "publish @ out",
    "tune config": "tune @.toml --out out --over local.learning_rate=0.1..1",
    "tune out": "tune --out @ --resume",
    "tune data": "tune quickstart --data @ --out out --over local.learning_rate=0.1..1 --set "
    "task.name=mnist",
    "export run": "export @ out.safetensors",
    "export data": "export empty out.onnx --data @",
    "predict run": f"predict @ {TABLE}",
    "predict file": "predict empty @.csv",
    "doctor config": "doctor @.toml",
    "doctor data": "doctor task.toml --data @",
    "task schema file": "task schema @.csv --label a",
    "task from-query run": "task from-query @",
    "task read config": "task read @.toml",
    "task read data": "task read task.toml --data @",
    "task export check": "task export digits --check @",
    "task export data": "task export mnist --data @ -o out.graph",
    "task hash what": "task hash @",
    "task bundle what": "task bundle @ --coordinator empty -o out",
    "task bundle coordinator": "task bundle digits --coordinator @ -o out",
    "task bundle wheel": "task bundle digits --wheel @.whl --coordinator empty -o out",
    "task bundle options_file": "task bundle digits --options-file @.toml --coordinator empty -o o",
    "ledger head run": "ledger head @",
    "ledger head key": "ledger head empty --key @",
    "coordinator init roster_key": "coordinator init out --host localhost --roster-key @",
    "coordinator enroll folder": "coordinator enroll @ name",
    "coordinator run folder": "coordinator run @ --listen 127.0.0.1:0",
    "coordinator nodes folder": "coordinator nodes @",
    "coordinator revoke folder": "coordinator revoke @ name",
    "coordinator rotate folder": "coordinator rotate @",
    "coordinator roster folder": "coordinator roster @",
    "coordinator roster accept": "coordinator roster empty --accept @",
    "coordinator sign-roster key": "coordinator sign-roster @ statement",
    "coordinator sign-roster statement": "coordinator sign-roster key @",
    "coordinator sign-roster after": "coordinator sign-roster key statement --after @",
    "coordinator backup folder": "coordinator backup @ out",
    "coordinator restore file": "coordinator restore @ out",
    "coordinator move folder": "coordinator move @ out",
    "coordinator recover folder": "coordinator recover @",
    "coordinator web folder": "coordinator web @",
    "job submit folder": "job submit @ quickstart",
    "job submit config": "job submit empty @.toml",
    "job list folder": "job list @",
    "job show folder": "job show @",
    "job watch folder": "job watch @",
    "job resume folder": "job resume @",
    "job cancel folder": "job cancel @",
    "job fetch folder": "job fetch @ 1 out",
    "agent inspect file": "agent inspect @",
    "agent set-address folder": "agent set-address @ localhost:1",
    "agent approve folder": "agent approve @ digits",
    "agent approve what": "agent approve empty @",
    "agent approve options_file": "agent approve empty digits --options-file @.toml",
    "agent join folder": "agent join localhost:1 @ --token x",
    "agent run folder": "agent run @ --data digits",
    "agent run graph": "agent run empty --graph @ --data x.npz",
    "agent run options_file": "agent run empty --data digits --options-file @.toml",
    "agent status folder": "agent status @",
    "agent pause folder": "agent pause @",
    "agent resume folder": "agent resume @",
    "agent leave folder": "agent leave @ --offline",
    "agent doctor folder": "agent doctor @",
    "witness watch folder": f"witness watch @ {'ab' * 32}",
    "witness run folder": "witness run @ --listen 127.0.0.1:0",
}
"""By command and parameter: a command line in which ``@`` is the path, with a suffix if it needs
one."""
WRITTEN = {
    "audit registry",
    "compare html",
    "coordinator backup file",
    "coordinator init folder",
    "coordinator move file",
    "coordinator restore folder",
    "coordinator roster propose",
    "coordinator templates out",
    "export out",
    "init directory",
    "job fetch out",
    "predict out",
    "privacy plan plot",
    "publish out",
    "query out",
    "simulate out",
    "task bundle out",
    "task export out",
    "task from-query out",
    "task schema out",
    "witness init folder",
}
"""What is written, and must be new."""
NO_PATH = {
    "agent join address",
    "agent run data",  # TASK=FOLDER: a task's own files, as --data of the others
    "agent set-address address",
    "coordinator enroll name",
    "coordinator revoke name",
    "job cancel id",
    "job fetch id",
    "job fetch track",
    "job resume id",
    "job show id",
    "job watch id",
    "runs folder",  # serves whatever is there: tests/fedsys/web
    "simulate track",
    "task export task",
    "witness watch key",
}
_NAMES_A_PATH = re.compile(r"\b(file|folder|dir)s?\b", re.IGNORECASE)


def parameters() -> Iterator[str]:
    """Each parameter of a command that is or may be a path, as ``command parameter``."""

    def of(command: Any, name: str) -> Iterator[str]:
        if isinstance(command, click.Group) or hasattr(command, "commands"):
            for each, inner in command.commands.items():
                yield from of(inner, f"{name} {each}".strip())
            return
        for each in command.params:
            said = f"{each.metavar or ''} {getattr(each, 'help', '') or ''}"
            text = "String" in type(each.type).__name__
            argument = each.param_type_name == "argument"
            if "Path" in type(each.type).__name__ or (
                text and (argument or _NAMES_A_PATH.search(said))
            ):
                yield f"{name} {each.name}"

    yield from of(typer.main.get_command(app), "")


def test_no_path_of_a_command_is_forgotten() -> None:
    found = set(parameters())
    listed = {*READ, *WRITTEN, *NO_PATH}
    assert found - listed == set(), "say above how each of these is attacked"
    assert listed - found == set(), "no command has these any more"


NAMES = (
    "answers.jsonl",
    "canaries.jsonl",
    "config.toml",
    "coordinator.toml",
    "data.json",
    "device.toml",
    "journal.json",
    "ledger.jsonl",
    "metrics.jsonl",
    "model.pt",
    "policy.toml",
    "population.toml",
    "private.jsonl",
    "search.json",
    "state.db",
    "summary.json",
    "trials.jsonl",
    "witness.toml",
)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        os.truncate(file.fileno(), 10 << 30)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a loop": lambda path: path.symlink_to(path.name),
    "a socket": _socket,
    "ten gigabytes": _sparse,
    "brackets": lambda path: path.write_bytes(b"[" * 200_000),
    "octets": lambda path: path.write_bytes(b"\xff\xfe\x00\x1b[31m\n" * 1000),
    "numbers": lambda path: path.write_bytes(
        b'{"version":1,"round":' + b"9" * 5000 + b',"x":1e999,"name":"\\ud800"}\n'
    ),
    "no text": lambda path: path.write_bytes(b""),
}


def _folder_of(fill: Callable[[Path], object], path: Path) -> None:
    path.mkdir()
    for name in NAMES:
        fill(path / name)


_ALONE = ("a pipe", "a device", "a loop", "ten gigabytes", "brackets", "numbers", "no text")
_INSIDE = ("a pipe", "a device", "a socket", "ten gigabytes", "brackets", "octets", "numbers")
HOSTILE: dict[str, Callable[[Path], object]] = {
    **{name: FILES[name] for name in _ALONE},
    **{f"a folder of {name}": functools.partial(_folder_of, FILES[name]) for name in _INSIDE},
}


class Late(BaseException):
    """A command that did not end."""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEDSYS_DATA", raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a command ran"))
    Path("empty").mkdir()
    Path("key").write_bytes(b"k" * 32)
    Path("key").chmod(0o600)
    Path("statement").write_text("{}")
    Path("spec.toml").write_text('[query]\nquestions = [{ name = "n", kind = "count" }]\n')
    Path("task.toml").write_text('[task]\nname = "mnist"\n')
    Path(TABLE).write_text("a,b\n1,2\n")

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(line: str, make: Callable[[Path], object], at: Path) -> str:
    """What is wrong with how a command ends that is given such a path; empty if nothing."""
    found = re.search(r"@(\.\w+)?", line)
    path = at / f"made{(found and found[1]) or ''}"
    at.mkdir()
    make(path)
    arguments = [each.replace((found and found[0]) or "@", str(path)) for each in line.split()]
    signal.alarm(SECONDS)
    try:
        with reads_at_most(MEBIBYTES):
            done = CliRunner().invoke(app, arguments)
    except Late:
        return "it did not end"
    finally:
        signal.alarm(0)
    error = done.exception
    if isinstance(error, SystemExit):
        return "" if error.code in (1, 2) else f"exit status {error.code}"
    if not isinstance(error, FedsysError):
        return f"{error!r}: {done.output[-200:]}"
    return "" if "\n" not in str(error).strip() else f"several lines: {str(error)[:200]!r}"


def wrong(parameter: str, kinds: list[str], tmp_path: Path) -> list[tuple[str, str]]:
    places = (tmp_path / f"at-{number}" for number in range(len(kinds)))
    ends = [
        (kind, refused(READ[parameter], HOSTILE[kind], place))
        for kind, place in zip(kinds, places, strict=True)
    ]
    return [(kind, end) for kind, end in ends if end]


@pytest.mark.slow
@pytest.mark.parametrize("parameter", READ)
def test_every_path_is_refused_in_a_line(parameter: str, tmp_path: Path) -> None:
    assert wrong(parameter, list(HOSTILE), tmp_path) == []
