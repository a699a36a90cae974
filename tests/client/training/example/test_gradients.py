"""Which form of gradients a model gets does not depend on whose data come first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training import LocalConfig
from client.training.example.privacy import ExamplePrivacy, ExamplePrivateTrainer
from fedsys.tasks import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification


class Scaled(nn.Module):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.linear = nn.Parameter(torch.tensor(0.5)), nn.Linear(100, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.linear(x) * self.scale)


class Wide(Classification):
    name = "wide"

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def init_model(self, seed: int) -> nn.Module:
        return self._model

    def clients(self, source: DataSource) -> FederatedData:
        return FederatedData(train=pool(), test=pool())


def pool() -> Examples:
    """Client 0 has nothing but damaged examples, client 1 has zeros alone."""
    with seeded(0):
        x = torch.randn(40, 100)
    y = torch.arange(40) % 2
    x[:10], x[10:20], y[10:20] = torch.nan, 0.0, 1
    return Examples(x=x, y=y)


CLIENTS = [np.arange(10), np.arange(10, 20), np.arange(20, 40)]


def trained(
    model: nn.Module, rows: Sequence[NDArray[np.int64]]
) -> tuple[str | None, NDArray[np.float32]]:
    privacy = ExamplePrivacy(clip=1.0, noise_multiplier=1e-6, example_rate=1.0, steps=1)
    trainer = ExamplePrivateTrainer(Wide(model), LocalConfig(learning_rate=1.0), privacy)
    start = torch.cat([each.detach().reshape(-1) for each in model.parameters()]).float()
    updates = trainer.train(start.numpy(), pool(), rows, lambda count: bytes(count))
    return trainer.mode, updates


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_form_and_the_updates_are_the_same_in_any_order(order: tuple[int, ...]) -> None:
    with seeded(1):
        model = nn.Sequential(nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 2))
    mode, updates = trained(model, [CLIENTS[client] for client in order])
    assert mode == "ghost"
    by_client = updates[np.argsort(order)]
    assert np.abs(by_client[0]).max() < 1e-4, "only noise: nothing of a damaged example counts"
    assert [bool(np.linalg.norm(each) > 1e-2) for each in by_client] == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_without_dimensions_are_clipped_with_the_rest(dtype: torch.dtype) -> None:
    with seeded(2):
        model = Scaled().to(dtype)
    mode, updates = trained(model, CLIENTS[2:])
    assert mode == "no_op"
    assert abs(updates[0, 0]) > 1e-4, "the scale moved"
    assert np.linalg.norm(updates[0]) <= 1.0 + 1e-3
