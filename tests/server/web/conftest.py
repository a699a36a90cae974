"""Two finished runs, and the scene that is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fedsys
from tests.fedsys.api.conftest import SMALL
from tests.server.web.scene import Scene, make_scene


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scene")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(folder / "home"))
        for name, noise in (("ended", 1.5), ("going", 0.7)):
            settings = {**SMALL, "privacy.noise_multiplier": noise}
            run = fedsys.simulate("quickstart", settings, out=folder / name, progress=False)
            found.append(run.folder)
    return found


@pytest.fixture
def scene(tmp_path: Path, runs: list[Path]) -> Iterator[Scene]:
    made = make_scene(tmp_path / "fleet", runs)
    yield made
    made.state.close()
