"""How the values of a vector lie in the coefficients of ring elements, and those on the wire.

With k values a coefficient and ``u = ceil(dimension / k)``, coefficient i holds the values i,
``i + u``, ..., ``i + (k - 1) u`` as signed digits to the base ``2^modulus_bits``. On the wire a
ciphertext is a sequence of planes: the low 32 bits of every coefficient, then, as far as they have
any, their next 16 and their last 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from secure_agg.errors import InputError
from secure_agg.params import RING_DEGREE, SecAggParams

__all__ = [
    "STEP",
    "PackedSum",
    "Unsigned",
    "check_vector",
    "digit",
    "packed_sum",
    "planes",
    "to_ring",
    "unpack",
]

Ints: TypeAlias = npt.NDArray[np.int64]
Unsigned: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]

STEP: Final = 16 * RING_DEGREE
"""Coefficients handled together, so that what a pass touches stays in a core's cache."""


class PackedSum:
    """The plain sum of vectors, equal to the decrypted sum of their ciphertexts to the bit.

    Where a sum fits the modulus this is the sum. Where one does not, the values that share a
    coefficient are not independent: a low digit that wraps carries into the digit above it, in the
    encrypted sum as in this one.
    """

    def __init__(self, params: SecAggParams) -> None:
        self.params = params
        self.sums: Ints = np.zeros(params.dimension, np.int64)

    def add(self, vector: Unsigned) -> None:
        """Add a vector of (dimension,) unsigned integers.

        Raises:
            InputError: It has another shape or type.
        """
        check_vector(vector, self.params)
        for start in range(0, self.params.dimension, STEP):
            x = vector[start : start + STEP].astype(np.uint64).view(np.int64)
            x <<= 64 - self.params.modulus_bits
            x >>= 64 - self.params.modulus_bits
            self.sums[start : start + STEP] += x

    def total(self) -> Ints:
        """Return the centred sums, (dimension,) int64, as `Accumulator.open` does."""
        params = self.params
        result = self.sums.copy()
        carry: Ints | None = None
        for j in range(params.values_per_coefficient):
            values = digit(result, j, 0, params.coefficients, params)
            if carry is not None:
                values += carry[: values.size]
            carry = _wrap(values, params.modulus_bits)
        return result


def packed_sum(vectors: Iterable[Unsigned], params: SecAggParams) -> Unsigned:
    """Return the sum of vectors modulo ``2^modulus_bits``, as the encrypted sum gives it.

    Raises:
        InputError: A vector has another shape or type.
    """
    total = PackedSum(params)
    for vector in vectors:
        total.add(vector)
    return to_ring(total.total(), params)


def to_ring(values: Ints, params: SecAggParams) -> Unsigned:
    """Return centred values modulo ``2^modulus_bits``, uint32 up to 32 bits and uint64 above."""
    result: Unsigned = values.astype(np.uint32 if params.modulus_bits <= 32 else np.uint64)
    if params.modulus_bits not in (32, 64):
        result &= (1 << params.modulus_bits) - 1
    return result


def _wrap(values: Ints, bits: int) -> Ints:
    """Reduce values to centred ones modulo ``2^bits`` in place, and return what was carried."""
    carry = values + (1 << (bits - 1))
    carry >>= bits
    values -= carry << bits
    return carry


def unpack(v: Ints, result: Ints, at: int, params: SecAggParams) -> None:
    """Write the digits of the coefficients from ``at`` on to their places in ``result``."""
    bits = params.modulus_bits
    if params.log_q - params.scale_bits == bits:  # one digit, as wide as its coefficient
        place = digit(result, 0, at, v.size, params)
        place[...] = v[: place.size]
        return
    for j in range(params.values_per_coefficient):
        place = digit(result, j, at, v.size, params)
        above = _wrap(v, bits)
        place[...] = v[: place.size]
        v = above


def digit(
    vector: npt.NDArray[Any], j: int, at: int, size: int, params: SecAggParams
) -> npt.NDArray[Any]:
    """Return the view of the values that are digit j of the coefficients at to at + size."""
    start = j * params.coefficients_used
    end = min(start + params.coefficients_used, params.dimension)
    return vector[min(start + at, end) : min(start + at + size, end)]


def planes(buffer: bytes | bytearray | memoryview, params: SecAggParams) -> list[npt.NDArray[Any]]:
    """Return views of a ciphertext's planes, each (coefficients,)."""
    views = []
    offset = 0
    for size in params.planes:
        views.append(np.frombuffer(buffer, f"<u{size}", params.coefficients, offset))
        offset += size * params.coefficients
    return views


def check_vector(vector: Unsigned, params: SecAggParams) -> None:
    """Refuse what is no vector of unsigned integers of the round's dimension.

    Raises:
        InputError: With the type or the shape that was given and the one that is needed.
    """
    if not isinstance(vector, np.ndarray) or vector.dtype.kind != "u":
        kind = vector.dtype if isinstance(vector, np.ndarray) else type(vector).__name__
        raise InputError(f"a vector is {kind}: an array of unsigned integers is needed")
    if vector.shape != (params.dimension,):
        raise InputError(f"a vector has shape {vector.shape}: ({params.dimension},) is needed")
