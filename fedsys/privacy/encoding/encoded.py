"""The type that carries updates from clipping to the sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Encoded"]


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Encoded:
    """K updates as integers, and what only each update's client may know about it.

    `encoding.clipping` makes them signed integers of bounded norm, a mechanism's encoder maps them
    into its ring, and `client.privatize` adds the noise shares; the other fields stay unchanged.

    Attributes:
        values: (K, length) signed integers, or elements of the ring in ``ring_dtype(b)``.
        clipped: (K,) whether the update's norm exceeded the clipping norm.
        unusable: (K,) whether the update was not finite; its row then encodes zeros.
        norms: (K,) l2 norms before clipping, 0 where unusable.
    """

    values: NDArray[Any]
    clipped: NDArray[np.bool_]
    unusable: NDArray[np.bool_]
    norms: NDArray[np.float64]
