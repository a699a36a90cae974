"""Epsilon of Gaussian steps: which accountant interprets them, and what it reports.

An event states what a round reveals to a view as `GaussianStep`s, so nothing here depends on the
mechanism. There are three accountants, each sound where it is used:

- ``gaussian``: unamplified steps together are exactly one Gaussian mechanism
  (`fedsys.privacy.accounting.exact_gaussian`).
- ``pld``: Poisson-sampled steps, possibly with unamplified ones, by privacy loss distributions
  (`fedsys.privacy.accounting.pld`), down to delta = 1e-12; below that float64 is too coarse.
- ``rdp``: Rényi divergences (`fedsys.privacy.accounting.rdp`), for smaller deltas, and where
  neighbours replace one client and a subset or a secret coin amplifies (Wang, Balle and
  Kasiviswanathan 2019, Theorem 9). The exact cost without amplification is computed as well, and
  the smaller of the two is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import numpy as np

from fedsys.privacy.accounting.exact_gaussian import composed_epsilon
from fedsys.privacy.accounting.pld import dp_accounting_rdp, gaussian_pld_epsilon
from fedsys.privacy.accounting.rdp import (
    ORDERS,
    Vector,
    amplify,
    curve_of,
    epsilon_of,
    gaussian_loss,
    replacement_sampled,
)
from fedsys.privacy.events import Event, GaussianStep, check_known

__all__ = [
    "LEAST_PLD_DELTA",
    "Accountant",
    "Steps",
    "accountant_of",
    "outsider_step",
    "rdp_curve",
    "rdp_epsilon",
    "second_opinion",
    "server_step",
    "square_of",
    "squares_of",
    "steps_epsilon",
    "together_step",
]

Accountant = Literal["pld", "gaussian", "rdp"]
Steps = Mapping[GaussianStep, int]
"""The number of rounds by step."""

LEAST_PLD_DELTA = 1e-12
"""The smallest delta at which loss distributions are trusted: they are truncated at 1e-15 and
convolved by fast Fourier transforms in float64."""


def outsider_step(event: Event) -> GaussianStep:
    """What a round reveals to somebody who sees releases only.

    Raises:
        MechanismError: the event is unknown.
    """
    return check_known(event).outsider_step()


def together_step(event: Event) -> GaussianStep:
    """What a round reveals to a curious client in the same cohort as its target.

    Raises:
        MechanismError: the event is unknown.
    """
    return check_known(event).together_step()


def server_step(event: Event, survivors: int | None = None) -> GaussianStep:
    """What a round in which the client's update was summed reveals to the server.

    Args:
        event: the round's event.
        survivors: the number of clients in the sum; None for the fewest that may be released.

    Raises:
        MechanismError: the event is unknown.
    """
    return check_known(event).server_step(survivors)


def accountant_of(steps: Steps, delta: float) -> Accountant:
    """The accountant whose epsilon is reported for these steps."""
    if all(step.rate == 1 for step in steps):
        return "gaussian"
    if any(step.replaces for step in steps) or delta < LEAST_PLD_DELTA:
        return "rdp"
    return "pld"


def square_of(step: GaussianStep) -> float:
    """The sum of 1 / z^2 over one round's mechanisms, unamplified; infinite without noise."""
    if step.multiplier <= 0:
        return math.inf
    inverse = 1 / step.multiplier
    return step.count * (inverse * inverse)  # a product, unlike a power, overflows to infinity


def squares_of(steps: Steps) -> float:
    """mu^2 = sum 1 / z_t^2 over all steps, unamplified; infinite without noise."""
    total = 0.0
    for step, count in steps.items():
        if count:
            total += count * square_of(step)
    return total


def steps_epsilon(steps: Steps, delta: float) -> float:
    """Epsilon at ``delta`` by the reported accountant; infinite without noise.

    Raises:
        MechanismError: ``delta`` is outside (0, 1).
    """
    squares = squares_of(steps)
    if squares == 0 or math.isinf(squares):
        return squares
    plain = composed_epsilon(delta, squares)
    accountant = accountant_of(steps, delta)
    if accountant == "gaussian":
        return plain
    if accountant == "pld":
        found = gaussian_pld_epsilon(_keys(steps), delta)
        if math.isfinite(found):
            return min(found, plain)
    return min(plain, rdp_epsilon(steps, delta))


def second_opinion(steps: Steps, delta: float) -> float | None:
    """An upper bound by dp-accounting's Rényi accountant on the same steps; None if it has none.

    It has none for sampled steps whose neighbours are replaced, nor where there is no noise; there
    is none without dp-accounting, which an agent does not install.
    """
    if any(step.replaces and step.rate < 1 for step in steps) or math.isinf(squares_of(steps)):
        return None
    try:
        return dp_accounting_rdp(_keys(steps), delta)
    except ModuleNotFoundError:
        return None


def _keys(steps: Steps) -> dict[tuple[float, float], int]:
    found: dict[tuple[float, float], int] = {}
    for step, count in steps.items():
        key = step.multiplier, step.rate
        found[key] = found.get(key, 0) + count * step.count
    return found


def rdp_curve(steps: Steps) -> Vector:
    """The Rényi divergences (orders,) of all steps at `fedsys.privacy.accounting.rdp.ORDERS`."""
    curve = np.zeros_like(ORDERS)
    for step, count in steps.items():
        if count:
            curve = curve + count * step.count * _curve(step.multiplier, step.rate, step.replaces)
    return curve


@lru_cache(maxsize=512)
def _curve(multiplier: float, rate: float, replaces: bool) -> Vector:
    loss = gaussian_loss(multiplier)
    if rate == 1:
        curve = curve_of(loss)
    else:
        curve = replacement_sampled(loss, rate) if replaces else amplify(loss, rate)
    curve.setflags(write=False)
    return curve


def rdp_epsilon(steps: Steps, delta: float) -> float:
    """Epsilon at ``delta`` from Rényi divergences alone.

    Raises:
        MechanismError: ``delta`` is outside (0, 1).
    """
    return epsilon_of(rdp_curve(steps), delta)
