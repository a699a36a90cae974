"""SGD and Adam on one flat vector of weights: torch's formulas, without torch.

The numpy twin of `client.training.optimizer`, step for step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.training.local import LocalConfig

__all__ = ["FlatOptimizer"]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

_Vector = NDArray[np.float32]


class FlatOptimizer:
    """Updates weights in place.

    Args:
        local: hyper-parameters.
        start: (d,) w_global, towards which FedProx pulls.
        weights: (d,) float32, the weights to train.
    """

    def __init__(self, local: LocalConfig, start: _Vector, weights: _Vector) -> None:
        self._local, self._start, self._weights = local, start, weights
        self._steps = 0
        adam = local.optimizer == "adam"
        states = 2 if adam else int(local.momentum > 0)
        self._state = [np.zeros_like(weights) for _ in range(states)]

    def step(self, gradient: _Vector) -> None:
        """Take one step; `gradient` (d,) is overwritten."""
        self._steps += 1
        local = self._local
        if local.weight_decay:
            gradient += np.float32(local.weight_decay) * self._weights
        if local.proximal_mu:
            gradient += np.float32(local.proximal_mu) * (self._weights - self._start)
        if local.optimizer == "adam":
            self._adam(gradient)
            return
        if self._state:
            (velocity,) = self._state
            velocity *= np.float32(local.momentum)
            velocity += gradient
            np.copyto(gradient, velocity)
        gradient *= np.float32(local.learning_rate)
        self._weights -= gradient

    def _adam(self, gradient: _Vector) -> None:
        first, second = self._state
        first += np.float32(1 - BETA1) * (gradient - first)
        second *= np.float32(BETA2)
        np.multiply(gradient, gradient, out=gradient)
        gradient *= np.float32(1 - BETA2)
        second += gradient
        np.divide(second, np.float32(1 - BETA2**self._steps), out=gradient)
        np.sqrt(gradient, out=gradient)
        gradient += np.float32(EPSILON)
        np.divide(first, gradient, out=gradient)
        gradient *= np.float32(self._local.learning_rate / (1 - BETA1**self._steps))
        self._weights -= gradient
