"""The integer path's parts are measured, and the table names its command."""

from __future__ import annotations

import pytest

from simulations.benchmarks import integer_path


def test_every_part_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    integer_path.main(["--clients", "2", "--dimension", "400", "--turns", "1"])
    shown = capsys.readouterr().out
    rows = [line.split("|") for line in shown.splitlines() if line.startswith("| noise")]
    rows += [line.split("|") for line in shown.splitlines() if line.startswith("| clip")]
    assert len(rows) == 5
    assert all(float(row[2]) > 0 for row in rows)
    assert "`python -m simulations.benchmarks.integer_path" in shown


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(SystemExit, match="must be 1 or more"):
        integer_path.main(["--turns", "0"])
