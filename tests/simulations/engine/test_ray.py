"""The Ray backend: the bits of one process, whatever dies. Skipped where Ray is not installed."""

# mypy: disable-error-code="import-not-found, import-untyped, unused-ignore"

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedsys.config import Config
from fedsys.errors import ConfigError, TrainingError
from simulations.engine.layout import population_spec
from simulations.randomness import SeededRandomness
from simulations.setting import prepare
from tests.simulations.engine.works import work_of

Configure = Callable[..., Config]


def test_without_ray_the_remedy_is_named(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "simulations.engine.ray", raising=False)
    with pytest.raises(ConfigError, match=r"-r requirements-extra\.lock"):
        prepare(configure("engine.backend=ray"))


def test_no_address_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the cluster that ran here last, whose processes may be dead."""
    ray = pytest.importorskip("ray")
    from simulations.engine.ray import _connect

    asked: dict[str, object] = {}
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    _connect("", 2)
    assert asked["address"] == "local"


@pytest.fixture
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_bits_of_one_process_though_actors_die(
    configure: Configure, cluster: None
) -> None:
    import ray

    from simulations.engine.ray import RayEngine

    config = configure("engine.processes=1", "engine.chunk=8")
    setting = prepare(config, randomness=SeededRandomness(b"ray"))
    spec = population_spec(setting.config, setting.randomness, threads=1)
    chunks = setting.population.chunks(range(60), 8)
    length = setting.plan.build_mechanism().length
    work = work_of(setting)
    with setting.engine, RayEngine(setting.population, spec, actors=2) as engine:
        expected, seen = setting.engine.total(work, chunks, length)
        for kill in (False, True, False):
            if kill:
                ray.kill(engine.actors[0])
            found, counted = engine.total(work, chunks, length)
            np.testing.assert_array_equal(found, expected)
            assert counted == seen
        apart = dict(engine.vectors(work, chunks))
        for chunk, privatized in setting.engine.vectors(work, chunks):
            np.testing.assert_array_equal(apart[chunk].values, privatized.values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_failing_client_is_named(
    configure: Configure, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulations.engine.ray import RayEngine

    setting = prepare(configure("engine.processes=1", "engine.chunk=8"))
    spec = population_spec(setting.config, setting.randomness, threads=1)
    work, length = work_of(setting), setting.plan.build_mechanism().length
    with (
        setting.engine,
        RayEngine(setting.population, spec, actors=1) as engine,
        pytest.raises(TrainingError, match="client 99999"),
    ):
        engine.total(work, [(3, 99_999)], length)
