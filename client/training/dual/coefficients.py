"""SGD's weights as a fixed combination of the start and of past gradients.

With g_s the loss gradient of step s, SGD with momentum, weight decay and a FedProx term is linear
in (W_0, g_0, g_1, ...): W_t = alpha_t W_0 + sum_{s<t} c_{t,s} g_s. The coefficients depend on the
hyper-parameters alone, so they are the same for every client and every layer.

>>> weights = combination(LocalConfig(learning_rate=0.5), steps=2)
>>> weights.alpha.tolist(), weights.past.tolist(), weights.rates
([1.0, 1.0, 1.0], [[0.0, 0.0], [-0.5, 0.0], [-0.5, -0.5]], (None, -0.5, -0.5))
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.training.local import LocalConfig

__all__ = ["Combination", "combination"]


class Combination(NamedTuple):
    """The weights of all steps, W_0 first and the last W last.

    Attributes:
        alpha: (steps + 1,) alpha_t.
        past: (steps + 1, steps) c_{t,s}.
        rates: what c_{t,s} is for all s < t at once, as with plain SGD; None where it differs.
    """

    alpha: NDArray[np.float64]
    past: NDArray[np.float64]
    rates: tuple[float | None, ...]


@lru_cache(maxsize=64)
def combination(local: LocalConfig, steps: int) -> Combination:
    """Of so many steps of SGD."""
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
    past = weights[:, 1:]
    rates = [
        float(row[0]) if at and bool((row[:at] == row[0]).all()) else None
        for at, row in enumerate(past)
    ]
    return Combination(weights[:, 0], past, tuple(rates))
