"""Models of one's own: FedPer's personal heads, and fine-tuning, measured client by client.

    python examples/personalisation.py [--quick]

Clients hold digits of few classes each, and keep every second example to test themselves. Three
ways to serve them are compared by their accuracy on those: the shared model; the shared model after
each client trained it a little further; and FedPer (Arivazhagan et al. 2019, arXiv:1912.00818),
where the last layer never leaves its client: it is frozen for the federation, so it is not sent,
and lives in ``local.state``.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

import fedsys
from fedsys.tasks import Examples
from fedsys.tasks.digits import Digits

SETTINGS: dict[str, Any] = {
    "population.clients": 20,
    "population.partition": "dirichlet",
    "population.alpha": 0.1,
    "cohort.expected": 10,
    "cohort.sampling": "fixed",
    "local.epochs": 5,
    "local.batch_size": 10,
    "local.learning_rate": 0.1,
    "server.strategy": "fedavg",
    "server.learning_rate": 1.0,
    "privacy.mechanism": "none",
    "privacy.clip": 10.0,
    "aggregation.protocol": "float",
    "evaluation.data": "none",
    "engine.processes": 1,
}


def halves(examples: Examples) -> tuple[Examples, Examples]:
    """A client's examples for training, and those that it tests itself on."""
    x, y = examples.x, examples.y
    return Examples(x=x[::2], y=y[::2]), Examples(x=x[1::2], y=y[1::2])


class Shared(Digits):
    """One model for everybody, trained on half of each client's examples."""

    def __init__(self) -> None:
        super().__init__({"hidden": 32})

    def local_update(self, model: nn.Module, examples: Examples, local: Any) -> None:
        """As ``[local]`` says, on the first half."""
        local.train(model, halves(examples)[0])


class OwnHeads(Shared):
    """The last layer belongs to the client."""

    def init_model(self, seed: int) -> nn.Module:
        """What is frozen here does not travel."""
        model = super().init_model(seed)
        model[2].requires_grad_(False)
        return model

    def local_update(self, model: nn.Module, examples: Examples, local: Any) -> None:
        """Train both parts, from the client's own head; keep the head."""
        with_head(model, local.state)
        model[2].requires_grad_(True)
        local.train(model, halves(examples)[0])
        local.state.update({f"head.{k}": v.clone() for k, v in model[2].state_dict().items()})


def with_head(model: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """The model with the head that a client kept."""
    own = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
    if own:
        model[2].load_state_dict(own)
    return model


def accuracy(model: nn.Module, examples: Examples) -> float:
    """On the second half of a client's examples."""
    held_out = halves(examples)[1]
    with torch.no_grad():
        return float((model(held_out.x).argmax(1) == held_out.y).float().mean())


def fine_tuned(model: nn.Module, examples: Examples, _state: object) -> float:
    """The accuracy after a few more steps on the first half."""
    own = halves(examples)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(own.x), own.y).backward()
        optimizer.step()
    return accuracy(model, examples)


def main(*, quick: bool = False) -> dict[str, fedsys.Figures]:
    """Run both jobs, and print each way's mean and worst decile over clients."""
    settings = {**SETTINGS, "rounds.count": 4 if quick else 20}
    shared = fedsys.simulate({**settings, "job.name": "shared"}, task=Shared)
    heads = fedsys.simulate({**settings, "job.name": "own-heads"}, task=OwnHeads)
    found = {
        "shared model": fedsys.evaluate_clients(
            shared.folder, lambda model, own, _: accuracy(model, own), task=Shared()
        ),
        "fine-tuned": fedsys.evaluate_clients(shared.folder, fine_tuned, task=Shared()),
        "own heads": fedsys.evaluate_clients(
            heads.folder,
            lambda model, own, kept: accuracy(with_head(model, kept), own),
            task=OwnHeads(),
        ),
    }
    for name, figures in found.items():
        print(f"{name}: mean {figures.mean:.3f}, worst decile {figures.worst_decile:.3f}")
    return found


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
