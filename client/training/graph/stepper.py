"""`Stepper` for a recorded epoch: step sizes and active clients are tensors, not numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training.local import LocalConfig
from client.training.optimizer import BETA1, BETA2, EPSILON, Stepper

__all__ = ["StaticStepper", "step_sizes"]


def step_sizes(local: LocalConfig, first: int, steps: int) -> NDArray[np.float64]:
    """(steps, 2) the step size and the factor of the second moment, from step `first` on.

    For Adam they include the bias corrections 1 / (1 - beta^t) of the two moments (Kingma and Ba
    2015, algorithm 1).
    """
    sizes = np.empty((steps, 2))
    sizes[:] = local.learning_rate, 1.0
    if local.optimizer == "adam":
        number = np.arange(first + 1, first + steps + 1)
        sizes[:, 0] /= 1 - BETA1**number
        sizes[:, 1] /= 1 - BETA2**number
    return sizes


class StaticStepper(Stepper):
    """Updates stacked parameters in place, without a value that changes from call to call.

    Args:
        local: The hyper-parameters.
        start: The initial weights, one tensor per parameter.
        params: The weights to train, one tensor per parameter with a leading client axis.
    """

    def __init__(self, local: LocalConfig, start: Sequence[Tensor], params: Sequence[Tensor]):
        super().__init__(local, start, params)
        self._fuses = False  # its bias corrections are numbers
        self._sizes: Tensor
        self._active: Tensor | None = None

    def reset(self) -> None:
        """Reset momentum or moments to zero."""
        for state in self._state:
            for each in state:
                each.zero_()

    def take(self, grads: Sequence[Tensor], sizes: Tensor, active: Tensor | None) -> None:
        """Take one step with `sizes` (2,) (see `step_sizes`) for clients in `active` (K,) bool."""
        self._sizes, self._active = sizes, active
        self.step(grads)

    def _update(self, param: Tensor, grad: Tensor, state: list[Tensor]) -> None:
        rate, second_factor = self._sizes[0], self._sizes[1]
        if self._local.optimizer == "adam":
            first, second = state
            first.lerp_(grad, 1 - BETA1)
            second.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
            move = first / (second * second_factor).sqrt_().add_(EPSILON)
            move.mul_(rate)
        elif state:
            move = state[0].mul_(self._local.momentum).add_(grad) * rate
        else:
            move = grad * rate
        if self._active is not None:
            # Not a product: a client that has finished may have a gradient that is not finite.
            there = self._active.view(-1, *[1] * (move.dim() - 1))
            move = torch.where(there, move, 0.0)
        param.sub_(move)
