"""`Stepper` for a recorded epoch: step sizes and who takes part are tensors, not numbers."""

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
    """(steps, 2) the learning rate and the second moment's factor, from step `first` on.

    Adam corrects both moments for their start from zero (Kingma and Ba 2015, algorithm 1).
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
        start: Where the clients started, one tensor a parameter.
        params: Each with a leading client axis.
    """

    def __init__(self, local: LocalConfig, start: Sequence[Tensor], params: Sequence[Tensor]):
        super().__init__(local, start, params)
        self._sizes: Tensor
        self._active: Tensor | None = None

    def reset(self) -> None:
        """Moments are zero again."""
        for state in self._state:
            for each in state:
                each.zero_()

    def take(self, grads: Sequence[Tensor], sizes: Tensor, active: Tensor | None) -> None:
        """One step of `sizes` (2,), see `step_sizes`; clients not in `active` (K,) stay."""
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
            # Not a product: a client that is done may have a gradient that is not finite.
            there = self._active.view(-1, *[1] * (move.dim() - 1))
            move = torch.where(there, move, 0.0)
        param.sub_(move)
