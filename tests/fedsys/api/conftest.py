"""A finished run of the digits task, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedsys
from fedsys import Run

SMALL = {"rounds.count": 3, "aggregation.protocol": "ideal", "engine.processes": 1}
"""Settings of a run that takes a second."""


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(folder / "home"))
        return fedsys.simulate("quickstart", SMALL, out=folder / "finished", progress=False)
