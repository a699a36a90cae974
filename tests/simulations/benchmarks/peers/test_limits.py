"""What an engine cannot run is said in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedsys import config
from simulations.benchmarks.peers.limits import refusals

HERE = Path(sys.executable)


@pytest.mark.parametrize("engine", ["flwr", "nvflare"])
def test_a_peer_without_its_environment_is_refused(tmp_path: Path, engine: str) -> None:
    found = refusals(config.load("w2"), ["loop", engine], {engine: tmp_path / "python"})
    assert list(found) == [engine]
    assert str(tmp_path / "python") in found[engine]
    assert "make bench" in found[engine]
    assert refusals(config.load("w2"), ["loop", engine], {engine: HERE}) == {}


def test_a_peer_that_no_script_runs_is_refused_with_the_reason() -> None:
    assert ">=3.14" in refusals(config.load("w2"), ["blazefl"], {})["blazefl"]


def test_flower_cannot_look_through_a_million_nodes() -> None:
    found = refusals(config.load("w5"), ["flwr", "nvflare"], {"flwr": HERE, "nvflare": HERE})
    assert list(found) == ["flwr"]
    assert "\n" not in found["flwr"]
