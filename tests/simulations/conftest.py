"""A job that takes a second: the digits task, a few rounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedsys.config import Config, load

Configure = Callable[..., Config]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))


@pytest.fixture
def configure() -> Configure:
    """``configure("key=value", ...)``: the quickstart, three rounds of about 40, protocol ideal."""

    def make(*settings: str) -> Config:
        usual = ["rounds.count=3", "cohort.expected=40", "aggregation.protocol=ideal"]
        return load(
            "quickstart",
            [*usual, "engine.path=batched", "engine.chunk=64", "engine.processes=1", *settings],
        )

    return make
