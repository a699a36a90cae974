"""The benchmark runs: every engine of this environment, and the equality of its updates."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from simulations.benchmarks import clients_per_second


@pytest.mark.slow
def test_a_small_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clients_per_second.main(
        [
            "--work",
            "W5",
            "--engines",
            "fedsys,ideal,engine,loop,bound",
            "--rounds",
            "2",
            "--turns",
            "1",
            "--threads",
            "1",
            "--out",
            str(tmp_path),
            "--set",
            "population.clients=200",
            "--set",
            "cohort.expected=20",
            "--set",
            "engine.processes=1",
        ]
    )
    result = json.loads((tmp_path / "clients_per_second_w5.json").read_text())
    assert set(result["engines"]) == {"fedsys", "ideal", "engine", "loop", "bound", "called"}
    rates = {name: found["clients_per_second"] for name, found in result["engines"].items()}
    assert rates["called"] <= rates["bound"]
    for found in result["engines"].values():
        assert found["clients_per_second"] > 0
    assert result["engines"]["engine"]["memory"] > 50e6
    # 3 x 2 x (784 x 64 + 64 x 10) x 50 examples, less the first layer's input gradient
    assert result["flops_per_client"] == 50 * 2 * (2 * 784 * 64 + 3 * 64 * 10)
    assert all(difference < 1e-4 for difference in result["equality"].values())
    assert set(result["equality"]) == {"fedsys", "ideal", "engine", "loop"}
    assert (tmp_path / "clients_per_second_w5.png").stat().st_size > 5000
    assert "| plain loop |" in capsys.readouterr().out


def test_a_rate_counts_clients_of_average_size() -> None:
    """Two turns at the same examples a second have the same rate, whatever their cohorts."""
    large = {"examples": [9, 300, 300], "clients": [1, 3, 3], "seconds": [5.0, 2.0, 1.0]}
    small = {"examples": [9, 100, 100], "clients": [1, 25, 25], "seconds": [5.0, 0.5, 0.5]}
    for turn in (large, small):
        assert clients_per_second._steady(turn, 20.0) == pytest.approx(10.0)


def test_what_was_measured_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clients_per_second, "measure", lambda *_: pytest.fail("measured again"))
    found = {"clients_per_second": 40.0, "turns": [40.0], "first_round_seconds": 1.0}
    result = {
        "work": "w5",
        "engines": {"fedsys": {**found, "cpu_ms_per_client": 1.0, "memory": 1e9}},
        "refused": {},
        "equality": {"fedsys": 1e-6},
        "population": 10,
        "cohort": 5,
        "examples_per_client": 50.0,
        "privacy": "none",
        "machine": {"processor": "a CPU", "cores": 2, "load": 0.0, "torch": "2"},
        "command": "the first command",
    }
    (tmp_path / "clients_per_second_w5.json").write_text(json.dumps(result))
    clients_per_second.main(["--work", "W5", "--resume", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "| 40 | 40 |" in shown
    assert "`the first command`" in shown


def test_nobody_left_to_run_is_one_line(tmp_path: Path) -> None:
    arguments = ["--work", "W5", "--engines", "flwr", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="flwr: none of them can run w5"):
        clients_per_second.main([*arguments, "--peers", str(tmp_path / "none")])


@pytest.mark.parametrize("engine", ["tff", "called"])
def test_an_unknown_engine_is_named(engine: str) -> None:
    with pytest.raises(SystemExit, match=f"unknown {engine}; there are fedsys"):
        clients_per_second.main(["--engines", f"fedsys,{engine}"])


def test_a_turn_that_a_peer_does_not_finish_is_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = tmp_path / "peer.py"
    peer.write_text(
        "import pathlib, sys\n"
        "tried = pathlib.Path(__file__).with_suffix('.tried')\n"
        "if not tried.exists():\n"
        "    tried.touch()\n"
        "    sys.exit('the simulator ended early')\n"
        "pathlib.Path(sys.argv[1]).write_text('{\"memory\": 1}')\n"
    )
    command = [sys.executable, str(peer), "OUT"]
    with pytest.raises(SystemExit, match="the simulator ended early"):
        clients_per_second._turn(command, tmp_path)
    peer.with_suffix(".tried").unlink()
    assert clients_per_second._turn(command, tmp_path, attempts=2) == {"memory": 1}
    said = capsys.readouterr().err
    assert said == "peer: the simulator ended early; the turn is run again\n"
