"""SGD's weights as a fixed linear combination of the initial weights and the past gradients.

Let g_s be the loss gradient of step s, at W_s. SGD with momentum m, learning rate eta, weight decay
lambda and a FedProx term mu iterates, with v_{-1} = 0,

    v_t     = m v_{t-1} + g_t + lambda W_t + mu (W_t - W_0),
    W_{t+1} = W_t - eta v_t.

Given the g_s, both lines are linear in (W_0, g_0, g_1, ...). By induction
W_t = alpha_t W_0 + sum_{s<t} c_{t,s} g_s, with coefficients that depend on the hyper-parameters
alone: they are the same for every client and every layer.

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
    """The coefficients of W_0, ..., W_steps.

    Attributes:
        alpha: (steps + 1,) alpha_t, the coefficient of W_0.
        past: (steps + 1, steps) c_{t,s}, the coefficient of g_s; 0 for s >= t.
        rates: (steps + 1,) the common value of c_{t,s} over all s < t if there is one, as in plain
            SGD, where it is -eta; else None.
    """

    alpha: NDArray[np.float64]
    past: NDArray[np.float64]
    rates: tuple[float | None, ...]


@lru_cache(maxsize=64)
def combination(local: LocalConfig, steps: int) -> Combination:
    """The coefficients after each of `steps` steps of SGD.

    Row t of `weights` holds W_t in the basis (W_0, g_0, ..., g_{steps-1}); `velocity` is v_t in
    the same basis. The loop is the iteration of the module's docstring, applied to these rows.
    """
    weights = np.zeros((steps + 1, steps + 1))
    weights[0, 0] = 1.0
    velocity = np.zeros(steps + 1)
    for t in range(steps):
        gradient = (local.weight_decay + local.proximal_mu) * weights[t]
        gradient[0] -= local.proximal_mu  # FedProx pulls towards W_0
        gradient[t + 1] += 1.0  # g_t itself
        velocity = local.momentum * velocity + gradient
        weights[t + 1] = weights[t] - local.learning_rate * velocity
    weights.setflags(write=False)
    past = weights[:, 1:]
    rates = [
        float(row[0]) if at and bool((row[:at] == row[0]).all()) else None
        for at, row in enumerate(past)
    ]
    return Combination(weights[:, 0], past, tuple(rates))
