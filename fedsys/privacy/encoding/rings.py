"""Integers mod 2^b, the ring in which clients' vectors are added.

>>> to_ring(np.array([-1, 5]), bits=12)
array([4095,    5], dtype=uint16)
>>> from_ring(np.array([4095, 5], dtype=np.uint16), bits=12)
array([-1,  5])
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError

__all__ = [
    "MAX_BITS",
    "RINGS",
    "check_bits",
    "from_ring",
    "ring_dtype",
    "signed_words",
    "to_ring",
]

MAX_BITS = 64

RINGS = (16, 20, 24, 32, 40, 48, 64)
"""The widths to choose from if none is given; multiples of half an octet pack well."""


def check_bits(bits: int) -> int:
    """Returns ``bits`` if the modulus 2^bits is supported.

    Raises:
        MechanismError: ``bits`` is not an integer from 2 to 64.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= MAX_BITS:
        raise MechanismError(f"modulus_bits must be an integer from 2 to {MAX_BITS}, got {bits!r}")
    return bits


def ring_dtype(bits: int) -> np.dtype[Any]:
    """The unsigned dtype that holds integers mod 2^bits: uint16, uint32 or uint64.

    Raises:
        MechanismError: as for `check_bits`.
    """
    check_bits(bits)
    return np.dtype(np.uint16 if bits <= 16 else np.uint32 if bits <= 32 else np.uint64)


def to_ring(values: NDArray[np.signedinteger[Any]], *, bits: int) -> NDArray[Any]:
    """Signed integers of any shape reduced mod 2^bits, in ``ring_dtype(bits)``.

    Raises:
        MechanismError: as for `check_bits`.
    """
    dtype = ring_dtype(bits)
    ring = values.astype(dtype)
    if bits != 8 * dtype.itemsize:
        ring &= dtype.type((1 << bits) - 1)
    return ring


def from_ring(values: NDArray[Any], *, bits: int) -> NDArray[np.int64]:
    """The representative of each element in [-2^(bits-1), 2^(bits-1)), as int64.

    Raises:
        MechanismError: an element is outside the ring or not an integer.
    """
    result: NDArray[np.int64] = signed_words(values, bits=bits).astype(np.int64)
    return result


def signed_words(values: NDArray[Any], *, bits: int) -> NDArray[np.signedinteger[Any]]:
    """The same as `from_ring`, in signed words of the width of ``ring_dtype(bits)``.

    Raises:
        MechanismError: as for `from_ring`.
    """
    dtype = ring_dtype(bits)
    if values.dtype.kind not in "iu":
        raise MechanismError(f"ring elements must be integers, got dtype {values.dtype}")
    negative = values.dtype.kind == "i" and values.size and int(values.min()) < 0
    if negative or (values.size and int(values.max()) >> bits):
        raise MechanismError(f"ring element outside [0, 2^{bits}): the sum is not reduced")
    # An arithmetic shift from the top of the word extends the sign of the b-bit number.
    shift = 8 * dtype.itemsize - bits
    signed = np.dtype(f"i{dtype.itemsize}")
    unsigned = values.astype(dtype)
    if shift:
        unsigned <<= dtype.type(shift)
    lifted: NDArray[np.signedinteger[Any]] = unsigned.view(signed)
    if shift:
        lifted >>= signed.type(shift)
    return lifted
