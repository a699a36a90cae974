"""Inputs gathered in blocks are those of all rows at once; memory is written before it is read."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training import LocalConfig, Trainer
from client.training.dual import path
from client.training.dual.progress import Room
from fedsys.tasks import DataSource, load, split


@pytest.mark.parametrize("epochs", [1, 40])  # a short history, whose Gram matrices are kept, or not
def test_the_size_of_blocks_changes_no_bit(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load("synthetic", {"examples": 100, "hidden": 8})
    data = task.clients(DataSource())
    deal = split(data, "iid", clients=20, seed=1)
    rows = [deal.indices_of(client) for client in (3, 4, 9)]

    def updates(cached: int) -> NDArray[np.float32]:
        monkeypatch.setattr(path, "_CACHED", cached)
        local = LocalConfig(learning_rate=0.05, batch_size=2, epochs=epochs)
        trainer = Trainer(task, local, path="dual", chunk=8)
        return trainer.train(trainer.initial_weights(), data.train, rows, [5, 6, 7])

    whole = updates(1 << 30)
    assert np.isfinite(whole).all()
    assert np.array_equal(updates(4 * 784 * 4), whole)
    assert np.array_equal(updates(1), whole)


class Unreached(nn.Module):
    """Autograd does not reach all of its wide layers: one is not called, or called without it."""

    def __init__(self, called: bool) -> None:
        super().__init__()
        self.first, self.aside = nn.Linear(64, 256), nn.Linear(256, 256)
        self.last, self._called = nn.Linear(256, 10), called

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.flatten(1)).relu()
        if self._called:
            with torch.no_grad():
                hidden = self.aside(hidden).relu()
        found: Tensor = self.last(hidden)
        return found


def chained() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("sizes", [[9, 9, 9], [20, 9, 1]])
@pytest.mark.parametrize(
    "make",
    [lambda: Unreached(False), lambda: Unreached(True), chained],
    ids=["not called", "no_grad", "chain"],
)
def test_what_was_in_memory_does_not_matter(
    make: Callable[[], nn.Module],
    sizes: list[int],
    momentum: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = Room.take

    def used(self: Room, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return taken(self, name, shape, like).fill_(torch.nan)

    task = load("digits")
    data = task.clients(DataSource())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    monkeypatch.setattr(task, "init_model", lambda seed: copy.deepcopy(model))
    rows = [np.arange(100 * at, 100 * at + size) for at, size in enumerate(sizes)]
    local = LocalConfig(batch_size=4, learning_rate=0.1, momentum=momentum)

    def updates(way: str) -> list[NDArray[np.float64]]:
        trainer = Trainer(task, local, path=way, chunk=3)
        start = trainer.initial_weights()
        summed = trainer.clipped_sum(start, data.train, rows, [1, 2, 3], clip=0.05)
        trained = trainer.train(start, data.train, rows, [1, 2, 3])
        return [trained.astype(np.float64), summed.total]

    expected = updates("loop")
    monkeypatch.setattr(Room, "take", used)
    for found, plain in zip(updates("dual"), expected, strict=True):
        np.testing.assert_allclose(found, plain, atol=1e-5)
