"""The witness over HTTP, as `fedsys witness run` serves it."""

from __future__ import annotations

import http.client
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsys.transparency import SignedNote, VerifierKey, cosignatures_of
from fedsys.transparency.submission import MAX_SUBMISSION_BYTES, parse_signatures
from fedsys.witness.folder import origin_hash
from tests.fedsys.witness.logs import Log
from tests.fedsys.witness.processes import Running, command, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("witness")
    made = command(root, "init", root / "w", "--name", "w.example/1", "--log", Log().signer)
    assert made.returncode == 0, made.stderr
    assert VerifierKey.parse(made.stdout.splitlines()[1]).name == "w.example/1"
    return root / "w"


@pytest.fixture(scope="module")
def witness(folder: Path) -> Iterator[Running]:
    with running(folder) as found:
        yield found


def call(
    witness: Running, method: str, path: str, body: bytes | None = None
) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", witness.port, timeout=20)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.headers["content-type"], answer.read()
    finally:
        connection.close()


def post(witness: Running, body: bytes) -> tuple[int, str, bytes]:
    return call(witness, "POST", "/add-checkpoint", body)


def test_a_log_is_followed_across_a_restart(folder: Path) -> None:
    log = Log(job=2).grow(3)
    monitored = f"/{origin_hash(log.origin)}/checkpoint"
    with running(folder) as first:
        assert call(first, "GET", monitored)[0] == 404
        sent = log.submission(0)
        status, kind, body = post(first, sent.encode())
        assert (status, kind) == (200, "text/plain; charset=utf-8")
        note = sent.note.with_signatures(parse_signatures(body))
        assert len(cosignatures_of(note, [VerifierKey.parse(first.vkey)])) == 1
        taken = command(folder.parent, "run", folder)
        assert taken.returncode == 2
        assert "another witness is running" in taken.stderr
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(20)
    with running(folder) as second:
        status, _, body = call(second, "GET", monitored)
        assert (status, SignedNote.parse(body)) == (200, note)
        fork = Log([b"x", b"y", b"z", b"v"], job=2)
        assert post(second, fork.submission(0).encode()) == (409, "text/x.tlog.size", b"3\n")
        assert post(second, fork.submission(3).encode())[0] == 422
        assert post(second, log.grow(1).submission(3).encode())[0] == 200
        second.process.terminate()
        assert second.process.wait(20) == 0


def test_what_is_no_request_is_refused(witness: Running) -> None:
    good = Log(job=3).grow(1).submission(0).encode()
    assert post(witness, b"old 0\n")[0] == 400
    assert post(witness, Log(key=b"x" * 32).grow(1).submission(0).encode())[0] == 404
    assert call(witness, "GET", "/add-checkpoint")[0] == 405
    assert call(witness, "POST", "/" + "a" * 64 + "/checkpoint", good)[0] == 405
    assert call(witness, "GET", "/")[0] == 404
    assert call(witness, "GET", "/..%2fwitness.ed25519/checkpoint")[0] == 404
    assert post(witness, good)[0] == 200


def test_an_oversize_body_is_refused_before_it_is_read(witness: Running) -> None:
    with socket.create_connection(("127.0.0.1", witness.port), timeout=20) as link:
        head = f"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: {1 << 40}\r\n\r\n"
        link.sendall(head.encode())
        assert link.recv(4096).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", witness.port), timeout=20) as link:
        head = "POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n"
        link.sendall(head.encode())
        for _ in range(2 + MAX_SUBMISSION_BYTES // 65536):
            link.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert link.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert post(witness, b"x" * MAX_SUBMISSION_BYTES)[0] == 400


def test_commands_say_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[str | Path], str]] = [
        (["run", tmp_path / "none"], "no witness here"),
        (["init", folder], "not empty"),
        (["init", tmp_path / "w", "--log", "zz"], "not a log's key"),
        (["watch", folder, "zz"], "not a log's key"),
        (["run", folder, "--listen", "nowhere"], "expected HOST:PORT"),
    ]
    for arguments, words in cases:
        done = command(tmp_path, *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    made = command(tmp_path, "init", tmp_path / "w", "--name", "w")
    assert "watches no log yet" in made.stderr
    assert command(tmp_path, "watch", tmp_path / "w", Log().signer).stdout.startswith("watching 1")
