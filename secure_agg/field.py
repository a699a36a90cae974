"""Linear algebra over the field of 65,521 elements, in which secrets are shared.

65,521 is the largest prime below 2^16: an element takes two bytes on the wire. Elements are int64
arrays with values from 0 to 65,520 unless a docstring says otherwise.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import numpy.typing as npt

from secure_agg.errors import DecodingError
from secure_agg.params import FIELD

__all__ = [
    "PRIME",
    "Elements",
    "Floats",
    "centred",
    "interpolation",
    "invert",
    "matmul",
    "power",
    "residues",
    "solve",
]

PRIME: Final = FIELD
_GENERATOR: Final = 17
"""Its powers are all elements but zero."""
Elements = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def centred(values: npt.NDArray[np.generic]) -> Floats:
    """Return the representatives from -32,760 to 32,760 as float64, for exact products.

    The prime is odd, so that ``x / p`` is at least ``1 / (2 p) > 2^-17`` away from where rounding
    to the nearest integer jumps, and the computed quotient is within ``2^-52 |x| / p < 2^-18`` of
    it: the integer is the right one, and its product with p and the difference are exact.

    Args:
        values: Integers of magnitude below 2^50.
    """
    out = np.array(values, np.float64)
    quotients = out * (1.0 / PRIME)
    np.rint(quotients, out=quotients)
    quotients *= PRIME
    out -= quotients
    return out


def residues(values: npt.NDArray[np.generic]) -> Elements:
    """Return integers of magnitude below 2^50 modulo the prime, from 0 to 65,520."""
    out = centred(values).astype(np.int64)
    out += (out >> 63) & PRIME
    return out


def matmul(left: npt.NDArray[np.generic], right: npt.NDArray[np.generic]) -> Elements:
    """Return the matrix product modulo the prime.

    float64 computes it exactly: with centred residues every product is below 2^15 * 2^15 = 2^30 in
    absolute value, so that a sum of up to 2^20 of them stays below 2^50 in any order of addition,
    fused or not. The inner dimension here is a threshold or a number of columns, below 2^12.
    """
    return residues(centred(left) @ centred(right))


def power(base: npt.ArrayLike, exponent: int) -> Elements:
    """Return ``base ** exponent`` elementwise by squaring; ``exponent >= 0``."""
    factor = np.asarray(base, np.int64) % PRIME
    result = np.ones_like(factor)
    while exponent:
        if exponent & 1:
            result = result * factor % PRIME
        factor = factor * factor % PRIME
        exponent >>= 1
    return result


def invert(values: npt.ArrayLike) -> Elements:
    """Return the multiplicative inverses (Fermat); zero gives zero."""
    return power(values, PRIME - 2)


def interpolation(points: npt.ArrayLike, targets: npt.ArrayLike) -> Elements:
    """Return the matrix that takes values at ``points`` to values at ``targets``.

    Lagrange's formula for the one polynomial of degree below ``len(points)``, its products and
    quotients being sums and differences of discrete logarithms.

    Args:
        points: Distinct elements, shape (k,).
        targets: Shape (r,); they may coincide with points.

    Returns:
        Shape (r, k).
    """
    xs = np.asarray(points, np.int64) % PRIME
    ys = np.asarray(targets, np.int64) % PRIME
    logarithms, powers = _tables()
    difference = (ys[:, None] - xs) % PRIME
    numerators = logarithms[difference]
    denominators = logarithms[(xs[:, None] - xs) % PRIME].sum(axis=1)
    exponents = numerators.sum(axis=1)[:, None] - numerators - denominators
    out: Elements = powers[exponents % (PRIME - 1)]
    for row, column in zip(*np.nonzero(difference == 0), strict=True):
        out[row] = 0
        out[row, column] = 1
    return out


@functools.cache
def _tables() -> tuple[Elements, Elements]:
    """Return discrete logarithms, that of zero being zero, and the powers of the generator.

    They are for points, which are public: what is looked up in a table shows in its timing.
    """
    powers = np.ones(PRIME - 1, np.int64)
    size = 1
    while size < len(powers):
        some = min(size, len(powers) - size)
        powers[size : size + some] = powers[:some] * pow(_GENERATOR, size, PRIME) % PRIME
        size += some
    logarithms = np.zeros(PRIME, np.int64)
    logarithms[powers] = np.arange(PRIME - 1)
    return logarithms, powers


def solve(matrix: Elements, right: Elements) -> Elements:
    """Return one solution of a linear system by Gauss-Jordan elimination; free variables are zero.

    Args:
        matrix: Shape (rows, columns).
        right: Shape (rows,).

    Raises:
        DecodingError: There is none.
    """
    work = np.concatenate((matrix, right[:, None]), axis=1) % PRIME
    rows, columns = matrix.shape
    pivots: list[int] = []
    for column in range(columns):
        at = len(pivots)
        if at == rows:
            break
        candidates = np.flatnonzero(work[at:, column])
        if not candidates.size:
            continue
        found = at + int(candidates[0])
        work[[at, found]] = work[[found, at]]
        work[at] = work[at] * invert(work[at, column]) % PRIME
        factors = work[:, column].copy()
        factors[at] = 0
        others = np.flatnonzero(factors)
        work[others] = (work[others] - factors[others, None] * work[at]) % PRIME
        pivots.append(column)
    if work[len(pivots) :, -1].any():
        raise DecodingError("more wrong answers than can be corrected")
    out = np.zeros(columns, np.int64)
    out[pivots] = work[: len(pivots), -1]
    return out
