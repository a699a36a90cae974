"""Every path's updates equal the plain loop's, in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training.batched import BatchedPath
from client.training.dual.path import DualPath
from client.training.dual.progress import UnsupportedLayerError
from client.training.flat import FlatLayout
from client.training.graph.path import GraphPath
from client.training.local import LocalConfig
from client.training.loop import LoopPath
from client.training.schedule import build
from client.training.selfcheck import PathFactory
from fedsys.tasks import DataSource, Examples, FederatedData, load, seeded
from fedsys.tasks.classification import Classification
from fedsys.tasks.shakespeare import PADDING, VOCABULARY, CharacterModel
from tests.client.training.reference import plain_loop

PATHS: dict[str, PathFactory] = {
    "dual": DualPath,
    "batched": BatchedPath,
    "graph": GraphPath,
    "loop": LoopPath,
}
RAGGED = (23, 20, 11, 10, 9, 3, 1, 0)


class Toy(Classification):
    name = "toy"

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def init_model(self, seed: int) -> nn.Module:
        return copy.deepcopy(self.model)

    def clients(self, source: DataSource) -> FederatedData:
        return FederatedData(train=examples(), test=examples())


def softmax() -> nn.Module:
    return nn.Linear(12, 3)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 5, bias=False), nn.Linear(5, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)),
        nn.Conv2d(1, 4, 2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(4, 3, 1, bias=False),
        nn.Flatten(),
        nn.Linear(3, 3),
    )


class Residual(nn.Module):
    """A convolution and a linear layer that no cut can part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        images = x.view(-1, 1, 3, 4)
        outputs: Tensor = self.linear((images + self.conv(images).tanh()).flatten(1))
        return outputs


MODELS = {
    "softmax": softmax,
    "mlp": mlp,
    "convolutional": convolutional,
    "residual": Residual,
}
CONFIGS = {
    "sgd": LocalConfig(epochs=1, batch_size=5, learning_rate=0.3),
    "epochs": LocalConfig(epochs=3, batch_size=4, learning_rate=0.3),
    "momentum": LocalConfig(epochs=2, batch_size=5, learning_rate=0.2, momentum=0.8),
    "decay": LocalConfig(epochs=2, batch_size=5, learning_rate=0.2, weight_decay=0.1),
    "everything": LocalConfig(
        epochs=2,
        batch_size=5,
        learning_rate=0.2,
        momentum=0.5,
        weight_decay=0.1,
        proximal_mu=0.3,
    ),
    "whole-client": LocalConfig(epochs=2, batch_size=100, learning_rate=0.2),
    "adam": LocalConfig(
        epochs=2, batch_size=5, optimizer="adam", learning_rate=0.01, proximal_mu=0.1
    ),
}


def examples() -> Examples:
    generator = torch.Generator().manual_seed(4)
    return Examples(
        x=torch.randn(60, 12, generator=generator, dtype=torch.float64),
        y=torch.randint(0, 3, (60,), generator=generator),
    )


def clients(sizes: tuple[int, ...]) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(5)
    return [rng.permutation(60)[:size] for size in sizes]


def model_of(name: str) -> nn.Module:
    with seeded(3):
        return MODELS[name]().double()


def both(
    path: str, model_name: str, local: LocalConfig, sizes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    model, pool, rows = model_of(model_name), examples(), clients(sizes)
    task, seeds = Toy(model), list(range(100, 100 + len(sizes)))
    start = FlatLayout.of(model).read(model)
    expected = plain_loop(task, model, local, start, pool, rows, seeds)
    built = PATHS[path](task, copy.deepcopy(model), local)
    found = torch.full_like(expected, torch.nan)
    built.updates(start, pool, build(rows, seeds, local), seeds, found)
    return found, expected


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("config", CONFIGS)
def test_ragged_clients_equal_the_plain_loop(path: str, model_name: str, config: str) -> None:
    if path == "dual" and config == "adam":
        with pytest.raises(UnsupportedLayerError, match="'adam' has no dual form"):
            both(path, model_name, CONFIGS[config], RAGGED)
        return
    found, expected = both(path, model_name, CONFIGS[config], RAGGED)
    assert expected.abs().max() > 1e-2
    assert (found - expected).abs().max() < 1e-10
    assert not found[-1].any(), "a client without examples does not move"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("sizes", [(7,), (10, 10), (1,) * 5, (0,), (0, 0)])
def test_one_client_full_batches_single_examples_and_none(
    path: str, model_name: str, sizes: tuple[int, ...]
) -> None:
    found, expected = both(path, model_name, CONFIGS["sgd"], sizes)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("path", ["batched", "graph", "loop"])
def test_recurrent_models_train_in_batches_of_clients(cell: str, path: str) -> None:
    """Ragged clients and sequences of unequal length; the reference uses torch's own layers."""
    task = load("shakespeare", {"cell": cell, "hidden": 5, "embedding": 4, "sequence": 6})
    with seeded(2):
        model = task.init_model(2).double()
        x = torch.randint(0, VOCABULARY, (20, 6), dtype=torch.uint8)
        y = torch.randint(0, VOCABULARY, (20, 6))
    y[3, 2:] = PADDING
    pool, local = Examples(x=x, y=y), LocalConfig(batch_size=4, learning_rate=0.5)
    rows, seeds = [np.arange(11), np.arange(9, 12), np.arange(3, 4)], [1, 2, 3]
    start = FlatLayout.of(model).read(model)
    expected = plain_loop(task, Torchs(model), local, start, pool, rows, seeds)
    found = torch.full_like(expected, torch.nan)
    PATHS[path](task, model, local).updates(start, pool, build(rows, seeds, local), seeds, found)
    assert expected.abs().max() > 1e-2
    assert (found - expected).abs().max() < 1e-10


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("path", ["batched", "loop"])
def test_a_transformer_trains_in_batches_of_clients(path: str, optimizer: str) -> None:
    options = {"cell": "transformer", "hidden": 8, "layers": 2, "heads": 2, "sequence": 6}
    task = load("shakespeare", options)
    with seeded(2):
        model = task.init_model(2).double()
        x = torch.randint(0, VOCABULARY, (20, 6), dtype=torch.uint8)
        y = torch.randint(0, VOCABULARY, (20, 6))
    y[3, 2:] = PADDING
    local = LocalConfig(batch_size=4, learning_rate=0.05, optimizer=optimizer)
    rows, seeds = [np.arange(11), np.arange(9, 12), np.arange(3, 4)], [1, 2, 3]
    start, pool = FlatLayout.of(model).read(model), Examples(x=x, y=y)
    expected = plain_loop(task, model, local, start, pool, rows, seeds)
    found = torch.full_like(expected, torch.nan)
    PATHS[path](task, model, local).updates(start, pool, build(rows, seeds, local), seeds, found)
    assert expected.abs().max() > 1e-2
    assert (found - expected).abs().max() < 1e-8  # Adam divides by what may be almost zero


class Torchs(nn.Module):
    """The same parameters in the same order, run by torch's own recurrent layers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        assert isinstance(model, CharacterModel)
        self.embedding, self.inputs = model.embedding, model.inputs
        self.recurrent, self.readout = model.recurrent, model.readout

    def forward(self, symbols: Tensor) -> Tensor:
        sequence = self.embedding(symbols.long())
        for inputs, recurrent in zip(self.inputs, self.recurrent, strict=True):
            assert isinstance(recurrent, nn.Linear)
            hidden = recurrent.in_features
            of_inputs, input_bias = inputs.parameters()
            flat: list[Tensor] = [of_inputs, recurrent.weight, input_bias, recurrent.bias]
            zero = sequence.new_zeros(1, len(sequence), hidden)
            if recurrent.out_features == 3 * hidden:
                sequence, _ = torch.gru(sequence, zero, flat, True, 1, 0.0, True, False, True)
            else:
                sequence, _, _ = torch.lstm(
                    sequence, (zero, zero), flat, True, 1, 0.0, True, False, True
                )
        outputs: Tensor = self.readout(sequence)
        return outputs.transpose(1, 2)


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("config", [name for name in CONFIGS if name != "adam"])
def test_a_dual_sum_is_the_sum_of_its_clipped_updates(model_name: str, config: str) -> None:
    local = CONFIGS[config]
    _, expected = both("dual", model_name, local, RAGGED)
    lengths = expected.norm(dim=1)
    clip = float(lengths[lengths > 0].median())
    factors = (clip / lengths).clamp(max=1.0)
    factors[lengths == 0] = 0.0
    model, rows = model_of(model_name), clients(RAGGED)
    seeds = list(range(100, 100 + len(RAGGED)))
    start = FlatLayout.of(model).read(model)
    path = DualPath(Toy(model), model, local)
    schedule = build(rows, seeds, local)
    total, norms = path.clipped_sum(start, examples(), schedule, seeds, clip)
    assert (norms - lengths).abs().max() < 1e-9
    assert (total - factors @ expected).abs().max() < 1e-10


def test_norms_that_rounding_would_spoil_are_taken_of_the_updates_themselves() -> None:
    """Two examples whose gradients all but cancel: the Gram form has no digits left."""
    model = nn.Linear(40, 40, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    x = torch.ones(2, 40) * 100
    x[1, 0] += 0.01

    class Opposed(Toy):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs * (1.0 - 2.0 * targets.unsqueeze(1))).sum(1)

    pool, rows = Examples(x=x, y=torch.tensor([0, 1])), [np.array([0, 1])]
    local = LocalConfig(batch_size=2, learning_rate=0.1)
    start, schedule = torch.zeros(1600), build(rows, [1], local)
    path = DualPath(Opposed(model), model, local)
    found = torch.empty(1, 1600)
    path.updates(start, pool, schedule, [1], found)
    total, norms = path.clipped_sum(start, pool, schedule, [1], 1.0)
    assert 0 < float(norms[0]) == pytest.approx(float(found.norm()), rel=1e-6)
    assert torch.allclose(total, found[0], rtol=1e-6, atol=0)


def test_a_client_with_numbers_that_are_not_finite_adds_nothing_to_a_dual_sum() -> None:
    model, local = model_of("mlp"), CONFIGS["sgd"]
    pool, rows, seeds = examples(), [np.arange(10), np.arange(20, 30)], [1, 2]
    pool.x[3] = torch.inf
    start = FlatLayout.of(model).read(model)
    path = DualPath(Toy(model), model, local)
    total, norms = path.clipped_sum(start, pool, build(rows, seeds, local), seeds, 1e-3)
    alone, norm = path.clipped_sum(start, pool, build(rows[1:], seeds[1:], local), seeds[1:], 1e-3)
    assert torch.isnan(norms).tolist() == [True, False]
    assert norms[1] == pytest.approx(float(norm[0]), rel=1e-9)
    assert torch.allclose(total, alone, rtol=1e-9, atol=1e-15)
    assert total.norm() == pytest.approx(1e-3)


@pytest.mark.parametrize(("model_name", "batches"), [("convolutional", [5, 5]), ("residual", [])])
def test_a_convolutional_trunk_takes_client_by_client(model_name: str, batches: list[int]) -> None:
    seen: list[int] = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x

    front = [Counted()] if batches else []
    counted = nn.Sequential(*front, model_of(model_name), Counted())
    local, rows, seeds = CONFIGS["sgd"], clients((5, 5)), [1, 2]
    start = FlatLayout.of(counted).read(counted)
    out = start.new_empty((2, len(start)))
    DualPath(Toy(counted), counted, local).updates(
        start, examples(), build(rows, seeds, local), seeds, out
    )
    assert seen == [*batches, 10], "and its head all of them at once"


@pytest.mark.parametrize("front", ["flatten", "dropout", "nested"])
def test_layers_before_the_first_linear_one_are_computed_once_where_they_may(front: str) -> None:
    seen: list[int] = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x

    layers: dict[str, list[nn.Module]] = {
        "flatten": [Counted(), nn.Flatten()],
        "dropout": [nn.Dropout(0.5), Counted()],
        "nested": [nn.Sequential(Counted(), nn.Flatten()), nn.Identity()],
    }
    model = nn.Sequential(*layers[front], nn.Linear(12, 3)).double()
    local, rows, seeds = CONFIGS["sgd"], clients((10, 10)), [1, 2]
    path = DualPath(Toy(model), model, local)
    out = torch.empty(2, 39, dtype=torch.float64)
    path.updates(
        FlatLayout.of(model).read(model), examples(), build(rows, seeds, local), seeds, out
    )
    assert seen == ([10, 10] if front == "dropout" else [20])
