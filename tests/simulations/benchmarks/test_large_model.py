"""The benchmark of large models: one turn that is really measured, and its table."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--protocols", "plain"], "unknown plain"), (["--rounds", "1"], "use 2 or more")],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        large_model.main(arguments)
