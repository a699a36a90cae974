"""Integers modulo 2^b, 1 <= b <= 64: the arrays that are summed, and their bytes on the wire.

An element lives in the narrowest unsigned type that holds b bits. Sums wrap modulo the type's own
width, which 2^b divides, and are reduced once at the end. On the wire an element takes exactly b
bits, little endian, packed without gaps; the last byte is padded with zero bits.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from secure_agg import checks
from secure_agg.errors import InputError, MessageError, ParameterError

__all__ = ["Ring", "Vector", "ring"]

Vector = npt.NDArray[np.unsignedinteger[Any]]

_BLOCK: Final = 1 << 16  # elements packed at a time; a multiple of 8


class Ring:
    """The integers modulo 2^bits.

    Args:
        bits: 1 to 64.

    Raises:
        ParameterError: On other bits.

    Attributes:
        bits: b.
        width: Bits of the type that holds an element: 8, 16, 32 or 64.
        dtype: That type, little endian.
        mask: 2^bits - 1.

    >>> ring = Ring(20)
    >>> ring.unpack(ring.pack(np.array([1, 2**20 - 1, 7], np.uint32)), 3)
    array([      1, 1048575,       7], dtype=uint32)
    """

    __slots__ = ("bits", "dtype", "mask", "width")

    def __init__(self, bits: int) -> None:
        if not 1 <= bits <= 64:
            raise ParameterError(f"modulus_bits is {bits}: it must be from 1 to 64")
        self.bits = bits
        self.width = next(w for w in (8, 16, 32, 64) if bits <= w)
        self.dtype: np.dtype[Any] = np.dtype(f"<u{self.width // 8}")
        self.mask = (1 << bits) - 1

    def zeros(self, length: int) -> Vector:
        """Return the zero vector, shape (length,)."""
        return np.zeros(length, self.dtype)

    def reduce(self, vector: Vector) -> None:
        """Reduce a vector of the ring's own type modulo 2^bits, in place."""
        if self.bits != self.width:
            np.bitwise_and(vector, self.dtype.type(self.mask), out=vector)

    def take(self, vector: npt.ArrayLike, length: int) -> Vector:
        """Copy a caller's vector into the ring's own type.

        Args:
            vector: Shape (length,), any unsigned integer type, every element below 2^bits.

        Raises:
            InputError: On another type, shape or range. Nothing is reduced silently.
        """
        array = np.asarray(vector)
        if array.dtype.kind != "u":
            raise InputError(f"the vector is of type {array.dtype}: unsigned integers are needed")
        if array.shape != (length,):
            raise InputError(f"the vector has shape {array.shape}: ({length},) was agreed")
        if array.dtype.itemsize * 8 > self.bits and length:
            checks.input_range(int(array.max()), self.bits)
        return array.astype(self.dtype, copy=True)

    def packed_size(self, length: int) -> int:
        """Return the bytes that ``length`` elements take on the wire."""
        return (length * self.bits + 7) // 8

    def pack(self, vector: Vector) -> bytes:
        """Encode a reduced vector of shape (length,): `packed_size` bytes."""
        if self.bits == self.width:
            return vector.tobytes()
        parts = []
        for start in range(0, len(vector), _BLOCK):
            block = vector[start : start + _BLOCK].view(np.uint8).reshape(-1, self.width // 8)
            bits = np.unpackbits(block, axis=1, bitorder="little", count=self.bits)
            parts.append(np.packbits(bits, bitorder="little").tobytes())
        return b"".join(parts)

    def unpack(self, data: bytes | memoryview, length: int) -> Vector:
        """Decode a vector of shape (length,), read-only for the native widths.

        Raises:
            MessageError: On a wrong size or padding that is not zero.
        """
        if len(data) != self.packed_size(length):
            raise MessageError(
                f"a vector of {length} elements takes {self.packed_size(length)} bytes, "
                f"got {len(data)}"
            )
        if self.bits == self.width:
            return np.frombuffer(data, self.dtype)
        raw = np.frombuffer(data, np.uint8)
        spare = len(raw) * 8 - length * self.bits
        if spare and raw[-1] >> (8 - spare):
            raise MessageError("the padding of a packed vector is not zero")
        out = self.zeros(length)
        rows = out.view(np.uint8).reshape(-1, self.width // 8)
        step = _BLOCK * self.bits // 8
        for start in range(0, length, _BLOCK):
            count = min(_BLOCK, length - start)
            at = start // _BLOCK * step
            bits = np.unpackbits(
                raw[at : at + step], bitorder="little", count=count * self.bits
            ).reshape(count, self.bits)
            packed = np.packbits(bits, axis=1, bitorder="little")
            rows[start : start + count, : packed.shape[1]] = packed
        return out

    def __repr__(self) -> str:
        return f"Ring({self.bits})"


@functools.cache
def ring(bits: int) -> Ring:
    """Return the ring of so many bits; one object each.

    Raises:
        ParameterError: As `Ring` does.
    """
    return Ring(bits)
