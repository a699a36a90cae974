"""Every path's updates equal the plain loop's, in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training.batched import BatchedPath
from client.training.dual import DualPath
from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.loop import LoopPath
from client.training.reference import plain_loop
from client.training.schedule import build
from client.training.selfcheck import PathFactory
from fedsys.tasks import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification

PATHS: dict[str, PathFactory] = {"dual": DualPath, "batched": BatchedPath, "loop": LoopPath}
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


MODELS = {"softmax": softmax, "mlp": mlp, "convolutional": convolutional}
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
        pytest.skip("Adam has no dual form; the path refuses it")
    found, expected = both(path, model_name, CONFIGS[config], RAGGED)
    assert expected.abs().max() > 1e-2
    assert (found - expected).abs().max() < 1e-10
    assert not found[-1].any(), "a client without examples does not move"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sizes", [(7,), (10, 10), (1,) * 5, (0,), (0, 0)])
def test_one_client_full_batches_single_examples_and_none(
    path: str, sizes: tuple[int, ...]
) -> None:
    found, expected = both(path, "mlp", CONFIGS["sgd"], sizes)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
