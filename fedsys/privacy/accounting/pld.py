"""Poisson-sampled Gaussian rounds by loss distributions, and by dp-accounting as a check.

Loss distributions are discretised pessimistically, so epsilon is an upper bound for any bin width:
Doroshenko, Ghazi, Kamath, Kumar and Manurangsi, "Connect the Dots: Tighter Discrete Approximations
of Privacy Loss Distributions" (PETS 2022). The width adapts to the job: it starts at an eighth of
the standard deviation of the smallest composed loss, and is halved until epsilon moves by less than
0.05% or the grid reaches a fixed number of bins. The error falls with the square of the width, so
the last figure is within about 0.02% of the limit, unless the rate is so small that the first grid
would exceed that number already: then epsilon is next to nothing and the width is what fits.

Rounds are composed by Fourier transforms in float64, whose rounding the source does not charge. The
T-th power of a transform is off by some T 2^-53, which is spread over the tail as well: against
transforms of tilted distributions, which keep the tail's own digits, delta was too small by up to
1e-15 T (a test repeats the worst). This step is our own, measured and not proven: nearly twice as
much, T 2^-49, comes off delta, and where it is more than half of delta there is no figure.

>>> round(gaussian_pld_epsilon({(3.942, 0.1): 100}, 1e-5), 2)
1.0
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from fedsys.privacy.accounting.loss_distribution import LossDistribution, gaussian_losses

__all__ = ["BIN_RULE", "dp_accounting_rdp", "gaussian_pld_deltas", "gaussian_pld_epsilon"]

BIN_RULE = "halved until epsilon moves by less than 0.05%, or 2^17 bins"
"""How the bin width is chosen, as a ledger's header states it."""

_MOVES = 5e-4
_LEAST_MOVE = 1e-7
_MOST_BINS = 1 << 17
_MOST_COMPOSED = 1 << 20
"""Sampled steps of one kind beyond which nothing is composed."""
_ROUNDING = 2.0**-49
"""Delta that is set aside for each sampled step."""
_WIDEST = 0.05
_COARSEST = 1 << 16
_HALVINGS = 12
_PROFILE_FINER = 4

Key = tuple[float, float]


@lru_cache(maxsize=64)
def _single(noise_multiplier: float, rate: float, width: float) -> LossDistribution:
    return gaussian_losses(noise_multiplier, rate, width)


def _first_width(rounds: tuple[tuple[float, float, int], ...]) -> float:
    """An eighth of the smallest loss's deviation, q sqrt(e^(1/z^2) - 1) to first order in q, if a
    grid of that width is not too large."""
    deviations = [
        rate * math.sqrt(math.expm1(min(noise_multiplier**-2, 50.0)))
        for noise_multiplier, rate, _ in rounds
    ]
    # With next to no noise, losses are so large that a finer grid makes no difference.
    mean = sum(count / multiplier**2 for multiplier, _, count in rounds) / 2
    wanted = min(min(deviations) / 8, max(_WIDEST, mean / _COARSEST))
    return max(wanted, _span(rounds) / _MOST_BINS)


def _span(rounds: tuple[tuple[float, float, int], ...]) -> float:
    """The widest range of a single loss, with the noise up to ten deviations out.

    The loss at noise x, of deviation z, is log(1 - q + q e^u) with u = (2 x + 1) / (2 z^2): more
    than log(1 - q), and at most its value at x = 10 z.
    """
    widest = 0.0
    for multiplier, rate, count in rounds:
        z = multiplier / math.sqrt(count) if rate == 1 else multiplier
        exponent = (1 + 20 * z) / (2 * z * z)
        largest = exponent if exponent > 600 else math.log1p(rate * math.expm1(exponent))
        smallest = exponent if rate == 1 else -math.log1p(-rate)
        widest = max(widest, largest + min(smallest, exponent))
    return widest


def gaussian_pld_epsilon(rounds: Mapping[Key, int], delta: float) -> float:
    """epsilon at ``delta`` of Poisson-sampled Gaussian rounds; neighbours add or remove a client.

    Args:
        rounds: the number of rounds by (noise multiplier, sampling rate). A multiplier of 0 makes
            epsilon infinite; a rate of 1 means no amplification.
        delta: in (0, 1). Below 1e-14 epsilon may be infinite, because distributions are truncated,
            and so it is for more than 2^20 sampled rounds of one kind, or more than 2^48 delta.

    >>> gaussian_pld_epsilon({}, 1e-5)
    0.0
    """
    return _composed(tuple(sorted((*key, count) for key, count in rounds.items() if count)), delta)


@lru_cache(maxsize=4096)
def _composed(rounds: tuple[tuple[float, float, int], ...], delta: float) -> float:
    if not rounds:
        return 0.0
    if rounds[0][0] <= 0 or any(r < 1 and count > _MOST_COMPOSED for _, r, count in rounds):
        return math.inf
    rounding = _ROUNDING * sum(count for _, rate, count in rounds if rate < 1)
    if rounding > delta / 2:
        return math.inf
    delta -= rounding
    width = _first_width(rounds)
    best = _at_width(rounds, delta, width)
    for _ in range(_HALVINGS):
        width /= 2
        if not math.isfinite(best) or max(best, _span(rounds)) / width > _MOST_BINS:
            break
        finer = _at_width(rounds, delta, width)
        moved, best = best - finer, min(best, finer)
        if moved <= _MOVES * finer + _LEAST_MOVE:
            break
    return best


def gaussian_pld_deltas(rounds: Mapping[Key, int], epsilons: Sequence[float]) -> list[float]:
    """Upper bounds on delta at each of ``epsilons``, for rounds as in `gaussian_pld_epsilon`.

    One grid serves all of them, of a quarter of the width at which the search for epsilon starts.

    Args:
        rounds: the number of rounds by (noise multiplier above 0, sampling rate).
        epsilons: of either sign.

    >>> [round(delta, 6) for delta in gaussian_pld_deltas({(1.0, 1.0): 1}, [0.0, 4.377178])]
    [0.382925, 1e-05]
    """
    known = tuple(sorted((*key, count) for key, count in rounds.items() if count))
    width = max(_first_width(known) / _PROFILE_FINER, _span(known) / _MOST_BINS)
    rounding = _ROUNDING * sum(count for _, rate, count in known if rate < 1)
    with np.errstate(over="ignore"):
        total = _added(known, width)
        return [total.delta(epsilon) + rounding for epsilon in epsilons]


def _at_width(rounds: tuple[tuple[float, float, int], ...], delta: float, width: float) -> float:
    with np.errstate(over="ignore"):
        return _added(rounds, width).epsilon(delta)


def _added(rounds: tuple[tuple[float, float, int], ...], width: float) -> LossDistribution:
    """The composed loss distribution of all rounds."""
    parts = []
    for noise_multiplier, rate, count in rounds:
        if rate == 1:  # `count` Gaussian mechanisms compose to one
            parts.append(_single(noise_multiplier / math.sqrt(count), 1.0, width))
        else:
            parts.append(_single(noise_multiplier, rate, width).repeat(count))
    return reduce(LossDistribution.compose, parts)


def dp_accounting_rdp(steps: Mapping[Key, int], delta: float) -> float:
    """epsilon at ``delta`` of Poisson-sampled Gaussian steps, by dp-accounting's Rényi accountant.

    Mironov, Talwar and Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism"
    (2019).

    Args:
        steps: the number of steps by (noise multiplier, sampling rate).
        delta: in (0, 1).
    """
    from absl import logging as absl_logging
    from dp_accounting import dp_event
    from dp_accounting.rdp import rdp_privacy_accountant

    accountant = rdp_privacy_accountant.RdpAccountant()
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)  # it warns of orders that it leaves out
    try:
        for (multiplier, rate), count in steps.items():
            gaussian: Any = dp_event.GaussianDpEvent(multiplier)
            if rate < 1:
                gaussian = dp_event.PoissonSampledDpEvent(rate, gaussian)
            accountant.compose(gaussian, count)
        return float(accountant.get_epsilon(delta))
    finally:
        absl_logging.set_verbosity(verbosity)
