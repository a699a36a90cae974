"""Contrastive learning: an encoder that nobody needs labels for.

    python examples/contrastive.py [--quick]

The loss (NT-Xent of SimCLR, Chen et al. 2020, arXiv:2002.05709, equation 1) compares the examples
of a batch with each other, so no loss of single examples can express it: ``local_update`` does.
Labels are used at the end only: does the nearest training example, by the encoder, have the label
of a test example that was distorted in the same way?
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

import fedsys
from fedsys.tasks import DataSource, Examples, seeded
from fedsys.tasks.digits import Digits


def views(x: Tensor) -> Tensor:
    """A random view of each image: shifted by up to one pixel, with pixels left out."""
    images = x.reshape(-1, 8, 8)
    dx, dy = torch.randint(-1, 2, (2,)).tolist()
    shifted = images.roll((dx, dy), dims=(1, 2)).reshape(len(x), 64)
    return shifted * (torch.rand_like(shifted) > 0.25)


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """Of two views (B, d) of the same examples: each has to find its partner among all."""
    both = nn.functional.normalize(torch.cat([first, second]), dim=1)
    alike = both @ both.T / temperature
    alike = alike.masked_fill(torch.eye(len(both), dtype=torch.bool), -torch.inf)
    partner = torch.arange(len(both)).roll(len(first))
    return nn.functional.cross_entropy(alike, partner)


class Contrastive(Digits):
    """The outputs are 32 coordinates, of which ten serve as logits for the usual figures."""

    def __init__(self) -> None:
        super().__init__({"hidden": 64})

    def init_model(self, seed: int) -> nn.Module:
        """An encoder."""
        model = super().init_model(seed)
        with seeded(seed + 1):
            return nn.Sequential(model[0], nn.ReLU(), nn.Linear(64, 32))

    def local_update(self, model: nn.Module, examples: Examples, local: Any) -> None:
        """`nt_xent` in place of the task's loss."""
        local.train(
            model,
            examples,
            loss=lambda model, batch: nt_xent(model(views(batch.x)), model(views(batch.x))),
        )


def neighbours_agree(model: nn.Module) -> float:
    """How often a distorted test example's nearest training example has its label."""
    data = Contrastive().clients(DataSource())
    with torch.no_grad(), seeded(1):
        known = nn.functional.normalize(model(data.train.x), dim=1)
        distorted = torch.cat([views(each[None]) for each in data.test.x])
        asked = nn.functional.normalize(model(distorted), dim=1)
        nearest = (asked @ known.T).argmax(1)
    return float((data.train.y[nearest] == data.test.y).float().mean())


def main(*, quick: bool = False) -> dict[str, float]:
    """Train without labels; compare with the encoder that nobody trained."""
    settings: dict[str, Any] = {
        "job.name": "contrastive",
        "population.partition": "iid",
        "population.clients": 20,
        "cohort.expected": 10,
        "cohort.sampling": "fixed",
        "rounds.count": 3 if quick else 20,
        "local.epochs": 2 if quick else 4,
        "local.batch_size": 36,
        "local.optimizer": "adam",
        "local.learning_rate": 0.005,
        "server.strategy": "fedavg",
        "server.learning_rate": 1.0,
        "privacy.mechanism": "none",
        "privacy.clip": 20.0,
        "aggregation.protocol": "float",
        "evaluation.data": "none",
        "engine.processes": 1,
    }
    task = Contrastive()
    run = fedsys.simulate(settings, task=Contrastive)
    found = {"before": neighbours_agree(task.init_model(0)), "after": neighbours_agree(run.model())}
    print(f"nearest neighbours agree: {found['before']:.3f} before, {found['after']:.3f} after")
    return found


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
