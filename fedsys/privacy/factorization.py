"""Matrix factorisation: Toeplitz strategies, their sensitivity and their error.

A strategy C is lower triangular and Toeplitz, given by its first column c (c_0 = 1). The server
releases x_t + (C^-1 Z)_t with Z white: post-processing of the Gaussian mechanism on C x. Its error
on prefix sums is |A C^-1|_F times the sensitivity of C, A the lower triangle of ones.

Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta and Xu, "(Amplified) Banded Matrix
Factorization" (NeurIPS 2023); Kalinin and Lampert, "Banded Square Root Matrix Factorization for
Differentially Private Model Training" (NeurIPS 2024).

>>> strategy = banded_strategy(horizon=100, bands=20)
>>> round(relative_error(strategy.coefficients, horizon=100), 2)
0.36
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy import validation

__all__ = [
    "DENOMINATOR_BITS",
    "BandedStrategy",
    "banded_strategy",
    "inverse_series",
    "relative_error",
    "sensitivity",
    "tables",
]

DENOMINATOR_BITS = 20
"""Shipped coefficients are integers over 2^20, so that the server's recurrence is exact."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class BandedStrategy:
    """A shipped strategy.

    Attributes:
        horizon: n, rounds that it was optimised for.
        bands: b, nonzero coefficients.
        numerators: c_j 2^20, c_0 = 2^20; non-negative and non-increasing.
        digest: SHA-256 of the above.
    """

    horizon: int
    bands: int
    numerators: tuple[int, ...]
    digest: str

    @property
    def coefficients(self) -> Vector:
        """c_0 .. c_(b-1), exact."""
        return np.array(self.numerators, dtype=np.float64) * 2.0**-DENOMINATOR_BITS

    @property
    def norm(self) -> float:
        """|c|_2: the sensitivity of one participation, in units of the update's norm."""
        return float(np.linalg.norm(self.coefficients))


@lru_cache(maxsize=1)
def tables() -> dict[tuple[int, int], tuple[int, ...]]:
    """Numerators by (horizon, bands) as shipped."""
    source = resources.files("fedsys.privacy.tables").joinpath("banded_toeplitz.json")
    content = json.loads(source.read_text(encoding="ascii"))
    return {
        (int(entry["horizon"]), int(entry["bands"])): tuple(map(int, entry["numerators"]))
        for entry in content["strategies"]
    }


@lru_cache(maxsize=64)
def banded_strategy(*, horizon: int, bands: int) -> BandedStrategy:
    """The shipped strategy for at least ``horizon`` rounds with at most ``bands`` bands.

    The smallest shipped horizon that suffices and for it the most bands that fit.

    Raises:
        MechanismError: no shipped horizon is that long, or a number is below 1.
    """
    validation.integer("rounds", horizon)
    validation.integer("bands", bands)
    known = tables()
    longest = max(n for n, _ in known)
    if horizon > longest:
        raise MechanismError(
            f"banded-mf has strategies for up to {longest} rounds, got rounds={horizon}: lower "
            "rounds.count or use distributed-gaussian"
        )
    size = min(n for n, _ in known if n >= horizon)
    width = max(b for n, b in known if n == size and b <= bands)
    numerators = known[size, width]
    text = json.dumps([size, width, numerators], separators=(",", ":")).encode("ascii")
    return BandedStrategy(
        horizon=size,
        bands=width,
        numerators=numerators,
        digest=hashlib.sha256(text).hexdigest(),
    )


def inverse_series(coefficients: Vector, length: int) -> Vector:
    """First column (length,) of C^-1: the power series 1 / c, with c (b,) and c_0 not 0."""
    inverse = np.zeros(length)
    inverse[0] = 1 / coefficients[0]
    for t in range(1, length):
        reach = min(t, len(coefficients) - 1)
        past = inverse[t - reach : t][::-1]
        inverse[t] = -float(coefficients[1 : reach + 1] @ past) / coefficients[0]
    return inverse


def sensitivity(
    coefficients: Vector, *, horizon: int, separation: int, participations: int
) -> float:
    """l2 sensitivity of C for a client of norm 1 in k rounds that are b or more apart.

    - Banded with at most b bands: its rounds' columns do not overlap, so sqrt(k) |c|.
    - Non-negative and non-increasing: the earliest rounds at distance b exactly are worst,
      | sum_{j<k} C[:, j b] |.

    Args:
        coefficients: (bands,) first column of C.
        horizon: rounds.
        separation: b.
        participations: k.

    Raises:
        MechanismError: the strategy is neither, or a number is below 1.
    """
    validation.integer("horizon", horizon)
    validation.integer("separation", separation)
    validation.integer("participations", participations)
    column = np.zeros(horizon)
    used = min(len(coefficients), horizon)
    column[:used] = coefficients[:used]
    possible = min(participations, math.ceil(horizon / separation))
    if len(np.trim_zeros(coefficients, "b")) <= separation:
        return math.sqrt(possible) * float(np.linalg.norm(column))
    if (coefficients < 0).any() or (np.diff(coefficients) > 0).any():
        raise MechanismError(
            "a strategy must have at most min_separation bands, or non-negative coefficients that "
            "do not increase: the sensitivity of any other is not known here"
        )
    total = np.zeros(horizon)
    for turn in range(possible):
        start = turn * separation
        total[start:] += column[: horizon - start]
    return float(np.linalg.norm(total))


def relative_error(coefficients: Vector, *, horizon: int) -> float:
    """Root mean square error of prefix sums, relative to independent noise at the same privacy.

    For banded strategies within the separation, where the number of participations cancels.

    Args:
        coefficients: (bands,) first column of C.
        horizon: rounds.
    """
    prefix = np.cumsum(inverse_series(coefficients, horizon))
    weights = np.arange(horizon, 0, -1, dtype=np.float64)
    spread = math.sqrt(float((weights * prefix**2).sum()) / float(weights.sum()))
    return float(np.linalg.norm(coefficients[:horizon])) * spread
