"""One process or several: the same bits; a death, a failure or a hang ends no run silently."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.training import LocalConfig, Trainer
from fedsys import tasks
from fedsys.config import Config
from fedsys.errors import FedsysError, TrainingError
from fedsys.privacy import to_ring
from fedsys.tasks import Examples
from fedsys.tasks.partition import Compressed
from simulations import harness
from simulations.engine import layout
from simulations.engine.base import InProcess
from simulations.engine.chunk import in_ring
from simulations.engine.layout import population_spec
from simulations.engine.processes import Processes, Recruits
from simulations.population import Population
from simulations.randomness import SeededRandomness
from simulations.setting import Setting, prepare
from tests.simulations.engine.works import work_of

Configure = Callable[..., Config]

TASK = '''
import os, signal, time
import torch
from fedsys.tasks.digits import Digits

class Fragile(Digits):
    """Misbehaves once or always, where a client trains on its one example; see `how`. What is
    tried before a run has more rows, or asks for no gradient."""

    def __init__(self, how, flag):
        super().__init__({})
        self.how, self.flag = how, flag

    def loss(self, outputs, targets):
        if len(targets) > 1 or not torch.is_grad_enabled():
            return super().loss(outputs, targets)
        try:
            open(self.flag, "x").close()
            first = True
        except FileExistsError:
            first = False
        if self.how == "killed-once" and first or self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "hangs":
            time.sleep(60)
        if self.how == "raises":
            raise ValueError("the label is a cat")
        if self.how == "exits":
            raise SystemExit("the label is a cat")
        return super().loss(outputs, targets)
'''


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "fragile_task.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(folder))

    def settings(how: str) -> list[str]:
        options = f'task.options={{how="{how}", flag="{tmp_path / "flag"}"}}'
        return ["task.name=fragile_task:Fragile", options, "engine.path=loop", "engine.chunk=1"]

    return settings


@contextmanager
def several(setting: Setting, processes: int = 2, deadline: float = 120.0) -> Iterator[Processes]:
    with Processes(
        setting.population,
        population_spec(setting.config, setting.randomness, threads=1),
        mechanism=setting.plan.build_mechanism(),
        processes=processes,
        chunk=setting.chunk,
        singly=True,
        deadline=deadline,
    ) as engine:
        yield engine


@pytest.fixture
def alone(configure: Configure) -> Callable[..., Setting]:
    def make(*settings: str) -> Setting:
        config = configure("engine.processes=1", "engine.chunk=16", *settings)
        return prepare(config, randomness=SeededRandomness(b"engine"))

    return make


def test_one_process_and_several_give_the_same_bits(alone: Callable[..., Setting]) -> None:
    setting = alone()
    length = setting.plan.build_mechanism().length
    chunks = setting.population.chunks(range(100), 16)
    with setting.engine, several(setting) as pool:
        shares = work_of(setting)
        drawn_once = setting.plan.changed(noise="once").event().to_json()
        once = dataclasses.replace(shares, mechanism=drawn_once)
        floating = setting.plan.changed(noise="once", encoding="float", modulus_bits=32)
        summed = dataclasses.replace(once, protocol="float", mechanism=floating.event().to_json())
        for work in (shares, once, summed):
            expected, seen = setting.engine.total(work, chunks, length)
            found, counted = pool.total(work, chunks, length)
            np.testing.assert_array_equal(found, expected)
            assert counted == seen
            assert seen.trained == 100
        apart = {
            chunk: dataclasses.replace(found, values=found.values.copy())
            for chunk, found in pool.vectors(work_of(setting), chunks)
        }
        assert set(apart) == set(chunks)
        for chunk, privatized in setting.engine.vectors(work_of(setting), chunks):
            np.testing.assert_array_equal(apart[chunk].values, privatized.values)
            np.testing.assert_array_equal(apart[chunk].clipped, privatized.clipped)


def test_an_ideal_sum_is_the_sum_of_the_vectors(alone: Callable[..., Setting]) -> None:
    setting = alone()
    mechanism, work = setting.plan.build_mechanism(), work_of(setting)
    chunks = setting.population.chunks(range(40), 16)
    with setting.engine as engine:
        flat, _ = engine.total(work, chunks, mechanism.length)
        singles = [privatized.values for _, privatized in engine.vectors(work, chunks)]
    summed = np.concatenate(singles).sum(axis=0, dtype=np.int64)
    expected = to_ring(summed, bits=mechanism.modulus_bits)
    np.testing.assert_array_equal(in_ring(flat, mechanism, "ideal", invited=40), expected)


@pytest.mark.parametrize(
    "settings",
    [
        ("cohort.weighting=examples", "cohort.weight_cap=2"),
        ("privacy.adaptive_quantile=0.5",),
    ],
)
def test_exhausted_clients_send_neither_weights_nor_bits(
    settings: tuple[str, ...], alone: Callable[..., Setting]
) -> None:
    setting = alone(*settings)
    clipping = None if setting.clipping is None else setting.clipping.to_json()
    mechanism, (half, rest) = setting.plan.build_mechanism(), (range(8), range(8, 16))
    work = work_of(
        setting, clipping=clipping, weight_cap=setting.config.cohort.weight_cap or 0, shares=False
    )
    some = dataclasses.replace(work, exhausted=frozenset(half))
    with setting.engine as engine:
        total, _ = engine.total(some, [(*half, *rest)], mechanism.length)
        expected, _ = engine.total(work, [tuple(rest)], mechanism.length)
    assert expected[-1]
    np.testing.assert_array_equal(total, expected)


@pytest.mark.slow
def test_a_round_that_was_given_up_leaves_nothing_behind(alone: Callable[..., Setting]) -> None:
    setting = alone()
    work, length = work_of(setting), setting.plan.build_mechanism().length
    chunks = setting.population.chunks(range(64), 8)
    with setting.engine, several(setting) as pool:
        next(iter(pool.vectors(work, chunks)))
        found, _ = pool.total(work, chunks, length)
        np.testing.assert_array_equal(found, setting.engine.total(work, chunks, length)[0])


def test_a_killed_process_costs_no_bit(
    alone: Callable[..., Setting], task: Callable[[str], list[str]], tmp_path: Path
) -> None:
    setting = alone(*task("killed-once"))
    work, length = work_of(setting), setting.plan.build_mechanism().length
    chunks = setting.population.chunks(range(24), 4)
    with setting.engine, several(setting) as pool:
        before = set(pool.pids)
        found, tally = pool.total(work, chunks, length)
        assert tally.trained == 24
        assert len(set(pool.pids) - before) == 1
        np.testing.assert_array_equal(found, setting.engine.total(work, chunks, length)[0])


@pytest.mark.slow
def test_a_process_killed_from_outside_between_rounds(alone: Callable[..., Setting]) -> None:
    setting = alone()
    work, length = work_of(setting), setting.plan.build_mechanism().length
    chunks = setting.population.chunks(range(64), 16)
    with setting.engine, several(setting) as pool:
        pool.total(work, chunks, length)
        os.kill(pool.pids[0], signal.SIGKILL)
        found, _ = pool.total(work, chunks, length)
        np.testing.assert_array_equal(found, setting.engine.total(work, chunks, length)[0])


@pytest.mark.slow
def test_a_chunk_that_kills_every_process_is_named(
    alone: Callable[..., Setting], task: Callable[[str], list[str]]
) -> None:
    setting = alone(*task("killed"))
    with setting.engine, several(setting, processes=1) as pool:
        with pytest.raises(TrainingError, match=r"clients 3, 4 .*3 worker .* died.*SIGKILL"):
            pool.total(work_of(setting), [(3, 4)], setting.plan.build_mechanism().length)
        with pytest.raises(TrainingError, match="have ended"):
            pool.total(work_of(setting), [(3, 4)], setting.plan.build_mechanism().length)


@pytest.mark.parametrize("how", ["raises", "exits"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_failing_client_is_named(
    how: str, processes: int, configure: Configure, task: Callable[[str], list[str]], tmp_path: Path
) -> None:
    config = configure(*task(how), f"engine.processes={processes}")
    with pytest.raises(TrainingError, match=r"client \d+: .*the label is a cat.*check its data"):
        harness.run(config, out=tmp_path / "run")


def test_a_process_that_hangs_meets_its_deadline(
    alone: Callable[..., Setting], task: Callable[[str], list[str]]
) -> None:
    setting = alone(*task("hangs"))
    length = setting.plan.build_mechanism().length
    with setting.engine, several(setting, processes=1) as pool:
        pids = pool.pids
        while not pool._members[0].ready:  # its start is not what is timed here
            pool._members[0].ready = pool._members[0].link.recv() == ("ready",)
        pool._deadline = 1.0
        with pytest.raises(TrainingError, match=r"clients 7 .*no answer for 1 s.*engine.deadline"):
            pool.total(work_of(setting), [(7,)], length)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_threads_are_given_back(configure: Configure) -> None:
    before = torch.get_num_threads()
    setting = prepare(configure("engine.threads=1"))
    setting.engine.close()
    assert torch.get_num_threads() == before
    assert setting.config.engine.threads == 1


def test_short_jobs_stay_in_one_process(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_LONG", 1e9)
    setting = prepare(configure("engine.processes=0"))
    with setting.engine:
        assert isinstance(setting.engine, InProcess)
    assert setting.config.engine.processes == 1


@pytest.mark.slow
def test_a_job_that_is_worth_it_has_its_processes_started_early(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "cores", lambda: 2)
    monkeypatch.setattr(layout, "_WORTHWHILE", 0.0)
    monkeypatch.setattr(layout, "_LONG", 1e9)
    spawned: list[Recruits] = []

    def noted(count: int, *, threads: int) -> Recruits:
        spawned.append(Recruits(count, threads=threads))
        return spawned[-1]

    monkeypatch.setattr(layout, "Recruits", noted)
    setting = prepare(configure("engine.processes=0", "engine.chunk=8"))
    with setting.engine:
        assert isinstance(setting.engine, Processes)
        assert len(spawned) == 1
        assert setting.engine._recruits is spawned[0]
        assert len(setting.engine.pids) == setting.config.engine.processes == 2
    assert spawned[0].descriptor < 0


def test_a_job_that_cannot_be_planned_leaves_no_process_behind(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, spawn = [], Recruits._started

    def noted(self: Recruits) -> tuple[subprocess.Popen[bytes], Any]:
        process, link = spawn(self)
        started.append(process.pid)
        return process, link

    monkeypatch.setattr(Recruits, "_started", noted)
    with pytest.raises(FedsysError):
        prepare(configure("engine.processes=2", "privacy.noise_multiplier=1e12"))
    assert len(started) == 2
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_chunks_are_even_and_hold_everybody_once(alone: Callable[..., Setting]) -> None:
    population = alone().population
    for clients in (1, 5, 37, 100):
        for processes in (1, 2, 3):
            chunks = population.chunks(range(clients), 16, processes=processes)
            sizes = [len(chunk) for chunk in chunks]
            assert sorted(client for chunk in chunks for client in chunk) == list(range(clients))
            assert max(sizes) <= 16
            assert max(sizes) - min(sizes) <= 1
            assert clients < processes or len(chunks) % processes == 0


@settings(deadline=None)
@given(
    held=st.lists(st.integers(0, 400), max_size=60),
    most=st.integers(1, 40),
    processes=st.integers(1, 4),
)
def test_chunks_of_uneven_clients_take_equal_work(
    held: list[int], most: int, processes: int
) -> None:
    population = _holding(held)
    chunks = population.chunks(range(len(held)), most, processes=processes)
    assert sorted(client for chunk in chunks for client in chunk) == list(range(len(held)))
    assert all(len(chunk) <= most for chunk in chunks)
    longest_first = [held[client] for chunk in chunks for client in chunk]
    assert longest_first == sorted(held, reverse=True)
    # As many clients as a chunk holds, of which none is larger than what is over after an even
    # split: no chunk is then further from its share than by the larger clients at its two ends.
    parts = -(-len(held) // (most * processes)) * processes
    share = sum(size + 1 for size in held) / max(parts, 1)
    for chunk in chunks:
        assert sum(held[client] + 1 for client in chunk) <= share + max(held) + 1


def _holding(held: list[int]) -> Population:
    """A population of clients with so many examples each; nobody can train."""
    offsets = np.concatenate([[0], np.cumsum(held, dtype=np.int64)]).astype(np.int64)
    examples = Examples(x=torch.zeros(int(offsets[-1]), 1), y=torch.zeros(int(offsets[-1])))
    partition = Compressed(indices=np.arange(offsets[-1]), offsets=offsets)
    trainer = Trainer(tasks.load("digits", {}), LocalConfig(learning_rate=0.1, batch_size=8))
    return Population(train_set=examples, partition=partition, trainer=trainer, seed=0)


@pytest.mark.slow
def test_a_run_over_processes_stores_its_layout(configure: Configure, tmp_path: Path) -> None:
    stored: dict[str, Any] = {}
    for processes in (1, 2):
        run = harness.run(
            configure("privacy.mechanism=none", f"engine.processes={processes}", "engine.chunk=8"),
            out=tmp_path / str(processes),
        )
        assert run.rounds == 3
        stored[str(processes)] = (run.folder / "config.toml").read_text()
    assert "processes = 2" in stored["2"]


@pytest.mark.slow
def test_what_lies_in_the_current_folder_is_not_taken_for_ours(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "simulations").mkdir()
    (tmp_path / "simulations" / "__init__.py").write_text("raise SystemExit('not this one')\n")
    monkeypatch.chdir(tmp_path)
    result = harness.run(configure("engine.processes=2", "rounds.count=1"), out=tmp_path / "run")
    assert result.rounds == 1
