"""Poisson-sampled Gaussian rounds by dp-accounting: loss distributions, and Rényi as a check.

Used where they apply: Gaussian noise, parameters fixed beforehand. Loss distributions are
discretised upwards, so that epsilon is an upper bound: Doroshenko, Ghazi, Kamath, Kumar and
Manurangsi, "Connect the Dots: Tighter Discrete Approximations of Privacy Loss Distributions"
(PETS 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

__all__ = ["DISCRETIZATION", "dp_accounting_rdp", "gaussian_pld_epsilon"]

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
        rounds: how many rounds there were of each (noise multiplier, sampling rate); a multiplier
            of 0 costs infinity.
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


def dp_accounting_rdp(steps: Mapping[tuple[float, float], int], delta: float) -> float:
    """epsilon of Poisson-sampled Gaussian steps by dp-accounting's Rényi accountant.

    Mironov, Talwar and Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism"
    (2019).

    Args:
        steps: how many there were of each (noise multiplier, sampling rate).
        delta: in (0, 1).
    """
    from absl import logging as absl_logging
    from dp_accounting import dp_event
    from dp_accounting.rdp import rdp_privacy_accountant

    accountant = rdp_privacy_accountant.RdpAccountant()
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)  # orders that do not converge are left out
    try:
        for (multiplier, rate), count in steps.items():
            gaussian: Any = dp_event.GaussianDpEvent(multiplier)
            if rate < 1:
                gaussian = dp_event.PoissonSampledDpEvent(rate, gaussian)
            accountant.compose(gaussian, count)
        return float(accountant.get_epsilon(delta))
    finally:
        absl_logging.set_verbosity(verbosity)
