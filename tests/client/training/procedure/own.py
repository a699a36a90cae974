"""Procedures that tests name in `local.procedure`."""

from __future__ import annotations

import torch
from torch import nn

from client.training.procedure.local import Local
from fedsys.tasks import Block, Examples

_seen: list[torch.Tensor] = []


class Counted:
    """Plain training, from where the client itself left off last time; sends how often it did."""

    @staticmethod
    def sends(model: nn.Module, config: object) -> dict[str, Block]:
        return {"rounds": Block(shape=(), clip=100.0, scale=0.001)}

    def local_update(self, model: nn.Module, examples: Examples, local: Local) -> None:
        own = local.state.get("bias")
        bias = next(each for name, each in model.named_parameters() if name.endswith("bias"))
        if own is not None:
            with torch.no_grad():
                bias.copy_(own)
        local.train(model, examples)
        local.state["bias"] = bias.detach().clone()
        local.state["rounds"] = local.state.get("rounds", torch.zeros(())) + 1
        local.send("rounds", local.state["rounds"])


def remembers_others(model: nn.Module, examples: Examples, local: Local) -> None:
    local.train(model, examples)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(len(_seen))
    _seen.append(examples.x)


def sends_undeclared(model: nn.Module, examples: Examples, local: Local) -> None:
    local.send("surprise", 1.0)


def keeps_no_tensor(model: nn.Module, examples: Examples, local: Local) -> None:
    local.state["examples"] = examples  # type: ignore[assignment]


def exits(model: nn.Module, examples: Examples, local: Local) -> None:
    raise SystemExit(0)


def replaces_the_model(model: nn.Module, examples: Examples, local: Local) -> None:
    model.weight = nn.Parameter(torch.zeros(2, 2))


def thaws_and_writes(model: nn.Module, examples: Examples, local: Local) -> None:
    """Writes all that a module can hold; none of it may reach the next client."""
    for each in model.parameters():
        each.requires_grad_(True)
    model.note = getattr(model, "note", 0) + 1  # type: ignore[assignment]
    local.train(model, examples)
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(model.note)  # type: ignore[arg-type]


def draws(model: nn.Module, examples: Examples, local: Local) -> None:
    """All of a client's generators."""
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn(each.shape))
            each.add_(torch.randn(each.shape, generator=local.rng.torch))
            each.add_(torch.from_numpy(local.rng.numpy.normal(size=each.shape)).float())


class Told:
    """The server's part of `Counted`."""

    def __init__(self, options: object) -> None:
        self.rounds: list[float] = []

    def receive(self, sent: dict[str, object]) -> None:
        self.rounds.append(float(sent["rounds"]))  # type: ignore[arg-type]
