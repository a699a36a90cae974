"""Cross-entropy and accuracy, shared by every task that predicts one of several classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Classification", "Rescale"]


class Classification:
    """Loss and metrics for outputs (B, classes) or (B, classes, ...) and ``int64`` targets."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) cross-entropy in nats."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``accuracy``: (B,) 1 if the largest output is the target's, else 0."""
        return {"accuracy": (outputs.argmax(1) == targets).to(torch.float32)}


class Rescale(nn.Module):
    """(x - mean) / std in the model's floating-point dtype; data stay bytes until they are used."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Any shape; integers become floating point. The result is written to `out` if given."""
        if x.is_floating_point():
            return torch.div(x.to(self.mean.dtype) - self.mean, self.std, out=out)
        # In place on the converted copy, so that a large batch needs no further copies; a
        # multiplication, because a division would take as long as all the rest.
        into = x.to(self.mean.dtype) if out is None else out.copy_(x)
        return into.sub_(self.mean).mul_(1 / self.std)
