"""Several inputs and targets, through checks, paths, processes and programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.training import LocalConfig, Trainer
from client.training.example.privacy import ExamplePrivacy, ExamplePrivateTrainer
from fedsys.errors import ConfigError
from fedsys.release.formats import as_pt2
from fedsys.tasks import DataSource, Examples, FederatedData, check_contract, seeded, split
from fedsys.tasks.modelling import conformed, init_model


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(7, 5), nn.Linear(8, 2)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        words = (self.embed(x["tokens"]) * x["mask"].unsqueeze(-1)).sum(1)
        return torch.as_tensor(self.linear(torch.cat([words, x["dense"]], 1)))


class Several:
    """A dict in, a tuple out."""

    name = "several"

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return Pooled()

    def loss(self, outputs: Any, targets: Any) -> Any:
        labels, weights = targets
        return functional.cross_entropy(outputs, labels, reduction="none") * weights

    def metrics(self, outputs: Any, targets: Any) -> Any:
        return {"accuracy": (outputs.argmax(1) == targets[0]).float()}

    def clients(self, source: DataSource) -> FederatedData:
        return FederatedData(train=examples(), test=examples(), natural=torch.arange(40) % 6)


class MeanWeight(Several):
    def loss(self, outputs: Any, targets: Any) -> Any:
        return super().loss(outputs, targets) / targets[1].mean()


def examples() -> Examples:
    with seeded(1):
        x = {
            "tokens": torch.randint(0, 7, (40, 4)),
            "mask": (torch.rand(40, 4) > 0.3).double(),
            "dense": torch.randn(40, 3),
        }
        return Examples(x=x, y=[torch.randint(0, 2, (40,)), torch.rand(40) + 0.5])


LOCAL = LocalConfig(epochs=2, batch_size=3, learning_rate=0.2)


def test_they_are_checked_and_train_alike_on_every_path() -> None:
    task, data = Several(), Several().clients(DataSource())
    check_contract(task, data, 0)
    rows = [split(data, "by-column", None, 0).indices_of(id) for id in range(6)]
    found = {}
    for path in ("loop", "batched", "graph"):
        trainer = Trainer(task, LOCAL, path=path, chunk=4)
        start = trainer.initial_weights()
        found[path] = trainer.train(start, data.train, rows, range(6))
    assert np.abs(found["loop"]).max() > 1e-3
    for path in ("batched", "graph"):
        assert np.allclose(found[path], found["loop"], atol=1e-6)
    with pytest.raises(ConfigError, match="'dual' cannot train task several"):
        Trainer(task, LOCAL, path="dual").train(start, data.train, rows, range(6))
    moved = Trainer(task, LOCAL).evaluate(start + found["loop"].mean(0), data.test)
    assert moved["loss"] < Trainer(task, LOCAL).evaluate(start, data.test)["loss"]


def test_targets_of_other_rows_are_noticed_in_every_part() -> None:
    with pytest.raises(ConfigError, match=r"loss of row 0 goes from .* rows change"):
        check_contract(MeanWeight(), MeanWeight().clients(DataSource()), 0)


def test_their_examples_are_protected_one_by_one() -> None:
    data, seen = Several().clients(DataSource()), []
    for noise in (1e-6, 1e-6):
        privacy = ExamplePrivacy(clip=1.0, noise_multiplier=noise, example_rate=1.0, steps=1)
        trainer = ExamplePrivateTrainer(Several(), LOCAL, privacy)
        start = init_model(Several(), 0)
        flat = torch.cat([each.detach().reshape(-1) for each in start.parameters()]).numpy()
        seen.append(trainer.train(flat, data.train, [np.arange(40)], lambda n: bytes(n)))
    assert np.allclose(seen[0], seen[1], atol=1e-6)
    # One step over all 40 examples, each gradient clipped to 1: at most the rate times 1 long.
    assert 0 < np.linalg.norm(seen[0]) <= LOCAL.learning_rate * 1.001


def test_they_are_exported(tmp_path: Path) -> None:
    model = init_model(Several(), 0).eval()
    some = conformed(model, examples())
    (tmp_path / "m.pt2").write_bytes(as_pt2(model, some[:3].x, {}))
    program = torch.export.load(tmp_path / "m.pt2")
    assert torch.allclose(program.module()(some.x), model(some.x))
