"""Privacy loss distributions of Poisson-sampled Gaussian rounds, by dp-accounting.

Used where it applies: Gaussian noise, parameters fixed beforehand. Estimates are pessimistic
(discretised upwards), so they are upper bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

__all__ = ["DISCRETIZATION", "gaussian_pld_epsilon"]

DISCRETIZATION = 1e-3
"""Width of a bin of the privacy loss; the error per job is far below .01."""


@lru_cache(maxsize=32)
def _single(noise_multiplier: float, rate: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        value_discretization_interval=DISCRETIZATION,
        sampling_prob=rate,
        use_connect_dots=True,
    )


def gaussian_pld_epsilon(rounds: Mapping[tuple[float, float], int], delta: float) -> float:
    """epsilon at ``delta`` of Poisson-sampled Gaussian rounds, neighbours by adding or removing.

    Args:
        rounds: how many rounds there were of each (noise multiplier, sampling rate).
        delta: in (0, 1).

    >>> round(gaussian_pld_epsilon({(3.942, 0.1): 100}, 1e-5), 2)
    1.0
    """
    return _composed(tuple(sorted((*key, count) for key, count in rounds.items() if count)), delta)


@lru_cache(maxsize=4096)
def _composed(rounds: tuple[tuple[float, float, int], ...], delta: float) -> float:
    total: Any = None
    for noise_multiplier, rate, count in rounds:
        if noise_multiplier <= 0:
            return math.inf
        part = _single(noise_multiplier, rate).self_compose(count)
        total = part if total is None else total.compose(part)
    return 0.0 if total is None else float(total.get_epsilon_for_delta(delta))
