"""Computes ``banded_toeplitz.json``: the banded Toeplitz matrices of least prefix-sum error.

    python -m fedsys.privacy.tables.build

Minimises log |c| + log |A C^-1|_F over c_1..c_(b-1) by L-BFGS with the exact gradient, starting at
the banded square root, then rounds to multiples of 2^-20. Takes a few seconds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.signal import fftconvolve, lfilter
from scipy.special import binom

from fedsys.errors import MechanismError
from fedsys.privacy.factorization import DENOMINATOR_BITS, relative_error

__all__ = ["HORIZONS", "WIDTHS", "main", "optimise"]

HORIZONS = (16, 32, 64, 100, 128, 200, 256, 400, 512, 800, 1024, 1600, 2048, 4096)
WIDTHS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)

Vector = NDArray[np.float64]


def _objective(tail: Vector, horizon: int) -> tuple[float, Vector]:
    """log |c| + log |A C^-1|_F and its gradient (b - 1,) with respect to c_1..c_(b-1)."""
    column = np.concatenate(([1.0], tail))
    impulse = np.zeros(horizon)
    impulse[0] = 1.0
    if column[1:].sum() > 1e3 or (np.abs(np.roots(column)) > 1.02).any():
        return math.inf, np.zeros_like(tail)  # the line search overshot: C^-1 explodes
    inverse = lfilter([1.0], column, impulse)
    prefix = np.cumsum(inverse)
    weights = np.arange(horizon, 0, -1, dtype=np.float64)
    error = float((weights * prefix**2).sum())
    norm = float(column @ column)
    by_inverse = np.cumsum((2 * weights * prefix)[::-1])[::-1]
    # w is the first column of C^-1: c * w = 1 (convolution), so dw = -w * w * dc.
    square = fftconvolve(inverse, inverse)[:horizon]
    by_column = np.array(
        [-float(by_inverse[j:] @ square[: horizon - j]) for j in range(1, len(column))]
    )
    gradient = by_column / (2 * error) + tail / norm
    return 0.5 * np.log(error) + 0.5 * np.log(norm), gradient


def optimise(horizon: int, bands: int) -> list[int]:
    """The numerators over 2^20 of the best first column of C.

    Raises:
        MechanismError: the optimum is not non-negative and non-increasing.
    """
    j = np.arange(1, bands)
    start = binom(2 * j, j) / 4.0**j
    if bands == 1:
        return [1 << DENOMINATOR_BITS]
    found = minimize(
        _objective, start, args=(horizon,), jac=True, method="L-BFGS-B", options={"maxiter": 2000}
    )
    column = np.concatenate(([1.0], found.x))
    numerators = np.rint(column * (1 << DENOMINATOR_BITS)).astype(int)
    if (numerators < 0).any() or (np.diff(numerators) > 0).any():
        raise MechanismError(f"horizon={horizon}, bands={bands}: the optimum increases somewhere")
    return [int(value) for value in numerators]


def main() -> None:
    """Writes the table next to this file."""
    strategies = []
    for horizon in HORIZONS:
        for bands in WIDTHS:
            if bands > horizon:
                continue
            numerators = optimise(horizon, bands)
            column = np.array(numerators) / (1 << DENOMINATOR_BITS)
            strategies.append(
                {
                    "horizon": horizon,
                    "bands": bands,
                    "relative_error": round(relative_error(column, horizon=horizon), 6),
                    "numerators": numerators,
                }
            )
    content = {"denominator_bits": DENOMINATOR_BITS, "strategies": strategies}
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in strategies)
    text = f'{{"denominator_bits":{content["denominator_bits"]},"strategies":[\n{lines}\n]}}\n'
    path = Path(__file__).with_name("banded_toeplitz.json")
    path.write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
