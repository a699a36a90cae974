"""Inputs that are gathered and rescaled in blocks are those of all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from client.training import LocalConfig, Trainer
from client.training.dual import path
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
