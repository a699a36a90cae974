"""The benchmark of secure aggregation runs, small, and what it states is consistent."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from secure_agg import SecAggParams
from simulations.benchmarks import secure_aggregation
from simulations.benchmarks.secagg_parties import device, play


def test_all_parts_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    parts = "bounds,whole,devices"
    asked = ["--quick", "--repeats", "1", "--parts", parts, "--json", str(path)]
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    assert secure_aggregation.main(asked) == 0
    if cores is not None:
        assert os.sched_getaffinity(0) == cores, "what runs next has all of them"
    assert not logging.root.manager.disable
    told = capsys.readouterr().out
    found = json.loads(path.read_text())
    assert set(parts.split(",")) <= set(found)
    assert all(bound["value"] > 0 for bound in found["bounds"])
    (whole,) = found["whole"]
    assert 0 < whole["server_seconds"] < whole["seconds"]
    assert 0 < whole["idle_mb"] <= whole["peak_mb"]
    assert f"n={whole['n']} d={whole['dimension']}" in told
    small, large = found["devices"]
    assert small["n"] == small["committee"] == 10
    assert large["committee"] < large["n"]
    assert large["opening_bytes"] > small["opening_bytes"]
    assert large["duties_received"] > small["duties_received"]


def test_beside_flower_small() -> None:
    pytest.importorskip("flwr", reason="needs flwr, of requirements.lock")
    row = secure_aggregation.upload_row(6, 500, 4, 1, with_flower=True, aim=1.0)
    assert row.flower is not None
    assert row.ratio == row.flower / row.ours
    names = [
        each.name
        for each in secure_aggregation.round_rows(6, 500, 4, 1, 1, with_flower=True)
        if each.flower is not None
    ]
    assert len(names) == 3


def test_a_played_round_times_everybody() -> None:
    params = SecAggParams.derive(n=8, corrupt=0.1, dropout=0.1, modulus_bits=20, dimension=100)
    played = play(params, lost=[0])
    assert min(played.server, played.entry, played.upload, played.everybody) > 0
    assert played.entry + played.upload < played.device


def test_a_devices_duties_go_on_in_a_straight_line() -> None:
    """What a committee member receives is exact for any cohort: so it may be extrapolated."""
    exact = device(24, 50, 20, dealers=(24, 24))
    line = device(24, 50, 20, dealers=(8, 16))
    assert line.duties_received == exact.duties_received
    assert line.duties_sent == exact.duties_sent
    assert line.upload_bytes == exact.upload_bytes
