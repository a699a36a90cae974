"""What depends on the batch is not trained by a path that pads it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.training import LocalConfig, Trainer, schedule, selfcheck
from client.training.selfcheck import reason_to_refuse, spread_rows
from client.training.trainer import PATHS
from fedsys.errors import ConfigError
from fedsys.tasks import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification
from tests.client.training.reference import plain_loop


def examples(rows: int = 200) -> Examples:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 6, generator=generator)
    return Examples(x=x, y=(x.sum(1) > 0).long())


class Toy(Classification):
    name = "toy"

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))

    def clients(self, source: DataSource) -> FederatedData:
        return FederatedData(train=examples(), test=examples())


class MeanLoss(Toy):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets).mean()


class SpreadMean(Toy):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets).mean().expand(len(targets))


class Layer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class BatchLayer(Toy):
    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(nn.Linear(6, 5), Layer(), nn.Tanh(), nn.Linear(5, 2))


class BatchNorm(Toy):
    """As torch's: with images, of which one in a batch is enough."""

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(
                nn.Unflatten(1, (1, 2, 3)),
                nn.Conv2d(1, 2, 2),
                nn.BatchNorm2d(2, track_running_stats=False),
                nn.Flatten(),
                nn.Linear(4, 2),
            )


DEPENDENT = [MeanLoss(), SpreadMean(), BatchLayer(), BatchNorm()]


@pytest.mark.parametrize("batch", [2, 3, 4, 5, 10, 16, 50])
@pytest.mark.parametrize("task", DEPENDENT, ids=lambda it: type(it).__name__)
@pytest.mark.parametrize("path", ["dual", "batched", "graph"])
def test_a_path_that_pads_is_refused(path: str, task: Any, batch: int) -> None:
    local = LocalConfig(batch_size=batch, learning_rate=0.1)
    assert reason_to_refuse(PATHS[path], task, task.init_model(0), local, examples()) is not None


@pytest.mark.parametrize("task", DEPENDENT, ids=lambda it: type(it).__name__)
@pytest.mark.parametrize("path", ["dual", "batched"])
def test_a_large_model_is_compared_by_pairs(
    path: str, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    build = schedule.build

    def seen(clients: Any, seeds: Any, local: Any) -> Any:
        most.append(len(clients))
        return build(clients, seeds, local)

    monkeypatch.setattr(selfcheck, "build", seen)
    monkeypatch.setattr(selfcheck, "_LARGE", 1)
    local = LocalConfig(batch_size=10, learning_rate=0.1)
    assert reason_to_refuse(PATHS[path], task, task.init_model(0), local, examples()) is not None
    assert reason_to_refuse(PATHS[path], Toy(), Toy().init_model(0), local, examples()) is None
    assert max(most) == 2


@pytest.mark.parametrize("batch", [1, 2, 4, 10, 50])
@pytest.mark.parametrize("path", ["dual", "batched", "graph"])
def test_what_is_per_example_is_not(path: str, batch: int) -> None:
    local = LocalConfig(batch_size=batch, learning_rate=0.1)
    assert reason_to_refuse(PATHS[path], Toy(), Toy().init_model(0), local, examples()) is None


@pytest.mark.parametrize("task", DEPENDENT, ids=lambda it: type(it).__name__)
@pytest.mark.parametrize("sizes", [[8, 8, 8], [7, 6, 2], [11, 9, 5]])
def test_auto_trains_ragged_clients_as_a_plain_loop_does(task: Any, sizes: list[int]) -> None:
    local = LocalConfig(batch_size=4, learning_rate=0.1)
    ends = np.cumsum([0, *sizes])
    rows = [np.arange(a, b) for a, b in pairwise(ends.tolist())]
    trainer = Trainer(task, local, chunk=3)
    weights = trainer.initial_weights()
    found = trainer.train(weights, examples(), rows, [5, 6, 7])
    start = torch.from_numpy(weights)
    expected = plain_loop(
        task, task.init_model(0), local, start, examples(), rows, [5, 6, 7]
    ).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert trainer.choice is not None
    assert trainer.choice.path == "loop"
    with pytest.raises(ConfigError, match=r"'batched' cannot train task toy.*use path = 'auto'"):
        Trainer(task, local, path="batched", chunk=3).train(weights, examples(), rows, [5, 6, 7])


class Bytes(Toy):
    """Inputs stay bytes, and forward asks for float32 by name."""

    def __init__(self, mixing: bool) -> None:
        self._mixing = mixing

    def init_model(self, seed: int) -> nn.Module:
        layers = [Single(), nn.Linear(6, 5), *([Layer()] if self._mixing else []), nn.Linear(5, 2)]
        with seeded(seed):
            return nn.Sequential(*layers)


class Single(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() / 255


@pytest.mark.parametrize("path", ["batched", "dual", "graph"])
def test_a_model_that_computes_in_float32_alone_is_compared_in_it(path: str) -> None:
    some = examples()
    pool = Examples(x=(some.x * 40 + 128).clamp(0, 255).to(torch.uint8), y=some.y)
    local = LocalConfig(batch_size=10, learning_rate=0.1)
    for mixing in (False, True):
        task = Bytes(mixing)
        why = reason_to_refuse(PATHS[path], task, task.init_model(0), local, pool)
        assert (why is not None) == mixing, why


def test_rows_come_from_all_over_and_are_finite() -> None:
    pool = Examples(x=torch.arange(5000.0).view(-1, 1), y=torch.zeros(5000))
    pool.x[:100] = torch.nan
    pool.y[4999] = torch.inf
    some = spread_rows(pool, 64)
    assert len(some) == 64
    assert float(some.x.min()) < 250
    assert float(some.x.max()) > 4500
    assert torch.isfinite(some.x).all()
    assert torch.isfinite(some.y).all()
    assert len(spread_rows(Examples(x=pool.x[:3], y=pool.y[:3]), 64)) == 0
