"""What an operator sees of a job over Flower is what they see of one over gRPC."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from flwr.app import Message

from fedsys import __version__
from fedsys.cli.grpc_operator import operator
from fedsys.wire.fleet_pb2 import Up
from fedsys.wire.flower import RECORD, UP
from server.home.state import State
from tests.e2e.deployment import running_port
from tests.flower.grid import identity
from tests.flower.test_contract import SILOS, nodes, over_flower, silo
from tests.server.test_metrics import scrape


def test_the_operator_sees_the_fleet_while_a_job_runs_and_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who is connected, since when, and what runs: as over gRPC."""
    with running_port(tmp_path / "coordinator") as opened:
        for number in range(SILOS):
            opened.enroll(f"silo-{number}", tmp_path / f"a{number}")
        home = opened.home
    caplog.set_level("INFO")
    settings = home.settings_file.read_text("utf-8").replace('web = ""', 'web = "127.0.0.1:0"')
    home.settings_file.write_text(settings.replace('metrics = ""', 'metrics = "127.0.0.1:0"'))
    assert home.settings().web == home.settings().metrics == "127.0.0.1:0"
    found: dict[str, Any] = {}

    def port(what: str) -> int:
        (line,) = (m for m in caplog.messages if m.startswith(f"{what} at port "))
        return int(line.split()[3].rstrip(";"))

    def look(_node: int, reply: Message) -> Message:
        if found or not any(Up.FromString(raw).HasField("answer") for raw in said(reply)):
            return reply
        with operator(home.path) as calls:
            (job,) = calls.list()
            found["job"] = (job.status, job.round)
            found["nodes"] = [(each.connected, each.version) for each in calls.fleet().nodes]
        found["metrics"] = scrape(port("metrics"))
        with urllib.request.urlopen(f"http://127.0.0.1:{port('page')}/health", timeout=60) as page:
            found["page"] = json.load(page)
        return reply

    began = time.time()
    with identity():
        row = over_flower(home, silo(rounds=1), nodes(tmp_path), tamper=look)
    assert row.status == "completed", row.reason
    assert found["job"] == ("running", 1)
    assert found["nodes"] == [(True, __version__)] * SILOS
    connected = "fedsys_serverside_device_connected"
    for number in range(SILOS):
        assert found["metrics"][connected, (("device", f"silo-{number}"),)] == 1
    assert found["page"] == {"status": "serving"}
    state = State.open(home.path)
    for each in state.nodes():
        assert each.last_seen is not None
        assert began <= each.last_seen <= time.time()
        assert each.version == __version__
    state.close()
    assert not home.socket.exists()


def said(reply: Message) -> list[bytes]:
    """What a device said in a reply."""
    ups = reply.content.config_records[RECORD][UP]
    assert isinstance(ups, list)
    return [raw for raw in ups if isinstance(raw, bytes)]
