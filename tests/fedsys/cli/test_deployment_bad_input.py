"""Whatever is wrong with a deployment's input: one line that names it and the fix, status 2."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.lock import exclusive
from fedsys.cli import main
from server.home.folder import Home
from server.home.state import State
from tests.e2e.deployment import Port, running_port

Fedsys = Callable[..., tuple[int, list[str]]]


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """A command that runs sends our loggers' lines to what is standard error then."""
    ours = [logging.getLogger(name) for name in ("fedsys", "server", "client", "secure_agg")]
    before = [(each.handlers, each.level, each.propagate) for each in ours]
    yield
    for each, (handlers, level, propagate) in zip(ours, before, strict=True):
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


@pytest.fixture
def fedsys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Fedsys:
    """Runs a command here as its entry point does: exit status, and lines on standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSYS_DATA", raising=False)
    # An agent steps back for good: all tests that follow in this process would starve.
    monkeypatch.setattr(os, "nice", lambda _more: 0)

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
    (("coordinator", "init", "new", "--colluders", "-1"), ["--colluders -1", "from 0"]),
    (("coordinator", "init", "new", "--roster-key", "zz"), ["'zz'", "64 hexadecimal digits"]),
    (("coordinator", "enroll", "new", "a"), ["new", "fedsys coordinator init new"]),
    (("coordinator", "run", "new"), ["new", "fedsys coordinator init new"]),
    (("coordinator", "sign-roster", "no/key"), ["no/key", "writable path"]),
    (("coordinator", "sign-roster", "key", "none"), ["none", "roster --propose"]),
    (("coordinator", "templates", "file"), ["OUT file", "writable path"]),
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
    (("--data", "digits", "--corrupt", "2"), ["--corrupt 2", "from 0 to below 1"]),
    (("--data", "digits", "--corrupt", "nan"), ["--corrupt nan", "from 0 to below 1"]),
]


def test_running_with_what_is_not_there(fedsys: Fedsys, port: Port, tmp_path: Path) -> None:
    port.enroll("ward", tmp_path / "ward")
    for words, fragments in RUN:
        is_one_line(fedsys("agent", "run", "ward", *words), *fragments)
        assert not Path("ward/policy.toml").exists()
    Path("ward/policy.toml").write_text("epsilon = 'x'\n")
    for words in (("status", "ward"), ("run", "ward", "--data", "digits")):
        is_one_line(fedsys("agent", *words), "ward/policy.toml", "epsilon")
    Path("ward/policy.toml").write_text("epsilon = nan\n")
    is_one_line(fedsys("agent", "status", "ward"), "ward/policy.toml", "epsilon = nan")
    Path("ward/policy.toml").write_text("corrupt = 0.1\n")
    is_one_line(
        fedsys("agent", "run", "ward", "--data", "digits", "--corrupt", "0"),
        "--corrupt 0: ward/policy.toml already says corrupt = 0.1",
    )
    Path("ward/policy.toml").unlink()
    Path("ward/journal.json").write_text("damaged")
    code, lines = fedsys("agent", "run", "ward", "--data", "digits")
    assert lines.pop(0) == "wrote ward/policy.toml: it allows only task digits"
    is_one_line((code, lines), "ward/journal.json", "backup")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(fedsys: Fedsys, tmp_path: Path) -> None:
    Path("closed").mkdir(mode=0o500)
    is_one_line(fedsys("coordinator", "init", "closed/hq"), "closed/hq", "permission denied")


def test_fetching_into_a_folder_that_is_not_empty(fedsys: Fedsys, tmp_path: Path) -> None:
    from fedsys.config import dump, load
    from server.deployed.queue import submit

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


SETTINGS = [
    ("hosts = [", ["not TOML", "mend it there"]),
    ("\udcff", ["not TOML", "UTF-8", "mend it there"]),
    ("patience = 3", ["hosts is missing"]),
    ("hosts = []", ["hosts = []", "at least 1"]),
    ("hosts = ['a b']", ["hosts = ['a b']", "hub.example.org"]),
    ("hosts = ['a']\nbogus = 1", ["bogus: no such setting", "patience"]),
    ("hosts = ['a']\nstage = 'x'", ["stage = 'x'", "number"]),
    ("hosts = ['a']\nstage = 0", ["stage = 0", "greater than 0"]),
    ("hosts = ['a']\nepsilon = nan", ["epsilon = nan", "greater than 0"]),
]


@pytest.mark.parametrize(("text", "fragments"), SETTINGS)
def test_settings_that_cannot_be(
    fedsys: Fedsys, tmp_path: Path, text: str, fragments: list[str]
) -> None:
    home = Home.create(tmp_path / "hq", hosts=["localhost"])
    home.settings_file.write_bytes(text.encode("utf-8", "surrogateescape"))
    found = fedsys("coordinator", "run", "hq", "--listen", "localhost:0")
    is_one_line(found, "hq/coordinator.toml: ", *fragments)


def test_a_metrics_page_nowhere(fedsys: Fedsys, tmp_path: Path) -> None:
    home = Home.create(tmp_path / "hq", hosts=["localhost"])
    home.settings_file.write_text("hosts = ['localhost']\nmetrics = 'nonsense'\n")
    code, lines = fedsys("coordinator", "run", "hq", "--listen", "localhost:0")
    is_one_line((code, lines), "metrics = 'nonsense'", "localhost:9464")


def damaged(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "open":
        path.chmod(0o644)
    else:
        path.write_bytes(b"garbage\n")


RUN_HQ = ("coordinator", "run", "hq", "--listen", "localhost:0")
ENROLL = ("coordinator", "enroll", "hq", "ward")
COORDINATORS_FILES = [
    ("ca.key", "open", RUN_HQ, ["hq/ca.key", "chmod 600"]),
    ("ca.key", "garbage", RUN_HQ, ["hq", "ca.key", "from a backup"]),
    ("ca.pem", "garbage", RUN_HQ, ["hq", "ca.pem", "from a backup"]),
    ("ca.pem", "missing", ENROLL, ["hq", "ca.pem", "from a backup"]),
    ("server.key", "open", RUN_HQ, ["hq/server.key", "chmod 600"]),
    ("server.key", "garbage", RUN_HQ, ["hq/server.key", "fedsys coordinator rotate hq"]),
    ("server.key", "missing", RUN_HQ, ["hq/server.key", "fedsys coordinator rotate hq"]),
    ("coordinator.ed25519", "open", RUN_HQ, ["hq/coordinator.ed25519", "chmod 600"]),
    ("coordinator.ed25519", "garbage", RUN_HQ, ["hq/coordinator.ed25519", "8 bytes"]),
    ("coordinator.ed25519", "missing", RUN_HQ, ["hq/coordinator.ed25519", "from a backup"]),
    ("roster.ed25519", "open", ENROLL, ["hq/roster.ed25519", "chmod 600"]),
    ("roster.ed25519", "garbage", ENROLL, ["hq/roster.ed25519", "from a backup"]),
    ("roster.pub", "garbage", RUN_HQ, ["hq/roster.pub", "from a backup"]),
    ("state.sqlite", "garbage", RUN_HQ, ["hq/state.sqlite", "from a backup"]),
    ("state.sqlite", "missing", ENROLL, ["hq/state.sqlite", "from a backup"]),
]


@pytest.mark.parametrize(("name", "how", "words", "fragments"), COORDINATORS_FILES)
def test_a_coordinators_file_that_is_damaged(
    fedsys: Fedsys,
    tmp_path: Path,
    name: str,
    how: str,
    words: tuple[str, ...],
    fragments: list[str],
) -> None:
    home = Home.create(tmp_path / "hq", hosts=["localhost"])
    before = {each.name for each in home.path.iterdir()} | {"lock"}
    for journal in ("-wal", "-shm"):
        before.add("state.sqlite" + journal)
    path = home.path / name
    path.chmod(0o600)
    damaged(path, how)
    is_one_line(fedsys(*words), *fragments)
    after = {each.name for each in home.path.iterdir()}
    assert after <= before - ({name} if how == "missing" else set()), "nothing takes its place"


def test_a_server_key_that_is_lost_is_made_anew(fedsys: Fedsys, tmp_path: Path) -> None:
    home = Home.create(tmp_path / "hq", hosts=["localhost"])
    damaged(home.path / "server.key", "garbage")
    assert fedsys("coordinator", "rotate", "hq")[0] == 0
    assert home.server_identity().fits


def test_a_database_of_another_version(fedsys: Fedsys, tmp_path: Path) -> None:
    Home.create(tmp_path / "hq", hosts=["localhost"])
    with contextlib.closing(sqlite3.connect(tmp_path / "hq" / "state.sqlite")) as database:
        database.execute("ALTER TABLE jobs DROP COLUMN promised")
        database.commit()
    is_one_line(fedsys(*ENROLL), "hq/state.sqlite", "another version", "jobs lack promised")


def test_a_job_whose_folder_is_gone_is_not_begun_again(fedsys: Fedsys, tmp_path: Path) -> None:
    from fedsys.config import dump, load
    from server.deployed.queue import submit

    home = Home.create(tmp_path / "hq", hosts=["localhost"])
    state = State.open(home.path)
    id = submit(state, dump(load("silo"))).id
    state.update_job(id, status="running", started_at=1.0, round=2, spent=3.5)
    code, lines = fedsys(*RUN_HQ)
    shut, *rest = lines
    assert "shutting down" in shut
    is_one_line((code, rest), f"jobs/{id}/ledger.jsonl: missing", f"fedsys job cancel hq {id}")
    row = state.job(id)
    assert (row.status, row.round, row.spent) == ("running", 2, 3.5), "it waits for its disk"
    with home.alone():
        is_one_line(fedsys("job", "cancel", "hq"), "another coordinator is running")
    assert fedsys("job", "cancel", "hq")[0] == 0
    assert state.job(id).cancelled
    is_one_line(fedsys("job", "cancel", "hq", "nosuch"), "job nosuch", "fedsys job list")
    state.close()


AGENTS_FILES = [
    ("agent.toml", "garbage", "status", ["ward/agent.toml", "cannot be read", "from a backup"]),
    ("identity.ed25519", "garbage", "status", ["ward/identity.ed25519", "from a backup"]),
    ("identity.ed25519", "missing", "status", ["ward/identity.ed25519", "no such file"]),
    ("identity.ed25519", "open", "status", ["ward/identity.ed25519", "chmod 600"]),
    ("tls.pem", "garbage", "status", ["ward/tls.pem", "from a backup"]),
    ("tls.pem", "open", "leave", ["ward/tls.pem", "chmod 600"]),
    ("ca.pem", "garbage", "leave", ["ward/ca.pem", "from a backup", "--offline ward"]),
    ("ca.pem", "missing", "status", ["ward/ca.pem", "from a backup"]),
]


def test_a_devices_file_that_is_damaged(fedsys: Fedsys, port: Port, tmp_path: Path) -> None:
    port.enroll("ward", tmp_path / "whole")
    for name, how, command, fragments in AGENTS_FILES:
        shutil.rmtree(tmp_path / "ward", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "ward")
        damaged(tmp_path / "ward" / name, how)
        is_one_line(fedsys("agent", command, "ward"), *fragments)
    assert not port.registry.shut_out(), "nobody has left"


VALUES = [
    ("node = 1", "node = 'x'", ["node = 'x' is invalid", "from a backup"]),
    ("node = 1", "", ["node is missing", "from a backup"]),
    ("signer = ", "signer = 'zz' #", ["signer = 'zz' is invalid"]),
    ("coordinator = ", "coordinator = 'hub' #", ["coordinator hub", "HOST:PORT"]),
]


def test_what_a_devices_settings_cannot_be(fedsys: Fedsys, port: Port, tmp_path: Path) -> None:
    port.enroll("ward", tmp_path / "ward")
    path = tmp_path / "ward" / "agent.toml"
    whole = path.read_text("utf-8")
    for old, new, fragments in VALUES:
        assert old in whole
        path.write_text(whole.replace(old, new), "utf-8")
        is_one_line(fedsys("agent", "pause", "ward"), "ward/agent.toml: ", *fragments)


def test_a_journal_of_another_version(fedsys: Fedsys, port: Port, tmp_path: Path) -> None:
    port.enroll("ward", tmp_path / "ward")
    (tmp_path / "ward" / "journal.json").write_text('{"version": 9, "jobs": []}')
    code, lines = fedsys("agent", "run", "ward", "--data", "digits")
    assert lines.pop(0).startswith("wrote ward/policy.toml")
    is_one_line((code, lines), "ward/journal.json", "another version of fedsys (format 9")


def test_what_the_doctor_says_of_a_device(
    port: Port,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    port.enroll("ward", tmp_path / "ward")
    (tmp_path / "ward" / "paused").touch()
    (tmp_path / "ward" / "journal.json").write_text("damaged")
    (tmp_path / "ward" / "roster.jsonl").write_text("garbage\n")
    with socket.socket() as nobody:  # bound, but it does not listen
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        path = tmp_path / "ward" / "agent.toml"
        path.write_text(path.read_text("utf-8").replace(port.address, address), "utf-8")
        monkeypatch.setattr(sys, "argv", ["fedsys", "agent", "doctor", "ward"])
        with pytest.raises(SystemExit) as leaving:
            main()
    assert leaving.value.code == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    for fragments, line in zip(
        (
            ["ward/roster.jsonl: damaged", "from a backup"],
            [address, "not reached", "connection refused", "that the coordinator runs"],
            ["ward/journal.json: damaged", "from a backup"],
            ["paused", "fedsys agent resume ward"],
        ),
        failed,
        strict=True,
    ):
        for fragment in fragments:
            assert fragment in line


def test_leaving(fedsys: Fedsys, port: Port, tmp_path: Path) -> None:
    port.enroll("ward", tmp_path / "ward")
    with exclusive(tmp_path / "ward", "fedsys agent run"):
        for more in ((), ("--offline",)):
            found = fedsys("agent", "leave", "ward", *more)
            is_one_line(found, "ward: fedsys agent run (process", "stop that")
    assert (tmp_path / "ward" / "identity.ed25519").exists()
    assert fedsys("agent", "leave", "ward")[0] == 0
    is_one_line(fedsys("agent", "leave", "ward"), "ward: this device has not joined")


@pytest.mark.parametrize("name", ["journal.json", "roster.jsonl"])
def test_what_protects_the_owner_is_not_begun_anew(
    fedsys: Fedsys, port: Port, tmp_path: Path, name: str
) -> None:
    port.enroll("ward", tmp_path / "ward")
    path = tmp_path / "ward" / name
    path.unlink()
    code, lines = fedsys("agent", "run", "ward", "--data", "digits")
    assert lines.pop(0).startswith("wrote ward/policy.toml")
    is_one_line((code, lines), f"ward/{name}: is gone", "from a backup", "fedsys agent leave")
    assert not path.exists()
    assert fedsys("agent", "leave", "ward")[0] == 0
    port.enroll("ward-2", tmp_path / "ward")  # the remedy that the line names
    assert path.exists()


def test_a_device_that_joins_anew_in_its_folder_counts_on(
    fedsys: Fedsys, port: Port, tmp_path: Path
) -> None:
    port.enroll("ward", tmp_path / "ward")
    journal = tmp_path / "ward" / "journal.json"
    journal.write_text(journal.read_text("utf-8") + "\n")
    assert fedsys("agent", "leave", "ward")[0] == 0
    with running_port(tmp_path / "other") as other:  # whose rosters are signed by another key
        chain = other.enroll("ward", tmp_path / "ward").roster_chain()
    assert chain.version == 1
    assert journal.read_text("utf-8").endswith("\n")
