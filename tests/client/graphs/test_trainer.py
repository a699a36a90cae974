"""Training from a graph against the torch loop, and what a trainer refuses."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.graphs.engine import engine_of
from client.graphs.trainer import GraphTrainer, dropout_mask
from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.loop import LoopPath
from client.training.schedule import batches, build
from fedsys.errors import ConfigError, TrainingError
from fedsys.graphs import TensorType, Vetted
from fedsys.tasks.export import export_task
from fedsys.tasks.export.checking import ReplayedDropout
from tests.client.graphs.zoo import Reading, Transformer, sequences, zoo

_CLOSE = 5e-6
BATCH = 4


@cache
def _task(name: str) -> Any:
    if name == "dropout":
        return Reading(name, lambda: Transformer(0.3), sequences())
    return zoo()[name]


@cache
def _graph(name: str) -> Vetted:
    task = _task(name)
    return export_task(task, task.examples, name=name, options={}, batch_size=BATCH)


def _by_graph(
    name: str, local: LocalConfig, start: NDArray[np.float32], rows: NDArray[np.int64], seed: int
) -> NDArray[np.float32]:
    graph, examples = _graph(name), _task(name).examples
    trainer = GraphTrainer(
        graph.graph,
        engine_of("numpy", graph),
        local,
        examples.x.numpy(),
        examples.y.numpy(),
    )
    return trainer.update(start, rows, seed)[0]


def _by_torch(
    name: str, local: LocalConfig, start: NDArray[np.float32], rows: NDArray[np.int64], seed: int
) -> NDArray[np.float32]:
    task = _task(name)
    out = torch.empty(1, len(start))
    path = LoopPath(task, task.init_model(0), local)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path.updates(
            torch.from_numpy(start), task.examples, build([rows], [seed], local), [seed], out
        )
    return out[0].numpy()


def _exact(
    name: str, local: LocalConfig, start: NDArray[np.float32], rows: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    """The update in float64."""
    task = _task(name)
    out = torch.empty(1, len(start), dtype=torch.float64)
    path = LoopPath(task, task.init_model(0).double(), local)
    path.updates(torch.from_numpy(start), task.examples, build([rows], [seed], local), [seed], out)
    return out[0].numpy()


def _reach(
    name: str, local: LocalConfig, start: NDArray[np.float32], rows: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.float64], float]:
    """The update in float64, and how far it moves where weights move by a few roundings.

    A gradient jumps where a ReLU or a maximum over a window changes its choice. Where such a place
    is nearer than float32's rounding, two correct trainings differ by the jump: by 1e-5 in one
    convolution of `mnist-cnn`, on some processors and not on others.
    """
    exact, rng, most = _exact(name, local, start, rows, seed), np.random.default_rng(0), 0.0
    for _ in range(12):
        moved = (start * (1 + 1e-6 * rng.standard_normal(len(start)))).astype(np.float32)
        update = _exact(name, local, moved, rows, seed)
        most = max(most, float(np.abs(update - exact).max()))
    return exact, most


def _start(name: str) -> NDArray[np.float32]:
    model = _task(name).init_model(0)
    found: NDArray[np.float32] = FlatLayout.of(model).read(model).numpy()
    return found


def _moved(name: str) -> NDArray[np.bool_]:
    """(d,) all weights but the bias of an attention's keys: softmax does not change when a number
    is added to all scores, so that its gradient is zero but for rounding, which Adam magnifies."""
    layout = FlatLayout.of(_task(name).init_model(0))
    moved = np.ones(layout.dimension, dtype=np.bool_)
    for bias, start, shape in zip(layout.names, layout.offsets, layout.shapes, strict=False):
        if bias.endswith("in_proj_bias"):
            moved[start + shape[0] // 3 : start + 2 * shape[0] // 3] = False
    return moved


LOCALS = {
    "sgd": LocalConfig(epochs=2, batch_size=BATCH, learning_rate=0.05),
    "momentum": LocalConfig(
        batch_size=BATCH,
        learning_rate=0.02,
        momentum=0.9,
        weight_decay=1e-3,
        proximal_mu=0.1,
        epochs=2,
    ),
    "adam": LocalConfig(batch_size=BATCH, optimizer="adam", learning_rate=1e-3, weight_decay=1e-3),
    "smaller batches": LocalConfig(batch_size=3, learning_rate=0.05),
}


RECURRENT = [pytest.param(name, marks=pytest.mark.slow) for name in ("gru", "transformer")]
"""Exporting them takes seconds; with plain SGD they are among the quick tests."""


@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_updates_of_larger_models_are_those_of_the_torch_loop(name: str) -> None:
    test_updates_are_those_of_the_torch_loop(name, "sgd")


@pytest.mark.parametrize("local", LOCALS)
@pytest.mark.parametrize("name", ["mnist-mlp", "mnist-cnn", *RECURRENT])
def test_updates_are_those_of_the_torch_loop(name: str, local: str) -> None:
    rows = np.arange(1, 40, 2)[:18]  # 18 examples: the last batch of 4 has 2
    found = _by_graph(name, LOCALS[local], _start(name), rows, 11)
    expected = _by_torch(name, LOCALS[local], _start(name), rows, 11)
    assert np.abs(expected).max() > 1e-3
    moved = _moved(name)
    if np.abs(found - expected)[moved].max() <= _CLOSE:
        return
    exact, reach = _reach(name, LOCALS[local], _start(name), rows, 11)
    for update in (found, expected):
        np.testing.assert_allclose(update[moved], exact[moved], rtol=0, atol=_CLOSE + 2 * reach)


@pytest.mark.slow
def test_kinks_leave_little_room() -> None:
    rows = np.arange(1, 40, 2)[:18]
    exact, reach = _reach("mnist-cnn", LOCALS["sgd"], _start("mnist-cnn"), rows, 11)
    assert 0 < reach < 2e-4
    other = _by_graph("mnist-cnn", LOCALS["smaller batches"], _start("mnist-cnn"), rows, 11)
    assert np.abs(other - exact).max() > 100 * (_CLOSE + 2 * reach)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["norms", *(pytest.param(each, marks=pytest.mark.slow) for each in ("nn.GRU", "nn.LSTM"))],
)
def test_other_models_train_as_in_torch(name: str) -> None:
    rows = np.arange(10)
    found = _by_graph(name, LOCALS["sgd"], _start(name), rows, 2)
    expected = _by_torch(name, LOCALS["sgd"], _start(name), rows, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=_CLOSE)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(0, 15),
    epochs=st.integers(1, 3),
    size=st.integers(1, BATCH),
    seed=st.integers(0, 2**63),
    optimizer=st.sampled_from(["sgd", "adam"]),
)
def test_any_number_of_examples_any_batch_size(
    count: int, epochs: int, size: int, seed: int, optimizer: str
) -> None:
    local = LocalConfig(
        epochs=epochs, batch_size=size, optimizer=optimizer, learning_rate=1e-2, proximal_mu=0.5
    )
    start, rows = _start("mnist-mlp"), np.arange(count)
    found = _by_graph("mnist-mlp", local, start, rows, seed)
    # Adam's first steps divide by a gradient's size: where that is rounding, so is the step.
    close = 5e-4 if optimizer == "adam" else _CLOSE
    np.testing.assert_allclose(
        found, _by_torch("mnist-mlp", local, start, rows, seed), rtol=0, atol=close
    )


@pytest.mark.slow
def test_dropout_takes_the_masks_that_the_stream_gives() -> None:
    name, local = "dropout", LocalConfig(batch_size=BATCH, learning_rate=0.05, epochs=2)
    graph, rows, seed = _graph(name), np.arange(10), 9
    assert len(graph.graph.masks) == 4
    found = _by_graph(name, local, _start(name), rows, seed)
    masks = [
        dropout_mask(type_, keep, seed=seed, step=step, number=number)
        for step, _ in enumerate(batches(rows, seed, local))
        for number, (_, type_, keep) in enumerate(graph.graph.masks)
    ]
    math = torch.nn.attention.SDPBackend.MATH
    with torch.nn.attention.sdpa_kernel(math), ReplayedDropout(masks):
        expected = _by_torch(name, local, _start(name), rows, seed)
    np.testing.assert_allclose(found, expected, rtol=0, atol=_CLOSE)
    other = _by_graph(name, local, _start(name), rows, seed + 1)
    assert np.abs(other - found).max() > 1e-3


def test_masks_keep_as_many_as_they_should() -> None:
    """Of n draws with chance p, a count 6 standard deviations off comes less than once in 10^8."""
    type_ = TensorType(np.dtype("?"), (200, 500))
    for keep in (0.1, 0.75, 1.0):
        mask = dropout_mask(type_, keep, seed=3, step=1, number=0)
        spread = (keep * (1 - keep) * type_.count) ** 0.5
        assert abs(mask.sum() - keep * type_.count) <= 6 * spread
    first = dropout_mask(type_, 0.5, seed=3, step=1, number=0)
    for other in ({"seed": 4}, {"step": 2}, {"number": 1}):
        mask = dropout_mask(type_, 0.5, **{"seed": 3, "step": 1, "number": 0, **other})
        assert abs((mask == first).mean() - 0.5) < 6 * 0.5 / type_.count**0.5


def test_what_does_not_fit_is_refused() -> None:
    graph, examples = _graph("mnist-mlp"), _task("mnist-mlp").examples
    x, y, engine = examples.x.numpy(), examples.y.numpy(), engine_of("numpy", graph)
    with pytest.raises(ConfigError, match="export one with --batch-size 5"):
        GraphTrainer(graph.graph, engine, LocalConfig(batch_size=5), x, y)
    with pytest.raises(ConfigError, match=r"rows of float32 \[1, 28, 28\].*takes rows of uint8"):
        GraphTrainer(graph.graph, engine, LOCALS["sgd"], x.astype(np.float32), y)
    with pytest.raises(ConfigError, match="give one y per x"):
        GraphTrainer(graph.graph, engine, LOCALS["sgd"], x, y[1:])
    trainer = GraphTrainer(graph.graph, engine, LOCALS["sgd"], x, y)
    with pytest.raises(TrainingError, match="which has 50890 parameters"):
        trainer.update(np.zeros(3, np.float32), np.arange(4), 0)
    worse = GraphTrainer(graph.graph, engine, LOCALS["sgd"], x, y + 10)
    update, _ = worse.update(_start("mnist-mlp"), np.arange(4), 0)
    assert not update.any()  # a refusal would tell of the examples
    assert worse.failed > 0
    assert "Error" in worse.failure
