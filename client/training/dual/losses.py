"""A loss's gradient by the outputs: by formula where the loss is known, else by the engine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedsys.tasks import Task
from fedsys.tasks.classification import Classification

__all__ = ["LossGradient", "loss_gradient"]

LossGradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From outputs (B, ...), targets (B, ...) and what each example counts (B,): the gradient, in the
outputs' shape, of the sum of the examples' losses so weighed."""


def loss_gradient(task: Task) -> LossGradient:
    """Of the task's loss.

    A small model's loss costs the autograd engine more than a layer does, so the cross-entropy of
    `Classification`, where a task has not replaced it, is differentiated by its formula.
    """

    def by_engine(outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        with torch.inference_mode(mode=False), torch.enable_grad():
            leaf = _known_to_autograd(outputs.detach()).requires_grad_()
            loss = task.loss(leaf, _known_to_autograd(targets))
            return torch.autograd.grad(loss, leaf, _known_to_autograd(weight))[0]

    @torch.no_grad()
    def by_formula(outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        plain = outputs.dim() == 2 and targets.dtype is torch.int64 and targets.dim() == 1
        if not plain or int(targets.min()) < 0:  # negative ones torch ignores, or refuses
            return by_engine(outputs, targets, weight)
        # softmax - one_hot. torch.softmax is slow for few classes.
        odds = (outputs - outputs.amax(1, keepdim=True)).exp_()
        odds /= odds.sum(1, keepdim=True)
        rows = targets.unsqueeze(1)
        odds.scatter_add_(1, rows, odds.new_full((), -1.0).expand(rows.shape))
        return odds.mul_(weight.unsqueeze(1))

    known = getattr(task.loss, "__func__", None) is Classification.loss
    return by_formula if known else by_engine


def _known_to_autograd(tensor: Tensor) -> Tensor:
    """The same, or a copy of one that was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor
