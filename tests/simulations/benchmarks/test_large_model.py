"""The benchmark of large models: one turn that is really measured, and its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from simulations.benchmarks import large_model


@pytest.mark.slow
def test_every_protocol_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--dimension", "8000", "--rounds", "2", "--turns", "1", "--processes", "1"]
    large_model.main([*small, "--out", str(tmp_path)])
    result = json.loads((tmp_path / "large_model.json").read_text())
    assert result["dimension"] == 10 * 795 + 10
    for turns in result["protocols"].values():
        assert len(turns[0]["seconds"]) == 1
        assert turns[0]["peak_mb"] > 100
    shown = capsys.readouterr().out
    assert all(f"| `{protocol}` |" in shown for protocol in large_model.PROTOCOLS)


def test_the_table_has_medians_and_the_largest_peak() -> None:
    turn = {"seconds": [1.0, 3.0], "cpu": [2.0, 4.0], "engine": {"processes": 2, "chunk": 2}}
    shown = large_model.table(
        {
            "protocols": {"secure": [{**turn, "peak_mb": 800.0}, {**turn, "peak_mb": 900.0}]},
            "dimension": 12_000_000,
            "clients": 20,
            "machine": {"processor": "a CPU", "cores": 2, "load": 0.0},
            "command": "python",
        }
    )
    assert "| `secure` | 2 | 2 2 | 3 | 2 | 2 | 900 |" in shown


@pytest.mark.slow
def test_a_peer_is_measured_up_to_its_last_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By our own loop in the peer's place: its runner takes the same arguments."""
    monkeypatch.setattr(large_model, "PEERS", {"pfl": "loop"})
    small = ["--dimension", "8000", "--clients", "3", "--rounds", "3", "--turns", "1"]
    large_model.main(
        [*small, "--engines", "pfl", "--peers", sys.executable, "--out", str(tmp_path)]
    )
    (turn,) = json.loads((tmp_path / "large_model.json").read_text())["protocols"]["pfl"]
    assert len(turn["seconds"]) == 2
    assert all(each >= 0 for each in turn["cpu"])
    assert turn["peak_mb"] > 50
    assert "A client's update in pfl differs from the plain loop's in float64 by" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocols", "plain"], "unknown plain"),
        (
            ["--engines", "float,nobody"],
            "unknown nobody; there are float, ideal, secure, pfl, flwr",
        ),
        (["--engines", "pfl", "--peers", "/none"], "--peers /none: is not there"),
        (["--rounds", "1"], "use 2 or more"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        large_model.main(arguments)
