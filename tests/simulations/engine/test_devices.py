"""The engine over devices, in its plain form on a CPU: the bits of the other engines."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.training.graph.path import GraphPath
from client.training.graph.recorder import PlainRecorder, Work
from client.training.trainer import Trainer
from fedsys.config import Config
from fedsys.errors import TrainingError
from fedsys.privacy import read_ledger
from simulations import harness
from simulations.engine.devices import Devices, device_names
from simulations.engine.layout import Layout, lay_out
from simulations.population import Population
from simulations.randomness import Randomness, SeededRandomness
from simulations.setting import Setting, prepare
from tests.simulations.engine.works import work_of

Configure = Callable[..., Config]


@pytest.fixture
def graphed(configure: Configure) -> Callable[..., Setting]:
    """A job whose clients train on the path ``graph``."""

    def make(*settings: str) -> Setting:
        config = configure("engine.processes=1", "engine.path=graph", "engine.chunk=16", *settings)
        return prepare(config, randomness=SeededRandomness(b"devices"))

    return make


def over(setting: Setting, count: int = 1) -> Devices:
    return Devices(
        [setting.population] * count,
        setting.randomness,
        path=setting.config.engine.path,
        deadline=60.0,
    )


@pytest.mark.parametrize("protocol", ["ideal", "once", "float"])
@pytest.mark.parametrize("count", [1, 3])
def test_devices_give_the_bits_of_one_process(
    graphed: Callable[..., Setting], protocol: str, count: int
) -> None:
    how = "aggregation.noise=once" if protocol == "once" else f"aggregation.protocol={protocol}"
    setting = graphed("privacy.clip=0.05", how)
    length = setting.plan.build_mechanism().length
    # 90 clients in chunks of 15: shapes that need no padding, so that float sums agree too.
    chunks = setting.population.chunks(range(90), 15)
    with setting.engine, over(setting, count) as engine:
        for number in (1, 2):
            work = work_of(setting, number=number)
            expected, seen = setting.engine.total(work, chunks, length)
            found, counted = engine.total(work, chunks, length)
            np.testing.assert_array_equal(found, expected)
            assert counted == seen
            assert 0 < seen.clipped <= seen.trained == 90


@pytest.mark.parametrize("protocol", ["ideal", "float"])
@pytest.mark.parametrize(
    "changes",
    [
        {"factor": 0.5},
        {"factor": 3.0},
        {"exhausted": frozenset({0, 7, 31})},
        {"shares": False},
        {"rounds": 9, "number": 4},
    ],
    ids=str,
)
def test_what_a_round_brings_counts_as_in_one_process(
    graphed: Callable[..., Setting], changes: dict[str, Any], protocol: str
) -> None:
    setting = graphed("privacy.clip=5", f"aggregation.protocol={protocol}")
    length = setting.plan.build_mechanism().length
    chunks, work = setting.population.chunks(range(60), 15), work_of(setting, **changes)
    with setting.engine, over(setting, 2) as engine:
        expected, seen = setting.engine.total(work, chunks, length)
        found, counted = engine.total(work, chunks, length)
    # Floating-point sums of chunks of other shapes differ in their last bits.
    apart = np.linalg.norm((found - expected).astype(float))
    assert apart <= (1e-6 if protocol == "float" else 0) * np.linalg.norm(expected.astype(float))
    assert counted == seen


@pytest.mark.parametrize(
    "settings",
    [
        ["aggregation.encoding=narrow", "aggregation.modulus_bits=16"],
        ["cohort.participation=0.7"],
        ["engine.path=batched"],
    ],
)
def test_what_no_graph_sums_is_summed_all_the_same(
    graphed: Callable[..., Setting], settings: list[str]
) -> None:
    setting = graphed(*settings)
    length = setting.plan.build_mechanism().length
    chunks, work = setting.population.chunks(range(60), 16), work_of(setting)
    with setting.engine, over(setting, 2) as engine:
        expected, seen = setting.engine.total(work, chunks, length)
        found, counted = engine.total(work, chunks, length)
        if "aggregation.encoding=narrow" in settings:
            # It rounds at random: each of 60 clients by less than one.
            apart = (found - expected + (1 << 15)) % (1 << 16) - (1 << 15)
            assert np.abs(apart).max() < 60
        else:
            np.testing.assert_array_equal(found, expected)
        assert counted == seen


def test_vectors_are_those_of_one_process(graphed: Callable[..., Setting]) -> None:
    setting = graphed()
    chunks, work = setting.population.chunks(range(60), 16), work_of(setting)
    with setting.engine, over(setting, 2) as engine:
        apart = dict(engine.vectors(work, chunks))
        for chunk, privatized in setting.engine.vectors(work, chunks):
            np.testing.assert_array_equal(apart[chunk].values, privatized.values)


class _Small(PlainRecorder):
    """Memory for shapes of at most `room` clients."""

    room = 3

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, work: Work) -> Work:
        epoch = work.__self__  # type: ignore[attr-defined]
        if epoch.clients > self.room:
            raise torch.OutOfMemoryError("no room")
        self.recorded += 1
        return work


def _with_recorder(setting: Setting, monkeypatch: pytest.MonkeyPatch, recorder: _Small) -> None:
    made = Trainer.resident

    def resident(self: Trainer, examples: Any) -> Any:
        found = made(self, examples)
        path = found._path
        assert isinstance(path, GraphPath)
        path._recorder = recorder
        return found

    monkeypatch.setattr(Trainer, "resident", resident)


def test_out_of_memory_halves_once_for_the_whole_run_and_says_so(
    graphed: Callable[..., Setting],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    setting = graphed()
    length = setting.plan.build_mechanism().length
    work = work_of(setting)
    chunks = setting.population.chunks(range(60), 12)
    with setting.engine, over(setting) as roomy:
        expected, seen = roomy.total(work, setting.population.chunks(range(60), 3), length)
        _with_recorder(setting, monkeypatch, _Small())
        with over(setting) as engine, caplog.at_level(logging.WARNING):
            for _ in range(2):
                found, counted = engine.total(work, chunks, length)
                np.testing.assert_array_equal(found, expected)
                assert counted == seen
    said = [record.getMessage() for record in caplog.records if "out of memory" in record.msg]
    assert [line.split(":")[0] for line in said] == [
        "out of memory on cpu with 12 clients at once",
        "out of memory on cpu with 6 clients at once",
    ]


def test_one_client_that_does_not_fit_is_named_with_a_remedy(
    graphed: Callable[..., Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = graphed()
    recorder = _Small()
    recorder.room = 0
    _with_recorder(setting, monkeypatch, recorder)
    with (
        setting.engine,
        over(setting) as engine,
        pytest.raises(TrainingError, match=r"client 7: out of memory on cpu .* --device cpu"),
    ):
        engine.total(work_of(setting), [(7, 8)], setting.plan.build_mechanism().length)


def test_rows_outside_the_pool_and_failing_data_are_named(
    graphed: Callable[..., Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = graphed()
    length = setting.plan.build_mechanism().length
    with setting.engine, over(setting) as engine:
        pool = setting.population.train_set
        held = setting.population.partition.indices_of(5)
        before = pool.y[held].clone()
        pool.y[held] = 77  # a class that does not exist
        try:
            with pytest.raises(TrainingError, match=r"client 5: .*check its data"):
                engine.total(work_of(setting), [(3, 4, 5, 6)], length)
        finally:
            pool.y[held] = before
        _, seen = engine.total(work_of(setting), [(3, 4, 5, 6)], length)
        assert seen.trained == 4, "an engine that reported an error goes on"


def test_plain_cuda_stands_for_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert device_names(torch.device("cuda")) == ("cuda:0", "cuda:1", "cuda:2")
    assert device_names(torch.device("cuda:1")) == ("cuda:1",)
    assert device_names(torch.device("cpu")) == ("cpu",)


def test_a_trainer_that_is_not_on_the_cpu_is_laid_out_over_devices(
    graphed: Callable[..., Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three devices, all of them this CPU under another name."""
    setting = graphed()
    setting.engine.close()
    monkeypatch.setattr(
        "simulations.engine.layout.device_names", lambda _: ("cuda:0", "cpu", "cpu")
    )
    monkeypatch.setattr(Trainer, "device", torch.device("cuda"))
    layout = lay_out(setting.config, setting.plan, setting.population, setting.randomness, 16)
    monkeypatch.undo()
    length, work = setting.plan.build_mechanism().length, work_of(setting)
    chunks = setting.population.chunks(range(45), 15)
    with layout.engine as engine, over(setting) as one:
        assert isinstance(engine, Devices)
        assert engine.processes == 3
        assert layout.processes == 1
        np.testing.assert_array_equal(
            engine.total(work, chunks, length)[0], one.total(work, chunks, length)[0]
        )


def test_a_whole_run_over_devices_gives_the_same_model(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure("engine.path=graph", "engine.chunk=8", "privacy.mechanism=none")
    expected = harness.run(config, out=tmp_path / "one")

    def over_devices(
        config: Config, plan: object, population: Population, randomness: Randomness, *_: object
    ) -> Layout:
        engine = Devices([population], randomness, path=config.engine.path, deadline=60.0)
        return Layout(engine=engine, processes=1, threads=1, clients_per_second={})

    monkeypatch.setattr("simulations.setting.lay_out", over_devices)
    found = harness.run(config, out=tmp_path / "devices")
    assert found.metrics == expected.metrics
    assert found.metrics["accuracy"] > 0.3
    digests = [
        [
            json.loads(one.text)["aggregate_sha256"]
            for one in read_ledger(run.folder / "ledger.jsonl").rounds
        ]
        for run in (expected, found)
    ]
    assert digests[0] == digests[1]


def test_a_machine_without_a_gpu_never_touches_cuda(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*_args: object, **_named: object) -> None:
        raise AssertionError("CUDA was touched")

    for name in ("init", "_lazy_init", "mem_get_info", "current_stream", "synchronize", "Stream"):
        monkeypatch.setattr(torch.cuda, name, touched)
    for path in ("graph", "auto"):
        config = configure(f"engine.path={path}", "rounds.count=1")
        result = harness.run(config, out=tmp_path / path, device="cpu")
        assert result.rounds == 1
