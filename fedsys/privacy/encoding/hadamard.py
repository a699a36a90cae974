"""Random rotation by public signs and the Walsh-Hadamard transform, which is its own inverse.

The flattening step of Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for
Federated Learning with Secure Aggregation" (ICML 2021), Algorithm 1.

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
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.randomness import AesCtrStream

__all__ = ["hadamard_transform", "public_signs", "rotate", "unrotate"]

Real = TypeVar("Real", np.float32, np.float64)

_DOMAIN = b"fedsys narrow encoding signs v1\x00"


def public_signs(dimension: int, seed: bytes) -> NDArray[np.float64]:
    """Signs (d,), each -1.0 or 1.0, a public function of a round's seed.

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


def hadamard_transform(rows: NDArray[Real]) -> NDArray[Real]:
    """The unnormalised Walsh-Hadamard transform of each row (K, 2^m); overwrites its argument.

    A row is treated as a matrix of 2^(m - m // 2) by 2^(m // 2): H_(ab) is the Kronecker product of
    H_a and H_b, so transforming its columns and then its rows transforms the whole. This way every
    butterfly adds long contiguous pieces of memory. All sums are of two numbers in a fixed order,
    so another backend that keeps the order gets the same bits.

    Args:
        rows: float32 or float64.

    Raises:
        MechanismError: the width is not a power of two.
    """
    count, width = rows.shape
    if width < 1 or width & (width - 1):
        raise MechanismError(f"the transform needs a width that is a power of two, got {width}")
    inner = 1 << (width.bit_length() - 1) // 2
    outer = width // inner
    upright = (count, outer, inner)
    lying = (count, inner, outer)
    down, free = _butterflies(rows.reshape(upright), np.empty(upright, dtype=rows.dtype))
    turned = free.reshape(lying)
    np.copyto(turned, down.transpose(0, 2, 1))
    across, free = _butterflies(turned, down.reshape(lying))
    result = free.reshape(upright)
    np.copyto(result, across.transpose(0, 2, 1))
    return result.reshape(count, width)


def _butterflies(rows: NDArray[Real], spare: NDArray[Real]) -> tuple[NDArray[Real], NDArray[Real]]:
    """The transform of (K, n, w) along its middle axis: the result, and the other array."""
    count, length, width = rows.shape
    span = 1
    while span < length:
        pairs = (count, length // (2 * span), 2, span * width)
        source, target = rows.reshape(pairs), spare.reshape(pairs)
        np.add(source[:, :, 0], source[:, :, 1], out=target[:, :, 0])
        np.subtract(source[:, :, 0], source[:, :, 1], out=target[:, :, 1])
        rows, spare = spare, rows
        span *= 2
    return rows, spare


def rotate(rows: NDArray[Real], seed: bytes) -> NDArray[Real]:
    """H diag(signs) x / sqrt(d) for each row (K, d), d a power of two.

    Raises:
        MechanismError: the seed is empty, or the width is not a power of two.
    """
    width = rows.shape[1]
    turned = hadamard_transform(rows * public_signs(width, seed).astype(rows.dtype))
    turned *= rows.dtype.type(1 / math.sqrt(width))
    return turned


def unrotate(rows: NDArray[Real], seed: bytes) -> NDArray[Real]:
    """The inverse of ``rotate``: diag(signs) H y / sqrt(d) for each row (K, d), as H H = d I.

    Raises:
        MechanismError: as for ``rotate``.
    """
    width = rows.shape[1]
    turned = hadamard_transform(rows.copy())
    turned *= rows.dtype.type(1 / math.sqrt(width))
    turned *= public_signs(width, seed).astype(rows.dtype)
    return turned
