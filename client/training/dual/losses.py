"""The loss's gradient with respect to the outputs: by formula if it is known, else by autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedsys.tasks import Task
from fedsys.tasks.classification import Classification

__all__ = ["LossGradient", "loss_gradient"]

LossGradient = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps outputs (B, ...), targets (B, ...) and the examples' weights (B,) to the gradient, in the
outputs' shape, of the weighted sum of the examples' losses."""


def loss_gradient(task: Task, targets: Tensor) -> LossGradient:
    """The gradient of the task's loss for batches of `targets`, which are those of all batches.

    In a small model, autograd spends more time on the loss than on a layer. So the cross-entropy
    of `Classification`, unless a task replaces it, is differentiated by its formula.
    """

    def by_engine(outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        with torch.inference_mode(mode=False), torch.enable_grad():
            leaf = _known_to_autograd(outputs.detach()).requires_grad_()
            loss = task.loss(leaf, _known_to_autograd(targets))
            return torch.autograd.grad(loss, leaf, _known_to_autograd(weight))[0]

    def by_formula(outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        if outputs.dim() != 2 or targets.dim() != 1:
            return by_engine(outputs, targets, weight)
        # The gradient of cross-entropy by the logits is softmax(outputs) - one_hot(target). The
        # softmax is written out because torch.softmax is slow for few classes.
        weight = weight.unsqueeze(1)
        odds = (outputs - outputs.amax(1, keepdim=True)).exp_()
        odds *= weight / odds.sum(1, keepdim=True)
        return odds.scatter_add_(1, targets.unsqueeze(1), -weight)

    known = getattr(task.loss, "__func__", None) is Classification.loss
    known = known and targets.dtype is torch.int64
    # Negative targets: torch ignores or refuses them.
    return by_formula if known and not bool((targets < 0).any()) else by_engine


def _known_to_autograd(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy if it was made in inference mode, which autograd cannot record."""
    return tensor.clone() if tensor.is_inference() else tensor
