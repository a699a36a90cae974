"""The benchmark of mapped examples: what is counted, engines that are measured, a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simulations.benchmarks import mapped_data

CHILD = """
import sys
import numpy as np
rows = np.memmap(sys.argv[1], np.uint8, "r")
total = int(rows.sum())
print("read", flush=True)
sys.stdin.read()
"""


def test_a_file_that_several_processes_map_counts_once(tmp_path: Path) -> None:
    """By proportional sizes; by resident ones it counts in each."""
    file, size = tmp_path / "rows.bin", 64_000_000
    file.write_bytes(bytes(size))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    before = mapped_data.memory_of(os.getpid())
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, str(file)], **pipes)  # type: ignore[call-overload]
        for _ in range(3)
    ]
    try:
        for child in children:
            assert child.stdout.readline() == b"read\n"
        after = mapped_data.memory_of(os.getpid())
    finally:
        for child in children:
            child.communicate()
    assert after["processes"] >= before["processes"] + 3
    assert after["rss"] - before["rss"] > 3 * size
    assert size < after["pss"] - before["pss"] < 3 * size
    assert after["own"] - before["own"] < size + 3 * 40_000_000


def test_the_task_maps_its_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.bin"
    np.arange(20 * 4096, dtype=np.uint8).tofile(file)
    data = mapped_data.Mapped(str(file)).clients(None)  # type: ignore[arg-type]
    assert data.train.x.shape == (20, 4096)
    assert not data.train.x.numpy().flags.owndata


@pytest.mark.slow
def test_an_engine_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mapped_data.main(["--gigabytes", "0.05", "--engines", "1,2", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "mapped_data.json").read_text())
    assert result["bytes"] == pytest.approx(0.05e9, rel=0.01)
    for peaks in result["engines"].values():
        assert peaks["pss"] > result["bytes"]
        assert peaks["own"] < peaks["pss"] < peaks["rss"]
    shown = capsys.readouterr().out
    assert "| 1 | 1 |" in shown
    assert "| 2 | 3 |" in shown


def test_the_table_says_what_grows_with_the_file() -> None:
    peaks = {"processes": 1.0, "pss": 2.3e9, "own": 3e8, "rss": 2.4e9, "small": 3.2e8}
    shown = mapped_data.table(
        {
            "engines": {"1": peaks, "ray": {**peaks, "pss": 3.45e9, "small": 1.47e9}},
            "bytes": 2e9,
            "small": 2e7,
            "rounds": 2,
            "clients": 200,
            "machine": {"processor": "a CPU", "cores": 2, "load": 0.0},
            "command": "python",
        }
    )
    assert "| 1 | 1 | 2,300 | 1.00 | 320 | 1.00 | 300 | 2,400 |" in shown
    assert "| ray | 1 | 3,450 | 1.50 | 1,470 | 1.00 | 300 | 2,400 |" in shown
