"""The files that the map names for an update's journey are those that a round enters."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from simulations.benchmarks.files_entered import STRETCHES, entered

ROOT = Path(__file__).parents[3]


@pytest.mark.slow  # every call of a round is noted
def test_the_map_names_files_that_a_round_enters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.getprofile() is not None:
        pytest.skip("another profiler is at work")
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path))
    found = entered()
    assert sys.getprofile() is None
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    journey = text.partition("## The journey of an update")[2].partition("\n## ")[0]
    named = re.findall(r"^\|.*\| `([\w/]+\.py)` \|$", journey, re.MULTILINE)
    assert len(named) >= 9
    in_its_place = {"client/training/procedure/path.py"}  # which a job's own procedure enters
    assert set(named) - in_its_place <= {name for each in STRETCHES for name in found[each]}
    for count in (len(found[stretch]) for stretch in STRETCHES):
        assert re.search(rf"\b{count}\b", journey), count
    assert "secure_agg/masking.py" in found["encode to sum"]
    assert not set(found["train"]) & {name for name in named if name.startswith("secure_agg/")}
