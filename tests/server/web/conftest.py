"""A finished run, and the scene that is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fedsys
from tests.fedsys.api.conftest import SMALL
from tests.server.web.scene import Scene, make_scene


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One run, which stands for two."""
    folder = tmp_path_factory.mktemp("scene")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(folder / "home"))
        run = fedsys.simulate("quickstart", SMALL, out=folder / "run", progress=False)
    return [run.folder, run.folder]


@pytest.fixture
def scene(tmp_path: Path, runs: list[Path]) -> Iterator[Scene]:
    made = make_scene(tmp_path / "fleet", runs)
    yield made
    made.state.close()
