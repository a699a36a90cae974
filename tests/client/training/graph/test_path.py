"""Recorded epochs: long ones, padded ones, used again; and how a graph is recorded."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.training.device_memory import clients_that_fit
from client.training.flat import FlatLayout
from client.training.graph import path as graph_path
from client.training.graph.path import Epoch, GraphPath, roomy
from client.training.graph.recorder import CudaRecorder, PlainRecorder, Work, recorder_for
from client.training.graph.staging import Staging
from client.training.local import LocalConfig
from client.training.loop import LoopPath
from client.training.schedule import build
from client.training.trainer import Trainer
from fedsys.tasks import DataSource, Examples, Task, load

CONFIGS = {
    "sgd": LocalConfig(batch_size=4, epochs=2, learning_rate=0.3, weight_decay=0.01),
    "momentum": LocalConfig(batch_size=4, epochs=2, momentum=0.9, proximal_mu=0.1),
    "adam": LocalConfig(batch_size=4, epochs=2, optimizer="adam", learning_rate=0.01),
}


class Counting(PlainRecorder):
    """A plain recorder that runs the work before it repeats it, as a capture does."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, work: Work) -> Work:
        self.recorded += 1
        work()
        return work


@pytest.fixture(scope="module")
def task() -> Task:
    return load("digits", {"hidden": 6})


@pytest.fixture(scope="module")
def pool(task: Task) -> Examples:
    data = task.clients(DataSource()).train
    return Examples(x=data.x.double(), y=data.y)


def rows_of(sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(3)
    return [rng.permutation(1437)[:size] for size in sizes]


def compare(
    path: GraphPath, task: Task, local: LocalConfig, pool: Examples, sizes: Sequence[int]
) -> None:
    model = task.init_model(0).double()
    rows, seeds = rows_of(sizes), list(range(len(sizes)))
    start = FlatLayout.of(model).read(model)
    schedule = build(rows, seeds, local)
    expected, found = (start.new_empty((len(rows), len(start))) for _ in range(2))
    LoopPath(task, model, local).updates(start, pool, schedule, seeds, expected)
    path.updates(start, pool, schedule, seeds, found)
    assert float((found - expected).abs().max()) < 1e-10
    assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize("config", CONFIGS)
def test_an_epoch_longer_than_a_graph_repeats_it(
    config: str, task: Task, pool: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_path, "LONGEST", 3)
    local, recorder = CONFIGS[config], Counting()
    path = GraphPath(task, task.init_model(0).double(), local, recorder)
    for sizes in ([16, 16], [30, 17, 4, 0], [29, 29, 29]):
        compare(path, task, local, pool, sizes)
    assert recorder.recorded <= 3


@pytest.mark.parametrize("config", CONFIGS)
def test_a_graph_serves_other_chunks_of_about_its_shape(
    config: str, task: Task, pool: Examples
) -> None:
    local, recorder = CONFIGS[config], Counting()
    path = GraphPath(task, task.init_model(0).double(), local, recorder)
    compare(path, task, local, pool, [12] * 20)
    assert recorder.recorded == 1
    compare(path, task, local, pool, [12] * 17)
    assert recorder.recorded == 1, "three rows of padding are no reason for another graph"
    compare(path, task, local, pool, [12] * 16 + [3])
    assert recorder.recorded == 2, "who is done before the others needs masks"
    compare(path, task, local, pool, [12] * 10 + [7] * 6 + [0])
    assert recorder.recorded == 2
    for count in (1, 2, 3, 4, 5, 6):
        compare(path, task, local, pool, [9] * count)
    assert len(path._epochs) == 4, "memory for a few shapes only"


def test_padding_repeats_nobody_elses_damage(task: Task, pool: Examples) -> None:
    """Row 0, which fills what is not there, is not finite; nobody holds it."""
    x = pool.x.clone()
    x[0] = torch.nan
    local = CONFIGS["momentum"]
    path = GraphPath(task, task.init_model(0).double(), local, Counting())
    damaged = Examples(x=x, y=pool.y)
    assert all(0 not in rows for rows in rows_of([11, 6, 1]))
    compare(path, task, local, damaged, [11, 6, 1])
    compare(path, task, local, damaged, [6, 6])


def test_shapes_are_few() -> None:
    assert len({roomy(count) for count in range(1, 513)}) <= 64
    assert all(count <= roomy(count) <= count * 9 / 8 for count in range(1, 2000))


def test_a_trainer_on_the_path_graph_equals_the_loop(task: Task) -> None:
    data = task.clients(DataSource())
    rows, seeds = rows_of([12, 9, 1, 30, 0]), [1, 2, 3, 4, 5]
    local = CONFIGS["sgd"]
    found = Trainer(task, local, path="graph", chunk=3)
    weights = found.initial_weights()
    expected = Trainer(task, local, path="loop").train(weights, data.train, rows, seeds)
    np.testing.assert_allclose(
        found.train(weights, data.train, rows, seeds), expected, rtol=0, atol=2e-6
    )
    chosen = Trainer(task, local).choose(weights, data.train, rows)
    assert chosen.path != "graph", "on a CPU nobody chooses it"


class _Memory:
    """A device where a client takes `each` bytes and a batch of them `fixed` more."""

    def __init__(self, each: int, fixed: int, free: int) -> None:
        self._each, self._fixed, self._free = each, fixed, free
        self.trained = 0

    def train(self, clients: int) -> None:
        self.trained = clients
        if self._fixed + clients * self._each > self._free:
            raise torch.OutOfMemoryError("no room")

    def free(self) -> int:
        return self._free

    def peak(self, work: Callable[[], object]) -> int:
        work()
        return self._fixed + self.trained * self._each


@pytest.mark.parametrize(
    ("each", "fixed", "free", "most", "expected"),
    [
        (100, 0, 100_000, 4000, 750),
        (100, 15_000, 100_000, 4000, 600),
        (100, 0, 100_000, 512, 512),
        (100, 0, 799, 512, 1),
        (100, 0, 800, 512, 6),
        (0, 50, 1000, 512, 512),
    ],
)
def test_clients_at_once_follow_from_free_memory(
    each: int, fixed: int, free: int, most: int, expected: int
) -> None:
    memory = _Memory(each, fixed, free)
    assert clients_that_fit(memory, memory.train, most) == expected


def test_the_host_waits_for_nothing_but_what_it_asked_for() -> None:
    staging = Staging(torch.device("cpu"))
    into = torch.zeros(3, dtype=torch.float32)
    staging.copy(into, np.array([1.0, 2.0, 3.0]))
    fetched = staging.fetch(into)
    into.zero_()
    assert fetched.wait(1.0).tolist() == [1, 2, 3]


def test_recorders_fit_their_device() -> None:
    assert isinstance(recorder_for(torch.device("cpu")), PlainRecorder)
    assert isinstance(recorder_for(torch.device("cuda:0")), CudaRecorder)


def test_a_graph_is_warmed_up_beside_and_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls, on a CUDA that is made up."""
    calls: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            calls.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            calls.append("replay")

    @contextlib.contextmanager
    def entered(what: str) -> Iterator[None]:
        calls.append(f"{what}(")
        yield
        calls.append(")")

    def graph(_graph: Graph, *, pool: str, capture_error_mode: str) -> object:
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        return entered("capture")

    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: entered(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    recorder = CudaRecorder(torch.device("cuda:0"))
    repeat = recorder.record(lambda: calls.append("work"))
    repeat()
    assert calls == [
        "side waits for main",
        *["side(", "work", "work", "work", ")"],
        "main waits for side",
        *["capture(", "work", ")"],
        "replay",
    ]


def test_memory_that_runs_out_leaves_nothing_behind(task: Task, pool: Examples) -> None:
    """Also while the exception is still at hand: whoever halves the chunk needs the memory then."""
    made: list[weakref.ref[Epoch]] = []

    class Full(PlainRecorder):
        def record(self, work: Work) -> Work:
            made.append(weakref.ref(work.__self__))  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("no room")

    local = CONFIGS["sgd"]
    path = GraphPath(task, task.init_model(0).double(), local, Full())
    try:
        compare(path, task, local, pool, [40, 9])
    except torch.OutOfMemoryError:
        assert [each() for each in made] == [None]
    assert len(made) == 1
    assert not path._epochs
