"""Matrix factorisations: banded Toeplitz matrices, their sensitivity and their error.

The matrix C is lower triangular and Toeplitz, given by its first column c (c_0 = 1). The server
releases x_t + (C^-1 Z)_t with white noise Z, which is post-processing of the Gaussian mechanism on
C x. The error on prefix sums is |A C^-1|_F times the sensitivity of C, where A is the lower
triangle of ones.

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
    """A shipped factorization, by the first column of C.

    Attributes:
        horizon: n, the number of rounds that it was optimised for.
        bands: b, the number of nonzero coefficients.
        numerators: (b,) c_j 2^20, with c_0 = 2^20; non-negative and non-increasing.
        digest: SHA-256 of the three above, as hex.
    """

    horizon: int
    bands: int
    numerators: tuple[int, ...]
    digest: str

    @property
    def coefficients(self) -> Vector:
        """(b,) c_0 .. c_(b-1), exact in float64."""
        return np.array(self.numerators, dtype=np.float64) * 2.0**-DENOMINATOR_BITS

    @property
    def norm(self) -> float:
        """|c|_2: the sensitivity of one participation, in units of the update's norm."""
        return float(np.linalg.norm(self.coefficients))


@lru_cache(maxsize=1)
def tables() -> dict[tuple[int, int], tuple[int, ...]]:
    """The shipped numerators by (horizon, bands)."""
    source = resources.files("fedsys.privacy.tables").joinpath("banded_toeplitz.json")
    content = json.loads(source.read_text(encoding="ascii"))
    return {
        (int(entry["horizon"]), int(entry["bands"])): tuple(map(int, entry["numerators"]))
        for entry in content["strategies"]
    }


@lru_cache(maxsize=64)
def banded_strategy(*, horizon: int, bands: int) -> BandedStrategy:
    """The shipped factorization for at least ``horizon`` rounds with at most ``bands`` bands.

    It has the smallest shipped horizon that suffices and, for that horizon, the most bands allowed.

    Raises:
        MechanismError: no shipped horizon is that long, or a number is below 1.
    """
    validation.integer("rounds", horizon)
    validation.integer("bands", bands)
    known = tables()
    longest = max(n for n, _ in known)
    if horizon > longest:
        raise MechanismError(
            f"banded-mf has matrices for up to {longest} rounds, got rounds={horizon}: lower "
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
    """The first column (length,) of C^-1: the power series 1 / c, for c (b,) with c_0 not 0.

    From c * w = 1: w_t = -(sum_{j>=1} c_j w_(t-j)) / c_0.
    """
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
    """The l2 sensitivity of C for updates of norm 1 in k rounds at least b apart.

    - With at most b bands, the columns of a client's rounds do not overlap: sqrt(k) |c|.
    - With non-negative, non-increasing coefficients, the earliest rounds at distance exactly b are
      the worst case: | sum_{j<k} C[:, j b] |.

    Args:
        coefficients: (bands,) the first column of C.
        horizon: the number of rounds.
        separation: b.
        participations: k.

    Raises:
        MechanismError: neither case applies, or a number is below 1.
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
            "C must have at most min_separation bands, or non-negative coefficients that do not "
            "increase: the sensitivity of other matrices is not implemented"
        )
    total = np.zeros(horizon)
    for turn in range(possible):
        start = turn * separation
        total[start:] += column[: horizon - start]
    return float(np.linalg.norm(total))


def relative_error(coefficients: Vector, *, horizon: int) -> float:
    """The root mean square error of prefix sums, relative to independent noise of equal privacy.

    It holds for at most min_separation bands, where the number of participations cancels.

    Args:
        coefficients: (bands,) the first column of C.
        horizon: the number of rounds.
    """
    prefix = np.cumsum(inverse_series(coefficients, horizon))
    weights = np.arange(horizon, 0, -1, dtype=np.float64)
    spread = math.sqrt(float((weights * prefix**2).sum()) / float(weights.sum()))
    return float(np.linalg.norm(coefficients[:horizon])) * spread
