"""Runs of every kind, each made once and never to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.verifier.runs import KINDS, Make, make


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _own_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(home))


@pytest.fixture(scope="session")
def run_of(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The run of a kind, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("FEDSYS_HOME", str(home))
                made[kind] = make(kind, folder / str(list(KINDS).index(kind)))
        return made[kind]

    return get
