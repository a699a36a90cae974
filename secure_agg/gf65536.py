"""The field GF(2^16), vectorised: polynomials over GF(2) modulo x^16 + x^12 + x^3 + x + 1.

Addition is XOR. Products go through logarithms to the base x, which generates the field. Zero has
no logarithm; a sentinel takes its place, large enough for every sum that contains it to fall in
the part of the exponential table that holds zeros.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["Elements", "divide", "invert", "log_tables", "matmul", "multiply"]

Elements = npt.NDArray[np.uint16]

_ORDER: Final = 65_535
_POLYNOMIAL: Final = 0x1100B
_LOG_ZERO: Final = 2 * _ORDER


@functools.cache
def log_tables() -> tuple[npt.NDArray[np.int32], Elements]:
    """Return ``log`` and ``exp``, so that ``a * b == exp[log[a] + log[b]]`` for all a and b.

    Returns:
        Shapes (65 536,) and (262 141,).
    """
    powers = np.ones(1, np.uint32)
    step = 2  # the generator x to the power len(powers)
    while len(powers) < _ORDER + 1:
        powers = np.concatenate((powers, _times(powers, step)))
        step = int(_times(np.array([step], np.uint32), step)[0])
    log = np.empty(_ORDER + 1, np.int32)
    log[powers[:_ORDER]] = np.arange(_ORDER, dtype=np.int32)
    log[0] = _LOG_ZERO
    exp = np.zeros(2 * _LOG_ZERO + 1, np.uint16)
    exp[:_ORDER] = powers[:_ORDER]
    exp[_ORDER:_LOG_ZERO] = powers[:_ORDER]
    return log, exp


def _times(values: npt.NDArray[np.uint32], constant: int) -> npt.NDArray[np.uint32]:
    """Multiply by shift and add; builds the tables."""
    out = np.zeros_like(values)
    for bit in range(15, -1, -1):
        out <<= np.uint32(1)
        out ^= np.where(out & 0x10000, np.uint32(_POLYNOMIAL), np.uint32(0))
        if constant >> bit & 1:
            out ^= values
    return out


def multiply(a: npt.ArrayLike, b: npt.ArrayLike) -> Elements:
    """Return the products of elements of any two shapes, broadcast."""
    log, exp = log_tables()
    return np.asarray(exp[log[np.asarray(a)] + log[np.asarray(b)]])


def invert(a: npt.ArrayLike) -> Elements:
    """Return the inverses, in the argument's shape; that of zero is given as zero."""
    log, exp = log_tables()
    values = np.asarray(a)
    return np.where(values == 0, np.uint16(0), exp[_ORDER - log[values] * (values != 0)])


def divide(a: npt.ArrayLike, b: npt.ArrayLike) -> Elements:
    """Return ``a / b``, broadcast; ``b`` must not be zero."""
    return multiply(a, invert(b))


def matmul(a: Elements, b: Elements) -> Elements:
    """Return the matrix product of shapes (m, n) and (n, s).

    One gather for every scalar product, in row blocks that bound the memory.
    """
    log, exp = log_tables()
    la, lb = log[a], log[b]
    rows = max(1, (1 << 20) // max(1, lb.size))
    out = np.empty((len(a), b.shape[1]), np.uint16)
    for start in range(0, len(a), rows):
        products = exp.take(la[start : start + rows, :, None] + lb[None])
        np.bitwise_xor.reduce(products, axis=1, out=out[start : start + rows])
    return out
