"""The measurement compares paths on the same kind of clients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from client.training import LocalConfig, Trainer
from fedsys.tasks import DataSource, Examples, load


def test_every_path_is_measured_with_clients_of_about_the_average_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = Trainer(load("digits", {"hidden": 8}), LocalConfig())
    data = trainer.task.clients(DataSource()).train
    sizes = [2] * 4 + [3] * 9 + [4] * 9 + [40] * 9  # with the lowest quarter left out: 17
    measured: dict[str, list[int]] = {}

    def updates(path: str, start: Tensor, pool: Examples, clients: Any) -> None:
        measured[f"{path}/{len(clients)}"] = [len(each) for each in clients.rows]

    monkeypatch.setattr(trainer._runner, "updates", updates)
    monkeypatch.setattr(trainer, "_usable", lambda pool, rows: (["batched", "loop"], {}))
    trainer.choose(trainer.initial_weights(), data, [np.arange(n) for n in sizes])
    assert measured["loop/1"] == [4]
    assert 10 < np.mean(measured["batched/8"]) < 25
