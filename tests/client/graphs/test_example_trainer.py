"""DP-SGD from a graph against Opacus with the same key, and what bounds an example."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from client.graphs.engine import EngineName, engine_of
from client.graphs.example_trainer import ExampleGraphTrainer, PrivateSteps, _on_lattice
from client.graphs.process import SharedExamples, train
from client.training.example.privacy import ExamplePrivateTrainer
from client.training.example_privacy import UNITS, ExamplePrivacy
from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from fedsys.errors import ConfigError, TrainingError
from fedsys.graphs import TensorType, TrainingGraph, Vetted, encode, vet
from fedsys.tasks.export import export_task
from tests.client.graphs.zoo import Small, zoo
from tests.client.graphs.zoo import rows as rows_of
from tests.fedsys.graphs.samples import FLOAT, LONG, node

KEY = bytes(range(32))
PRIVACY = ExamplePrivacy(clip=0.7, noise_multiplier=0.8, example_rate=0.4, steps=4)
LOCALS = [
    LocalConfig(learning_rate=0.2, momentum=0.5, weight_decay=0.01, proximal_mu=0.1),
    LocalConfig(learning_rate=0.01, optimizer="adam"),
]


@cache
def _task(name: str = "dense") -> Small:
    if name == "dense":
        layers = lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))  # noqa: E731
        return Small(name, layers, rows_of(6, classes=4))
    found: Small = zoo()[name]
    return found


@cache
def _graph(name: str = "dense") -> Vetted:
    task = _task(name)
    return export_task(
        task, task.examples, name=name, options={}, batch_size=1, kind="example-gradients"
    )


def _start(name: str = "dense") -> NDArray[np.float32]:
    model = _task(name).init_model(1)
    return FlatLayout.of(model).read(model).numpy()


def _trainer(local: LocalConfig, name: str = "dense") -> ExampleGraphTrainer:
    graph, examples = _graph(name), _task(name).examples
    engine = engine_of("numpy", graph)
    return ExampleGraphTrainer(graph.graph, engine, local, examples.x.numpy(), examples.y.numpy())


@pytest.mark.parametrize("name", ["dense", pytest.param("norms", marks=pytest.mark.slow)])
@pytest.mark.parametrize("local", LOCALS)
def test_batches_noise_and_steps_are_those_of_opacus(local: LocalConfig, name: str) -> None:
    task, start = _task(name), _start(name)
    rows = np.arange(len(task.examples))
    ours = _trainer(local, name).update(start, rows, PrivateSteps(privacy=PRIVACY, key=KEY))
    private = ExamplePrivateTrainer(task, local, PRIVACY, mode="no_op")
    (theirs,) = private.train(start, task.examples, [rows], lambda _: KEY)
    assert np.abs(theirs).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6)


def test_no_example_adds_more_than_the_norm() -> None:
    rng = np.random.default_rng(1)
    for size in (1e-6, 0.5, 0.7, 3.0, 1e30):
        gradient = rng.normal(size=1000)
        gradient *= size / np.linalg.norm(gradient)
        found = _on_lattice(gradient.astype(np.float32), 0.7)
        norm = float(np.linalg.norm(found.astype(np.float64)))
        assert norm <= UNITS
        assert norm >= 0.999 * UNITS * min(1.0, size / 0.7) - 40
    for bad in (np.nan, np.inf, -np.inf):
        assert not _on_lattice(np.array([1.0, bad], np.float32), 1.0).any()


@pytest.mark.parametrize("engine", ["numpy", "ort"])
def test_an_example_on_which_the_graph_fails_counts_as_zero(engine: EngineName) -> None:
    if engine == "ort":
        pytest.importorskip("onnxruntime", reason="needs `pip install onnxruntime`")
    shape = {"x": TensorType(FLOAT, (1, 3)), "y": TensorType(LONG, (1,))}
    graph = TrainingGraph(
        task="sample",
        options={},
        kind="example-gradients",
        keep=(),
        inputs={"weights": TensorType(FLOAT, (2,)), **shape},
        constants={
            "c_9": np.array(9),
            "c_axis": np.array([1]),
            "c_many": np.array(40, np.float32),
            "c_shape": np.array([1, 2]),
        },
        nodes=(
            node("ReduceMax", "x c_axis", "top", keepdims=0),
            node("Greater", "top c_many", "wanted"),
            node("Cast", "wanted", "number", to=7),
            node("Mul", "number c_9", "index"),  # 0, or outside the weights
            node("Gather", "weights index", "losses", axis=0),
            node("Reshape", "weights c_shape", "gradients"),
        ),
        outputs={"gradients": TensorType(FLOAT, (1, 2)), "losses": TensorType(FLOAT, (1,))},
    )
    vetted, rows = vet(encode(graph)), np.arange(20)
    x, y = np.zeros((20, 3), np.float32), np.zeros(20, np.int64)
    x[7, 1] = 41
    private = PrivateSteps(privacy=PRIVACY, key=KEY)
    # All gradients are those of the weights, so that one that fails is one example less.
    found = train(
        vetted, SharedExamples(x, y), LOCALS[0], weights=np.ones(2, np.float32), rows=rows, seed=0,
        private=private, engine=engine,
    )  # fmt: skip
    assert "times, first with" in found.failed
    assert np.isfinite(found.update).all()
    x[7, 1] = 0
    whole = train(
        vetted, SharedExamples(x, y), LOCALS[0], weights=np.ones(2, np.float32), rows=rows, seed=0,
        private=private, engine=engine,
    )  # fmt: skip
    assert whole.failed == ""
    unit = LOCALS[0].learning_rate * PRIVACY.clip / (PRIVACY.example_rate * len(rows))
    moved = float(np.linalg.norm(whole.update - found.update))
    assert 0 < moved <= 3 * PRIVACY.steps * unit


def test_the_confined_process_trains_the_same() -> None:
    examples = _task().examples
    shared = SharedExamples(examples.x.numpy(), examples.y.numpy())
    rows, private = np.arange(len(examples)), PrivateSteps(privacy=PRIVACY, key=KEY)
    found = train(_graph(), shared, LOCALS[0], weights=_start(), rows=rows, seed=0, private=private)
    here = _trainer(LOCALS[0]).update(_start(), rows, private)
    np.testing.assert_array_equal(found.update, here)
    assert found.losses == ()  # the mean loss of a batch is not covered by the noise
    assert KEY.hex() not in repr(private)
    assert str(KEY) not in repr(private)


def test_a_client_without_examples_and_what_does_not_fit() -> None:
    trainer, private = _trainer(LOCALS[0]), PrivateSteps(privacy=PRIVACY, key=KEY)
    assert not trainer.update(_start(), np.arange(0), private).any()
    with pytest.raises(TrainingError, match="does not fit the graph"):
        trainer.update(_start()[1:], np.arange(3), private)
    task = _task()
    plain = export_task(task, task.examples, name="dense", options={}, batch_size=2)
    with pytest.raises(ConfigError, match="one of kind example-gradients is needed"):
        ExampleGraphTrainer(
            plain.graph, engine_of("numpy", plain), LOCALS[0],
            task.examples.x.numpy(), task.examples.y.numpy(),
        )  # fmt: skip
    several = export_task(
        task, task.examples, name="dense", options={}, batch_size=2, kind="example-gradients"
    )
    with pytest.raises(ConfigError, match="2 examples a step, which could mix them"):
        ExampleGraphTrainer(
            several.graph, engine_of("numpy", several), LOCALS[0],
            task.examples.x.numpy(), task.examples.y.numpy(),
        )  # fmt: skip
