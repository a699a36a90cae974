"""A hostile text on its way to a log and a terminal: one line, without control characters."""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsys.cli.app import app
from fedsys.logs import configure
from fedsys.wire import fleet_pb2
from server.deployed.fleet import Fleet, Link
from server.ingress import Ingress
from tests.client.devices import Devices, offer

HOSTILE = (
    "no\n2026-01-01 00:00:00,000 ERROR   server: forged"
    "\x1b[2J\x1b]0;t\x07\x00\u202e\x9b1m\r\u2028\x85"
)


@pytest.fixture(autouse=True)
def _quiet_afterwards() -> Iterator[None]:
    yield
    for name in ("fedsys", "server", "client", "secure_agg"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True


def is_clean(text: str, *, lines: int) -> None:
    found = text.rstrip("\n").split("\n")
    assert len(found) == lines, found
    assert all(line.isprintable() for line in found)


def test_a_devices_reason_reaches_log_and_status_as_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hello = fleet_pb2.Up(hello=fleet_pb2.Hello(node=1, version=HOSTILE))
    refused = fleet_pb2.Up(refusal=fleet_pb2.Refusal(reason=HOSTILE))
    ingress = Ingress(Link(node=1), Fleet())
    version = ingress.take(hello.SerializeToString()).hello.version
    reason = ingress.take(refused.SerializeToString()).refusal.reason
    for kind in ("text", "json"):
        configure(kind)
        logging.getLogger("server.deployed.conversation").info(
            "client 0 declines: %s", refused.refusal.reason
        )
        logging.getLogger("server.grpc_host").info("node 1 runs %s", hello.hello.version)
        is_clean(capsys.readouterr().err, lines=2)

    class Answering:
        """What a coordinator says, with every text as hostile as a device could make it."""

        def list(self) -> list[fleet_pb2.JobStatus]:
            return [self.show("j")]

        def show(self, _id: str) -> fleet_pb2.JobStatus:
            return fleet_pb2.JobStatus(
                id="j", name=HOSTILE, status="failed", reason=HOSTILE, refusals=[reason, HOSTILE]
            )

        def watch(self, _id: str) -> Iterator[fleet_pb2.JobStatus]:
            yield self.show("j")

        def fleet(self) -> fleet_pb2.FleetStatus:
            node = fleet_pb2.NodeStatus(id=1, name=HOSTILE, status="active", version=version)
            return fleet_pb2.FleetStatus(nodes=[node])

    @contextmanager
    def operator(_folder: Path) -> Iterator[Answering]:
        yield Answering()

    monkeypatch.setattr("fedsys.cli.grpc_operator.operator", operator)
    for words, lines in (
        (("job", "show", "hq"), 4),
        (("job", "watch", "hq"), 1),
        (("job", "list", "hq"), 1),
        (("coordinator", "nodes", "hq"), 2),
    ):
        is_clean(CliRunner().invoke(app, words).stdout, lines=lines)


def test_a_coordinators_words_reach_the_agents_status_as_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Devices(tmp_path)
    devices.all[0].handle(offer(devices.terms()))
    folder = tmp_path / "device0"
    monkeypatch.setattr("client.lock.holder", lambda _folder: f"fedsys agent run {HOSTILE}")
    monkeypatch.setattr("client.identity.Credentials.certificate", Certificate())
    shown = {"connection": HOSTILE, "activity": HOSTILE}
    (folder / "status.json").write_text(json.dumps(shown))
    (folder / "policy.toml").write_text(devices.all[0].policy[0].dump())
    journal = folder / "journal.json"
    body = json.loads(journal.read_text())
    body["jobs"][0]["name"] = HOSTILE
    journal.write_text(json.dumps(body))
    found = CliRunner().invoke(app, ["agent", "status", str(folder)])
    assert found.exit_code == 0, found.output
    is_clean(found.stdout, lines=6)


class Certificate:
    """Of a device that never connected."""

    not_valid_after_utc = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
