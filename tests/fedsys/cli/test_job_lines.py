"""The keys of what programs read: documented in docs/deploy.md, and not to be lost."""

from __future__ import annotations

import json
from pathlib import Path

from fedsys.cli.job_lines import describe, fetched_json, job_json, node_json
from fedsys.wire import fleet_pb2

DEPLOY = Path(__file__).parents[3] / "docs" / "deploy.md"


def test_every_key_is_documented_and_there() -> None:
    job = fleet_pb2.JobStatus(id="j", name="small", status="running", round=2, rounds=5)
    node = fleet_pb2.NodeStatus(id=3, name="ward", status="active", labels=["east"])
    found = [
        json.loads(job_json(job)),
        json.loads(node_json(node)),
        json.loads(fetched_json("j", "completed", Path("out"), audit=True)),
    ]
    text = DEPLOY.read_text()
    assert [" ".join(each) for each in found] == [
        "id name status reason round rounds stage epsilon budget metrics refusals",
        "id name status connected version expires labels warning",
        "id status folder audit",
    ]
    assert all(f"`{key}`" in text for each in found for key in each)
    assert found[2] == {"id": "j", "status": "completed", "folder": "out", "audit": True}


def test_numbers_without_a_value_are_null() -> None:
    status = fleet_pb2.JobStatus(id="j", epsilon=float("inf"), metrics={"loss": float("nan")})
    found = json.loads(job_json(status))
    assert (found["epsilon"], found["budget"], found["metrics"]) == (None, None, {"loss": None})
    assert "epsilon inf" in describe(status)
