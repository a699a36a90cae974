"""What training writes into a model or a task must not reach the next client's update."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.training import LocalConfig, Trainer
from client.training.carryover import refuse_carryover
from fedsys.errors import TrainingError
from fedsys.tasks import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification

LOCAL = LocalConfig(batch_size=4, learning_rate=0.1)


def examples() -> Examples:
    generator = torch.Generator().manual_seed(1)
    return Examples(
        x=torch.randn(40, 6, generator=generator),
        y=torch.randint(0, 3, (40,), generator=generator),
    )


class Toy(Classification):
    """A task around one layer in front of a linear one."""

    name = "toy"

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        self.layer = layer

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(self.layer(), nn.Linear(6, 3))

    def clients(self, source: DataSource) -> FederatedData:
        return FederatedData(train=examples(), test=examples())


class Running(nn.Module):
    """A running mean; its buffer is written in place."""

    def __init__(self, *, persistent: bool = True) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(6), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


class Counted(nn.Module):
    """Only counts, in a buffer that is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + len(x)
        return x


class Average(nn.Module):
    """A running mean in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.held = torch.zeros(6)

    def forward(self, x: Tensor) -> Tensor:
        self.held = 0.9 * self.held + 0.1 * x.detach().mean(0)
        return x - self.held


class Stepped(nn.Module):
    """The n-th call counts less than the first."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.history: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.history.append(len(x))
        return x / len(self.history)


_GLOBAL = {"calls": 0}


class Outside(nn.Module):
    """State that is in no module."""

    def forward(self, x: Tensor) -> Tensor:
        _GLOBAL["calls"] += 1
        return x / _GLOBAL["calls"]


class NumpyNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        noise: Tensor = torch.from_numpy(np.random.default_rng().normal(size=x.shape))
        return x + noise.to(x.dtype)


class Centred(Toy):
    """The loss keeps a baseline in the task."""

    baseline: Any = 0.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.baseline = 0.5 * self.baseline + 0.5 * float(outputs.detach().mean())
        loss: Tensor = super().loss(outputs, targets)
        return loss * (1.0 + float(self.baseline))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Toy(Running), "the model's Running '0' writes its buffer 'mean' while it trains"),
        (Toy(Counted), "the model's Counted '0' writes its buffer 'seen' while it trains"),
        (
            Toy(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))),
            "the model's _SpectralNorm '0.parametrizations.weight.0' writes its buffer '_u'",
        ),
        (
            Toy(lambda: Running(persistent=False)),
            "buffer 'mean' of the Running '0' changed while it trained",
        ),
        (Toy(Average), "attribute 'held' of the Average '0' changed while it trained"),
        (Toy(Stepped), "attribute 'history' of the Stepped '0' changed while it trained"),
        (Toy(Outside), "its model or loss keeps state outside its modules"),
        (Toy(NumpyNoise), "or draws from another generator than torch's"),
        (Centred(nn.Identity), "attribute 'baseline' of the task changed while it trained"),
    ],
    ids=[
        "in-place",
        "replaced",
        "spectral",
        "non-persistent",
        "attribute",
        "list",
        "global",
        "numpy",
        "task",
    ],
)
@pytest.mark.parametrize("path", ["loop", "auto"])
def test_state_that_would_cross_clients_is_refused(task: Toy, message: str, path: str) -> None:
    trainer = Trainer(task, LOCAL, path=path, chunk=1)
    rows = [np.arange(8), np.arange(8, 16)]
    with pytest.raises(TrainingError, match=re.escape(message)) as refused:
        trainer.train(trainer.initial_weights(), examples(), rows, [1, 2])
    assert "\n" not in str(refused.value)


class Cached(nn.Module):
    """Attributes and caches that change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None
        self.ones: Tensor
        self.register_buffer("ones", torch.ones(6))
        self.register_buffer("cache", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach()
        self.cache = torch.arange(len(x))
        self.ones.fill_(1.0)
        return x


@pytest.mark.parametrize(
    "layer",
    [
        Cached,
        lambda: nn.Dropout(0.5),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)),
        lambda: nn.Sequential(nn.Unflatten(1, (6, 1)), nn.GroupNorm(2, 6), nn.Flatten()),
    ],
    ids=["cached", "dropout", "weight-norm", "group-norm"],
)
def test_what_changes_no_update_is_taken(layer: Callable[[], nn.Module]) -> None:
    task = Toy(layer)
    refuse_carryover(task, task.init_model(0), LOCAL, examples())
    trainer = Trainer(task, LOCAL, path="loop", chunk=1)
    weights, rows, seeds = trainer.initial_weights(), [np.arange(8), np.arange(8, 16)], [5, 6]
    one = trainer.train(weights, examples(), rows, seeds)
    other = trainer.train(weights, examples(), rows[::-1], seeds[::-1])
    np.testing.assert_array_equal(one, other[::-1])


def test_a_buffer_that_a_later_client_writes_is_found_then() -> None:
    class Rare(Running):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.max()) > 1e6 else x

    trainer = Trainer(Toy(Rare), LOCAL, path="loop", chunk=1)
    pool = examples()
    weights, rows = trainer.initial_weights(), [np.arange(8), np.arange(8, 16)]
    trainer.choose(weights, pool, rows)
    pool.x[9] = 1e7
    with pytest.raises(TrainingError, match="writes its buffer 'mean'"):
        trainer.train(weights, pool, rows, [1, 2])
