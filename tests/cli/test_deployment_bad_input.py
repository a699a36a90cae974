"""Whatever is wrong with a deployment's input: one line that names it and the fix, status 2."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedsys.cli import main
from server.home import Home
from server.state import State
from tests.e2e.deployment import Port, running_port

Fedsys = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def fedsys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Fedsys:
    """Runs a command here as its entry point does: exit status, and lines on standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSYS_DATA", raising=False)

    def run(*words: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["fedsys", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main()
        return int(leaving.value.code or 0), capsys.readouterr().err.strip().splitlines()

    return run


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    with running_port(tmp_path / "fleet") as found:
        yield found


def is_one_line(found: tuple[int, list[str]], *fragments: str) -> None:
    code, lines = found
    assert code == 2, lines
    assert len(lines) == 1, lines
    for fragment in fragments:
        assert fragment in lines[0]


WITHOUT_COORDINATOR = [
    (("coordinator", "init", "taken"), ["taken", "not empty", "new folder"]),
    (("coordinator", "init", "file/x"), ["file/x", "not a directory", "folder that can be made"]),
    (("coordinator", "init", "new", "--host", "bad name"), ["--host bad name", "hub.example.org"]),
    (("coordinator", "init", "new", "--host", "-x"), ["--host -x", "hub.example.org"]),
    (("coordinator", "init", "new", "--epsilon", "0"), ["--epsilon 0", "leave it out"]),
    (("coordinator", "init", "new", "--epsilon", "nan"), ["--epsilon nan", "leave it out"]),
    (("coordinator", "init", "new", "--roster-key", "zz"), ["'zz'", "64 hexadecimal digits"]),
    (("coordinator", "enroll", "new", "a"), ["new", "fedsys coordinator init new"]),
    (("coordinator", "run", "new"), ["new", "fedsys coordinator init new"]),
    (("coordinator", "sign-roster", "no/key"), ["no/key", "can be written"]),
    (("coordinator", "sign-roster", "key", "none"), ["none", "roster --propose"]),
    (("coordinator", "templates", "file"), ["OUT file", "can be written"]),
    (("job", "submit", "new", "silo"), ["new", "fedsys coordinator init new"]),
    (("agent", "join", "localhost:1", "--token", "x", "new"), ["token is damaged", "whole line"]),
    (("agent", "run", "new", "--data", "digits"), ["new", "fedsys agent join"]),
    (("agent", "status", "new"), ["new", "fedsys agent join"]),
    (("agent", "pause", "new"), ["new", "fedsys agent join"]),
    (("agent", "leave", "new"), ["new", "fedsys agent join"]),
    (("agent", "doctor", "new"), ["new", "fedsys agent join"]),
]


@pytest.mark.parametrize(
    ("words", "fragments"), WITHOUT_COORDINATOR, ids=lambda value: " ".join(value)
)
def test_wrong_before_there_is_a_coordinator(
    fedsys: Fedsys, words: tuple[str, ...], fragments: list[str]
) -> None:
    Path("taken").mkdir()
    Path("taken/x").touch()
    Path("file").touch()
    is_one_line(fedsys(*words), *fragments)
    assert not Path("new").exists(), "nothing is left behind"


LISTEN = [
    ("nonsense", "expected HOST:PORT"),
    ("localhost", "expected HOST:PORT"),
    ("two words:7443", "expected HOST:PORT"),
    ("::1:7443", "expected HOST:PORT"),
    ("localhost:x", "a number from 0 to 65535"),
    ("localhost:99999", "a number from 0 to 65535"),
    ("localhost:-1", "a number from 0 to 65535"),
    ("host.invalid:7443", "name or address of this machine"),
    ("192.0.2.1:0", "address of this machine"),
]


@pytest.mark.parametrize(("address", "fragment"), LISTEN)
def test_where_nobody_can_listen(
    fedsys: Fedsys, tmp_path: Path, address: str, fragment: str
) -> None:
    Home.create(tmp_path / "hq", hosts=["localhost"])
    found = fedsys("coordinator", "run", "hq", "--listen", address)
    is_one_line(found, f"error: --listen {address}: ", fragment)


def test_a_port_that_is_taken(fedsys: Fedsys, tmp_path: Path) -> None:
    Home.create(tmp_path / "hq", hosts=["localhost"])
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        found = fedsys("coordinator", "run", "hq", "--listen", address)
    is_one_line(found, f"--listen {address}: address already in use; give another port")


def test_a_second_coordinator(fedsys: Fedsys, tmp_path: Path) -> None:
    home = Home.create(tmp_path / "hq", hosts=["localhost"])
    with home.alone():
        is_one_line(fedsys("coordinator", "run", "hq"), "hq", "another coordinator is running")


def test_tokens_for_nobody(fedsys: Fedsys, tmp_path: Path) -> None:
    Home.create(tmp_path / "hq", hosts=["localhost"])
    is_one_line(fedsys("coordinator", "enroll", "hq", "a b"), "node name 'a b'", "allowed")
    for hours in ("0", "1e12", "nan"):
        found = fedsys("coordinator", "enroll", "hq", "ward", "--hours", hours)
        is_one_line(found, "--hours", "from 0.01 to 8760")
    state = State.open(tmp_path / "hq")
    assert not state.nodes()
    state.close()


def test_a_roster_that_goes_nowhere(fedsys: Fedsys, tmp_path: Path) -> None:
    Home.create(tmp_path / "hq", hosts=["localhost"])
    is_one_line(
        fedsys("coordinator", "roster", "hq", "--propose", "no/list"), "--propose no/list", "give"
    )
    is_one_line(
        fedsys("coordinator", "roster", "hq", "--accept", "none"), "--accept none", "sign-roster"
    )


def test_joining_where_it_cannot_be(fedsys: Fedsys, port: Port) -> None:
    token = port.registry.issue_token("ward").encode()
    Path("file").touch()
    for address in ("localhost", "localhost:0", "localhost:x", "a b:7443"):
        is_one_line(
            fedsys("agent", "join", address, "--token", token, "ward"), address, "HOST:PORT"
        )
        assert not Path("ward").exists()
    for folder in ("file", "file/x"):
        is_one_line(fedsys("agent", "join", port.address, "--token", token, folder), folder, "give")
    with socket.socket() as nobody:  # bound, but it does not listen
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        found = fedsys("agent", "join", address, "--token", token, "ward")
        is_one_line(found, address, "not reached", "check the address")
    assert fedsys("agent", "join", port.address, "--token", token, "ward")[0] == 0
    is_one_line(fedsys("agent", "join", port.address, "--token", token, "ward"), "ward", "already")
    is_one_line(fedsys("agent", "join", port.address, "--token", token, "w2"), "used already")


RUN = [
    (("--data", "nope"), ["'nope'", "built in are"]),
    (("--data", "=x"), ["--data =x", "TASK=FOLDER"]),
    (("--data", "mnist"), ["mnist.npz", "FEDSYS_DATA"]),
    (("--data", "mnist=nowhere"), ["mnist.npz", "nowhere"]),
    (("--data", "digits", "--shard", "3/3"), ["--shard 3/3", "0/3"]),
    (("--data", "digits", "--option", "bad"), ["--option bad", "KEY=VALUE"]),
    (("--data", "digits", "--option", "bad=1"), ["task.options.bad", "hidden"]),
    (("--data", "digits", "--log", "xml"), ["--log xml", "json"]),
]


def test_running_with_what_is_not_there(fedsys: Fedsys, port: Port, tmp_path: Path) -> None:
    port.enroll("ward", tmp_path / "ward")
    for words, fragments in RUN:
        is_one_line(fedsys("agent", "run", "ward", *words), *fragments)
        assert not Path("ward/policy.toml").exists()
    Path("ward/policy.toml").write_text("epsilon = 'x'\n")
    for words in (("status", "ward"), ("run", "ward", "--data", "digits")):
        is_one_line(fedsys("agent", *words), "ward/policy.toml", "epsilon")
    Path("ward/policy.toml").unlink()
    Path("ward/journal.json").write_text("damaged")
    code, lines = fedsys("agent", "run", "ward", "--data", "digits")
    assert lines.pop(0) == "wrote ward/policy.toml: it allows task digits alone"
    is_one_line((code, lines), "ward/journal.json", "backup")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(fedsys: Fedsys, tmp_path: Path) -> None:
    Path("closed").mkdir(mode=0o500)
    is_one_line(fedsys("coordinator", "init", "closed/hq"), "closed/hq", "permission denied")


def test_fetching_into_a_folder_that_is_not_empty(fedsys: Fedsys, tmp_path: Path) -> None:
    from fedsys.config import dump, load
    from server.submission import submit

    home = Home.create(tmp_path / "hq", hosts=["localhost"])
    state = State.open(home.path)
    id = submit(state, dump(load("silo"))).id
    is_one_line(fedsys("job", "fetch", "hq", id, "out"), id, "no result", "fedsys job show")
    state.update_job(id, status="completed")
    state.close()
    (home.jobs / id).mkdir(parents=True)
    (home.jobs / id / "summary.json").write_text("{}")
    Path("out").mkdir()
    Path("out/x").touch()
    is_one_line(fedsys("job", "fetch", "hq", id, "out"), "OUT out: not empty", "new folder")
