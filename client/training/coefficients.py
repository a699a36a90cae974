"""SGD's weights as a fixed combination of the start and of past gradients.

With g_s the loss gradient of step s, SGD with momentum, weight decay and a FedProx term is linear
in (W_0, g_0, g_1, ...): W_t = alpha_t W_0 + sum_{s<t} c_{t,s} g_s. The coefficients depend on the
hyper-parameters alone, so they are the same for every client and every layer.

>>> alpha, c = combination(LocalConfig(learning_rate=0.5), steps=2)
>>> alpha.tolist(), c.tolist()
([1.0, 1.0, 1.0], [[0.0, 0.0], [-0.5, 0.0], [-0.5, -0.5]])
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from client.training.local import LocalConfig

__all__ = ["combination"]


@lru_cache(maxsize=64)
def combination(local: LocalConfig, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(steps + 1,) alpha_t and (steps + 1, steps) c_{t,s} of SGD, W_0 first and last W last."""
    weights = np.zeros((steps + 1, steps + 1))
    weights[0, 0] = 1.0
    velocity = np.zeros(steps + 1)
    for t in range(steps):
        gradient = (local.weight_decay + local.proximal_mu) * weights[t]
        gradient[0] -= local.proximal_mu
        gradient[t + 1] += 1.0
        velocity = local.momentum * velocity + gradient
        weights[t + 1] = weights[t] - local.learning_rate * velocity
    weights.setflags(write=False)
    return weights[:, 0], weights[:, 1:]
