"""A GAN: two networks, two optimizers, one federated model.

    python examples/gan.py [--quick]

Clients have points around the corners of a square. The generator and the
discriminator (Goodfellow et al. 2014) travel as one model and are trained in turns by
``local_update``, with the penalty R1 (Mescheder et al. 2018), without which the game circles. The
figure is the energy distance (Szekely and Rizzo 2013) between what the
generator makes and held-out points, which is 0 for equal distributions.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

import fedsys
from fedsys.tasks import DataSource, Examples, FederatedData, seeded

NOISE = 4


class Both(nn.Module):
    """Scores points; and makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(NOISE, 32), nn.ReLU(), nn.Linear(32, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B,) the discriminator's score."""
        return self.discriminator(x)[:, 0]


class Square:
    """Points around the corners of a square."""

    name = "gan"
    preprocessing = "fixed"

    def init_model(self, seed: int) -> nn.Module:
        """Both networks."""
        with seeded(seed):
            return Both()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) of the discriminator on real points; `local_update` has the game's losses."""
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """None: the generator is measured by what it makes."""
        return {}

    def clients(self, source: DataSource) -> FederatedData:
        """16 clients of 32 points."""
        corners = torch.tensor([[2.0, 2.0], [2.0, 4.0], [4.0, 2.0], [4.0, 4.0]])
        with seeded(0):
            whose = torch.arange(16).repeat_interleave(32)
            train = corners[torch.arange(len(whose)) % 4] + 0.2 * torch.randn(len(whose), 2)
            test = corners[torch.arange(256) % 4] + 0.2 * torch.randn(256, 2)
        return FederatedData(
            train=Examples(x=train, y=torch.ones(len(train))),
            test=Examples(x=test, y=torch.ones(len(test))),
            natural=whose,
        )

    def local_update(self, model: nn.Module, examples: Examples, local: Any) -> None:
        """A step of the discriminator, then one of the generator, batch by batch."""
        judge = torch.optim.Adam(model.discriminator.parameters(), lr=0.01, betas=(0.0, 0.9))
        maker = torch.optim.Adam(model.generator.parameters(), lr=0.01, betas=(0.0, 0.9))
        softplus = nn.functional.softplus
        for batch in local.batches(examples):
            made = model.generator(torch.randn(len(batch), NOISE))
            judge.zero_grad()
            real = batch.x.clone().requires_grad_()
            score = model(real)
            slope = torch.autograd.grad(score.sum(), real, create_graph=True)[0]
            game = softplus(-score).mean() + softplus(model(made.detach())).mean()
            (game + 0.3 * slope.square().sum(1).mean()).backward()
            judge.step()
            maker.zero_grad()
            softplus(-model(made)).mean().backward()
            maker.step()


def energy_distance(model: nn.Module) -> float:
    """Between 256 points made and 256 held out."""
    real = Square().clients(DataSource()).test.x
    with seeded(1), torch.no_grad():
        made = model.generator(torch.randn(256, NOISE))
    across = torch.cdist(made, real).mean()
    return float(2 * across - torch.cdist(made, made).mean() - torch.cdist(real, real).mean())


def main(*, quick: bool = False) -> dict[str, float]:
    """Play the game, and measure the generator."""
    settings: dict[str, Any] = {
        "job.name": "gan",
        "population.partition": "by-column",
        "population.clients": 16,
        "cohort.expected": 16,
        "cohort.sampling": "fixed",
        "rounds.count": 8 if quick else 20,
        "local.epochs": 4,
        "local.batch_size": 16,
        "server.strategy": "fedavg",
        "server.learning_rate": 1.0,
        "privacy.mechanism": "none",
        "privacy.clip": 10.0,
        "aggregation.protocol": "float",
        "evaluation.data": "none",
        "engine.processes": 1,
    }
    run = fedsys.simulate(settings, task=Square)
    found = {
        "before": energy_distance(Square().init_model(0)),
        "after": energy_distance(run.model()),
    }
    print(f"energy distance: {found['before']:.3f} before, {found['after']:.3f} after")
    return found


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
