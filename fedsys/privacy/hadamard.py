"""Random rotation by public signs and the Walsh-Hadamard transform: its own inverse up to signs.

>>> x = np.array([[1.0, 2.0, 3.0, 4.0]])
>>> y = rotate(x, b"round 1")
>>> bool(np.allclose(np.linalg.norm(y), np.linalg.norm(x)))
True
>>> np.round(unrotate(y, b"round 1"), 12)
array([[1., 2., 3., 4.]])
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.randomness import AesCtrStream

__all__ = ["hadamard_transform", "public_signs", "rotate", "unrotate"]

_DOMAIN = b"fedsys narrow encoding signs v1\x00"


def public_signs(dimension: int, seed: bytes) -> NDArray[np.float64]:
    """Signs (d,) of -1.0 and 1.0, a public function of a round's seed.

    Raises:
        MechanismError: the seed is empty; every round needs its own.
    """
    if not seed:
        raise MechanismError(
            "the narrow encoding needs a public seed, the same for the whole round"
        )
    stream = AesCtrStream(hashlib.sha256(_DOMAIN + seed).digest())
    raw = np.frombuffer(stream((dimension + 7) // 8), dtype=np.uint8)
    bits = np.unpackbits(raw, count=dimension)
    return 1.0 - 2.0 * bits.astype(np.float64)


def hadamard_transform(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The unnormalised Walsh-Hadamard transform of each row (K, 2^m), in place and returned.

    Butterflies of growing span, in this order: another backend that keeps the order gets the same
    bits.

    Raises:
        MechanismError: the width is not a power of two.
    """
    width = rows.shape[1]
    if width < 1 or width & (width - 1):
        raise MechanismError(f"the transform needs a width that is a power of two, got {width}")
    for row in rows:  # one row at a time stays in cache
        span = 1
        while span < width:
            pairs = row.reshape(-1, 2, span)
            lower = pairs[:, 1].copy()
            np.subtract(pairs[:, 0], lower, out=pairs[:, 1])
            pairs[:, 0] += lower
            span *= 2
    return rows


def rotate(rows: NDArray[np.float64], seed: bytes) -> NDArray[np.float64]:
    """H diag(signs) x / sqrt(d) for each row (K, d), d a power of two."""
    width = rows.shape[1]
    return hadamard_transform(rows * public_signs(width, seed)) / math.sqrt(width)


def unrotate(rows: NDArray[np.float64], seed: bytes) -> NDArray[np.float64]:
    """The inverse of ``rotate``."""
    width = rows.shape[1]
    turned = hadamard_transform(np.array(rows, dtype=np.float64)) / math.sqrt(width)
    return turned * public_signs(width, seed)
