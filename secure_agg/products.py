"""Exact products in Z[X] / (X^2048 + 1), by Fourier transforms in double precision.

**Order of coefficients.** A ring element is an array of 2048: positions ``2 j`` and ``2 j + 1``
hold the coefficients of ``X^j`` and ``X^(j + 1024)``. This is the order in which a complex
transform of length 1024 reads and writes them, so that nothing is ever moved. Secrets use it too.

**Exactness of the product.** ``a s`` is computed in double precision and is proved equal to the
integer result. Split a into two centred limbs of ``w = ceil(log_q / 2) <= 27`` bits. A negacyclic
product of real vectors of length N = 2048 is a right-angle convolution (Crandall and Fagin 1994):
with ``f_j = (a_j + i a_(j+H)) omega^j``, H = 1024 and ``omega = exp(i pi / N)``, it is a cyclic one
of length H. We bound its error as Percival does (Math. Comp. 72, 2003, section 5). Let u = 2^-53.

1. A rounded complex sum is ``(x + y)(1 + d)`` with ``|d| <= u``, and a rounded product
   ``x y (1 + d)`` with ``|d| <= sqrt(5) u`` (Brent, Percival and Zimmermann, Math. Comp. 76, 2007).
   A root of unity is off by at most ``r u``: r <= 10 for numpy's (pocketfft multiplies two entries
   of tables, each within 3 u, and rounds), r <= 4 for our ``omega^j``.
2. A transform of length 2^10, in whatever radices 2, 4 or 8, consists of 10 layers of sums and at
   most 10 of products with roots, one layer of each being a unitary matrix times sqrt(2) or 1. So
   with the twist by ``omega^j`` the computed transform differs from the exact one, F, by at most
   ``T |F|`` in the Euclidean norm, ``1 + T = (1+u)^10 (1+sqrt(5) u)^11 (1+10 u)^10 (1+4 u)``.
3. By Cauchy-Schwarz the computed products differ from the exact ones by at most
   ``((1+T)^2 (1+sqrt(5) u) - 1) |A| |S|`` in the sum of absolute values.
4. An output of the inverse transform is a sum over its inputs, each with a factor within T of its
   root of unity, divided by H (a power of two, exactly). With ``|A| |S| = H |a| |s|``, every
   coefficient of the computed product is within

       ((1+T)^3 (1+sqrt(5) u) - 1) |a| |s|  <  2^-44.2 |a| |s|

   of the integer result, and rounding to the nearest integer is exact when this is below 1/2.

A limb has ``|a| <= 2^(w-1) sqrt(N)``. A dealer's secret has ``|s| <= 60 sqrt(N)``, and the bound
is 0.38. A sum of secrets may be larger: `Multiplier` computes its norm and, where the bound exceeds
0.49, writes it to the base 2^7; digits of at most 64 give a bound of 0.41. Nothing rests on the
size of errors that is measured, a hundred to a thousand times smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from secure_agg.errors import InputError
from secure_agg.gaussian import Keystream
from secure_agg.params import RING_DEGREE, SecAggParams

__all__ = [
    "RELATIVE_ERROR",
    "Complex",
    "Ints",
    "Multiplier",
    "PublicPolynomials",
    "Room",
    "room",
    "transform",
]

Complex: TypeAlias = npt.NDArray[np.complex128]
Ints: TypeAlias = npt.NDArray[np.int64]

_HALF: Final = RING_DEGREE // 2
_BLOCK: Final = 16
"""Polynomials handled together. What a pass touches, 0.25 MiB an array, stays in a core's cache;
smaller blocks pay for more calls, larger ones for more traffic."""
_SECRET_SPLIT: Final = 7
_ERROR_LIMIT: Final = 0.49
"""Largest error that is relied on: below 1/2 by more than what computing the bound may be off."""
_SECRET_MAX: Final = 1 << 15
_MAGIC: Final = 1.5 * 2.0**52
"""Added to a double of magnitude below 2^51 leaves the nearest integer in its low bits. A product
whose error is below 1/2 is itself below ``1 / (2 * 2^-44.2) < 2^44``."""
_MAGIC_BITS: Final = 0x4338 << 48
"""`_MAGIC` as the integer that its bits spell."""

_TWIST: Final = np.exp(1j * np.pi / RING_DEGREE * np.arange(_HALF))
_UNTWIST: Final = np.conj(_TWIST)


def _relative_error() -> float:
    """Return the factor of ``|a| |s|`` in the proof above."""
    u = 2.0**-53
    return math.expm1(
        30 * math.log1p(u)
        + 34 * math.log1p(math.sqrt(5) * u)
        + 30 * math.log1p(10 * u)
        + 3 * math.log1p(4 * u)
    )


RELATIVE_ERROR: Final = _relative_error()
"""Bound on the error of a coefficient of a product, by the norms of its factors: 2^-44.2."""


def transform(z: Complex) -> None:
    """Replace ring elements, (..., H) as complex numbers, by their transforms."""
    z *= _TWIST
    np.fft.fft(z, out=z)


class Room:
    """Memory for one block of polynomials: fresh memory would cost as much as a transform.

    What is left in it is overwritten by the next block, and worth as little as freed memory.

    Attributes:
        words: A keystream's bytes, 16 KiB a polynomial, and 15 more.
        limbs: Transforms of the public limbs, low and high, (2, polynomials, 1024).
        transforms: For `Multiplier.times`, (polynomials, 1024).
        products: What that returns, (polynomials, 2048).
        values: Integers, one a coefficient.
        samples: Small integers, one a coefficient.
    """

    __slots__ = ("limbs", "products", "samples", "transforms", "values", "words")

    def __init__(self) -> None:
        self.words = np.empty(8 * _BLOCK * RING_DEGREE + 16, np.uint8)
        self.limbs = np.empty((2, _BLOCK, _HALF), np.complex128)
        self.transforms = np.empty((_BLOCK, _HALF), np.complex128)
        self.products = np.empty((_BLOCK, RING_DEGREE), np.int64)
        self.values = np.empty(_BLOCK * RING_DEGREE, np.int64)
        self.samples = np.empty(_BLOCK * RING_DEGREE, np.int8)


_ROOMS: Final[list[Room]] = []


@contextmanager
def room() -> Iterator[Room]:
    """Lend a room, which nobody else has meanwhile and which the next one gets."""
    try:
        where = _ROOMS.pop()
    except IndexError:
        where = Room()
    try:
        yield where
    finally:
        _ROOMS.append(where)


class PublicPolynomials:
    """The public ring elements a, expanded from a seed block by block.

    Args:
        seed: 32 bytes that all members of the round know.
        params: The round's parameters.
        cached: Keep the transforms, 16 bytes a coefficient, for the next use. A device that
            encrypts once holds one block instead.
    """

    def __init__(self, seed: bytes, params: SecAggParams, *, cached: bool = False) -> None:
        self.params = params
        self.limb_bits = (params.log_q + 1) // 2
        self._seed = seed
        self._cached = cached
        self._cache: list[tuple[int, Complex, Complex]] | None = None

    def blocks(self, where: Room) -> Iterator[tuple[int, Complex, Complex]]:
        """Yield index of the first polynomial and transforms of the low and the high limbs.

        Each is (polynomials, 1024), and without cache lies in ``where``, to be overwritten by the
        next block.
        """
        if self._cached:
            if self._cache is None:
                self._cache = [(i, a.copy(), b.copy()) for i, a, b in self._expand(where)]
            yield from self._cache
        else:
            yield from self._expand(where)

    def limbs(self, where: Room) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
        """Yield index of the first polynomial, and low and high limbs, (polynomials, 2, 2048).

        ``a = low + 2^limb_bits high`` modulo q; both are uniform and centred. Polynomial i takes
        bytes ``16384 i`` to ``16384 (i + 1)`` of the keystream: 2,048 little-endian words of 32
        bits for the low limbs, then as many for the high ones, of which each takes the most
        significant ``limb_bits`` as a two's complement number.
        """
        stream = Keystream(self._seed)
        total = self.params.polynomials
        for start in range(0, total, _BLOCK):
            count = min(_BLOCK, total - start)
            size = 8 * count * RING_DEGREE
            stream.fill(where.words.data, size)
            words = where.words[:size].view("<i4")
            words >>= 32 - self.limb_bits  # keeps the high bits, with their sign
            yield start, words.reshape(count, 2, RING_DEGREE)

    def _expand(self, where: Room) -> Iterator[tuple[int, Complex, Complex]]:
        for start, limbs in self.limbs(where):
            z = where.limbs[:, : len(limbs)]
            for index, transformed in enumerate(z):
                transformed.view(np.float64)[...] = limbs[:, index]
                transform(transformed)
            yield start, z[0], z[1]


class Multiplier:
    """The transforms of a secret's limbs, as many as exactness needs."""

    def __init__(self, secret: npt.NDArray[np.integer[Any]], limb_bits: int) -> None:
        if secret.shape != (RING_DEGREE,) or secret.dtype.kind != "i":
            raise InputError(
                f"a secret is {secret.dtype} of shape {secret.shape}: "
                f"{RING_DEGREE} signed integers are needed"
            )
        s = secret.astype(np.int64)
        largest = int(np.abs(s).max())
        if largest > _SECRET_MAX:
            raise InputError(f"a secret has a coefficient above {_SECRET_MAX}")
        a_norm = 2.0 ** (limb_bits - 1) * math.sqrt(RING_DEGREE)
        parts: list[tuple[int, Ints]] = []
        shift, half = 0, 1 << (_SECRET_SPLIT - 1)
        while float(np.linalg.norm(s)) * a_norm * RELATIVE_ERROR > _ERROR_LIMIT:
            low = ((s + half) & (2 * half - 1)) - half
            parts.append((shift, low))
            s = (s - low) >> _SECRET_SPLIT
            shift += _SECRET_SPLIT
        parts.append((shift, s))
        self.limbs: list[tuple[int, Complex]] = []
        for shift, part in parts:
            z = part.astype(np.float64).view(np.complex128)
            transform(z)
            self.limbs.append((shift, z))
        self.limb_bits = limb_bits
        # What `_MAGIC_BITS` contribute to the sum that `times` returns.
        self.excess = sum(
            _MAGIC_BITS << (shift + high) for shift, _ in parts for high in (0, limb_bits)
        )

    def times(self, low: Complex, high: Complex, z: Complex, out: Ints, plus: int = 0) -> None:
        """Write ``a s + plus + excess`` modulo 2^64 to ``out``, (polynomials, 2048).

        Args:
            low, high: Transforms of a's limbs, (polynomials, 1024).
            z: Scratch of the same shape.
            out: Where the result goes.
            plus: Of magnitude below 2^50, so that adding it to `_MAGIC` is exact, as is the sum
                with a product.
        """
        parts, bits = z.view(np.float64), z.view(np.int64)
        first = True
        for base, limb in ((self.limb_bits, high), (0, low)):
            for shift, secret in self.limbs:
                np.multiply(limb, secret, out=z)
                np.fft.ifft(z, out=z)
                z *= _UNTWIST
                parts += _MAGIC if base + shift else _MAGIC + plus
                if first:
                    np.left_shift(bits, base + shift, out=out)
                else:
                    if base + shift:
                        bits <<= base + shift
                    out += bits
                first = False
