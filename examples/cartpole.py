"""Reinforcement learning: REINFORCE on CartPole, where every client has a pole of its own length.

    python examples/cartpole.py [--quick]

A client's examples are the states in which its episodes begin. ``local_update`` plays them and
improves the policy by REINFORCE (Williams 1992), with standardized returns to go. The equations of
motion are those of Barto, Sutton and Anderson 1983, with the constants that Gymnasium's CartPole-v1
uses: a step of 0.02 s, and an episode ends beyond 12 degrees, beyond 2.4 m, or after `MOST` steps.
The return is the number of steps.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

import fedsys
from fedsys.tasks import DataSource, Examples, FederatedData, seeded

MOST = 200
CLIENTS, EPISODES = 8, 16


def step(state: Tensor, action: Tensor, half_length: Tensor) -> Tensor:
    """(B, 4) position, velocity, angle and angular velocity, one step of 0.02 s later."""
    _, v, angle, turn = state.unbind(1)
    force = torch.where(action == 1, 10.0, -10.0)
    pole, both = 0.1, 1.1  # kg
    pull = (force + pole * half_length * turn**2 * angle.sin()) / both
    turning = (9.8 * angle.sin() - angle.cos() * pull) / (
        half_length * (4 / 3 - pole * angle.cos() ** 2 / both)
    )
    moving = pull - pole * half_length * turning * angle.cos() / both
    return torch.stack([v, moving, turn, turning], dim=1) * 0.02 + state


def play(policy: nn.Module, begin: Tensor, half_length: Tensor) -> tuple[Tensor, Tensor]:
    """(T, B) log-probabilities of the actions taken, and whether each episode still went on."""
    state, going = begin, torch.ones(len(begin), dtype=torch.bool)
    chosen, alive = [], []
    for _ in range(MOST):
        logits = policy(torch.cat([state, half_length[:, None]], dim=1))
        action = torch.distributions.Categorical(logits=logits).sample()
        chosen.append(logits.log_softmax(1).gather(1, action[:, None])[:, 0])
        alive.append(going)
        state = step(state.detach(), action, half_length)
        inside = (state[:, 2].abs() < math.radians(12)) & (state[:, 0].abs() < 2.4)
        going = going & inside
        if not going.any():
            break
    return torch.stack(chosen), torch.stack(alive).float()


class CartPole:
    """Rows are (begin of an episode, half the length of the pole); targets are not used."""

    name = "cartpole"
    preprocessing = "fixed"

    def init_model(self, seed: int) -> nn.Module:
        """A policy: two actions from five numbers."""
        with seeded(seed):
            return nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 2))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of imitation; `local_update` has a loss of its own."""
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """None: returns are measured by playing."""
        return {}

    def clients(self, source: DataSource) -> FederatedData:
        """Every client's episodes begin near the upright pole."""
        with seeded(0):
            lengths = torch.linspace(0.3, 0.7, CLIENTS).repeat_interleave(EPISODES)
            begin = torch.rand(len(lengths), 4) * 0.1 - 0.05
        rows = torch.cat([begin, lengths[:, None]], dim=1)
        whose = torch.arange(CLIENTS).repeat_interleave(EPISODES)
        examples = Examples(x=rows, y=torch.zeros(len(rows), dtype=torch.int64))
        return FederatedData(train=examples, test=examples, natural=whose)

    def local_update(self, model: nn.Module, examples: Examples, local: Any) -> None:
        """Play all episodes, and step along the policy gradient; several times."""
        optimizer = local.optimizer(model)
        for _ in range(local.config.epochs):
            chosen, alive = play(model, examples.x[:, :4], examples.x[:, 4])
            to_go = alive.flip(0).cumsum(0).flip(0) * alive
            mean = to_go.sum() / alive.sum()
            spread = ((to_go - mean) ** 2 * alive).sum().div(alive.sum()).sqrt()
            advantage = (to_go - mean) / (spread + 1e-6)
            optimizer.zero_grad()
            (-(chosen * advantage * alive).sum() / alive.sum()).backward()
            optimizer.step()


def mean_return(policy: nn.Module) -> float:
    """Over all clients' episodes."""
    rows = CartPole().clients(DataSource()).test.x
    with seeded(1), torch.no_grad():
        return float(play(policy, rows[:, :4], rows[:, 4])[1].sum(0).mean())


class Random(nn.Module):
    """Either action, whatever happens."""

    def forward(self, state: Tensor) -> Tensor:
        """(B, 2) equal logits."""
        return torch.zeros(len(state), 2)


def main(*, quick: bool = False) -> dict[str, float]:
    """Train, and compare with a random policy."""
    settings: dict[str, Any] = {
        "job.name": "cartpole",
        "population.partition": "by-column",
        "population.clients": CLIENTS,
        "cohort.expected": CLIENTS,
        "cohort.sampling": "fixed",
        "rounds.count": 6 if quick else 12,
        "local.epochs": 2 if quick else 4,
        "local.optimizer": "adam",
        "local.learning_rate": 0.03,
        "server.strategy": "fedavg",
        "server.learning_rate": 1.0,
        "privacy.mechanism": "none",
        "privacy.clip": 10.0,
        "aggregation.protocol": "float",
        "evaluation.data": "none",
        "engine.processes": 1,
    }
    run = fedsys.simulate(settings, task=CartPole)
    found = {"trained": mean_return(run.model()), "random": mean_return(Random())}
    for name, steps in found.items():
        print(f"{name} policy: mean return {steps:.1f} of {MOST}")
    return found


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
