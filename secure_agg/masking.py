"""Key-additive encryption of integer vectors: ciphertexts add up, and so do their keys.

A dealer with secret ring element s encrypts its vector x as

    c = round(a s + e + 2^delta pack(x))    in Z_q[X] / (X^2048 + 1),  q = 2^log_q,

with a public a, fresh s and e from the discrete Gaussian with sigma 4.5 (`secure_agg.gaussian`),
and the low ``dropped_bits`` rounded away. The sum of the ciphertexts decrypts under the sum of the
secrets, and under nothing less.

**Why it hides.** Without rounding c is an RLWE sample plus the message, with a secret from the
error distribution. Decision RLWE is as hard as problems on ideal lattices in the worst case, by a
quantum reduction that works for any number field and any modulus (Peikert, Regev and
Stephens-Davidowitz, STOC 2017), so that a power of two will do for q. Their errors
are wider than ours and elliptical: as in every practical scheme the concrete parameters rest on
the estimate in `secure_agg.hardness`. The sums ``sum s`` and ``sum e``, which opening reveals, are
for any two honest dealers a hint on each one's secret and error; `secure_agg.hardness` says what
the theorem on Hint-MLWE leaves of their hardness. That a sum with another dealer's secret and
error is such a hint, and the hybrid over dealers that gets by with one hint each, are our steps;
PROTOCOL.md writes them out. Rounding is a function of the unrounded ciphertext and reveals nothing
more.

>>> import numpy as np
>>> from secure_agg.params import SecAggParams
>>> params = SecAggParams.derive(n=3, corrupt=0, dropout=0, modulus_bits=16, dimension=5)
>>> public = PublicPolynomials(bytes(32), params)
>>> accumulator = Accumulator(params)
>>> secrets = [sample_secret(bytes([i]) * 32) for i in range(3)]
>>> for i, secret in enumerate(secrets):
...     vector = np.array([1, 2, 3, 4, 65535], np.uint16)
...     accumulator.add(encrypt(vector, secret, public, bytes([i + 9]) * 32))
>>> accumulator.open(public, sum(secrets), 3).tolist()
[3, 6, 9, 12, -3]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from secure_agg import checks
from secure_agg.errors import InputError, MessageError
from secure_agg.gaussian import KEY_BYTES, TAIL, Sampler
from secure_agg.packing import (
    PackedSum,
    Unsigned,
    check_vector,
    digit,
    packed_sum,
    planes,
    to_ring,
    unpack,
)
from secure_agg.params import RING_DEGREE, SIGMA, SecAggParams
from secure_agg.products import Ints, Multiplier, PublicPolynomials, Room, room

__all__ = [
    "SECRET_SIGMAS",
    "Accumulator",
    "Hash",
    "Ints",
    "PackedSum",
    "PublicPolynomials",
    "Unsigned",
    "encrypt",
    "packed_sum",
    "sample_secret",
    "secret_limit",
    "to_ring",
]

SECRET_SIGMAS: Final = 12.0
"""A sum of honest secrets exceeds this many standard deviations with chance below 2^-90."""
_PIECE: Final = 32 * RING_DEGREE
"""Coefficients that are added together: a quarter of a MiB of the widest plane, so that the second
pass over a piece finds it in a core's cache, and a piece takes longer than the calls for it."""
_WORD: Final = 1 << 64


class Hash(Protocol):
    """As much of one of `hashlib`'s as is needed here."""

    def update(self, data: memoryview, /) -> None:
        """Go on with these bytes."""


def sample_secret(key: bytes) -> Ints:
    """Return a dealer's secret, (2048,), determined by 32 fresh bytes."""
    return Sampler(key).sample(RING_DEGREE).astype(np.int64)


def secret_limit(count: int) -> float:
    """Return the largest coefficient that a sum of ``count`` secrets is accepted with."""
    return SECRET_SIGMAS * SIGMA * math.sqrt(count)


def encrypt(
    vector: Unsigned,
    secret: npt.NDArray[np.integer[Any]],
    public: PublicPolynomials,
    noise_key: bytes,
    out: bytearray | memoryview | None = None,
    hashed: Hash | None = None,
) -> bytes:
    """Encrypt a vector under a fresh secret.

    A secret and a noise key encrypt one vector; a second under the same ones reveals the
    difference of the two.

    Args:
        vector: (dimension,) unsigned integers, taken modulo ``2^modulus_bits``.
        secret: (2048,) from `sample_secret`.
        public: The round's public ring elements.
        noise_key: 32 fresh bytes for the errors.
        out: Where to write the ciphertext; exactly ``params.ciphertext_bytes`` long.
        hashed: Is fed the ciphertext, most of it as it is written and still in a core's cache.

    Returns:
        The ciphertext, planes in order: for every coefficient its low 32 bits, then its next 16
        or 8, little-endian; empty when ``out`` is given.

    Raises:
        InputError: The vector, the secret or ``out`` does not have its shape or type.
    """
    params = public.params
    check_vector(vector, params)
    if len(noise_key) != KEY_BYTES:
        raise InputError(f"the noise key has {len(noise_key)} bytes: {KEY_BYTES} are needed")
    if int(np.abs(secret).max(initial=0)) > TAIL:
        raise InputError(f"a secret has a coefficient above {TAIL}")
    buffer = bytearray(params.ciphertext_bytes) if out is None else out
    if len(buffer) != params.ciphertext_bytes:
        raise InputError(
            f"out has {len(buffer)} bytes: a ciphertext takes {params.ciphertext_bytes}"
        )
    views = planes(buffer, params)
    multiplier = Multiplier(secret, public.limb_bits)
    noise = Sampler(noise_key)
    half = 1 << (params.dropped_bits - 1) if params.dropped_bits else 0
    modulus = (1 << params.log_q) - 1
    excess = np.uint64(multiplier.excess & modulus)
    with room() as where:
        for start, low, high in public.blocks(where):
            f = where.products[: len(low)]
            multiplier.times(low, high, where.transforms[: len(low)], f, half)
            flat, at = f.reshape(-1), start * RING_DEGREE
            _add_noise(flat, noise, where)
            _add_values(flat, vector, at, params, where)
            u = flat.view(np.uint64)
            if excess:
                u -= excess
            if params.wire_bits < 8 * sum(params.planes):  # the planes cut off what is above q
                u &= np.uint64(modulus)
            u >>= np.uint64(params.dropped_bits)
            for index, plane in enumerate(views):
                plane[at : at + u.size] = u
                if index + 1 < len(views):
                    u >>= np.uint64(8 * plane.itemsize)
            if hashed is not None:
                hashed.update(views[0][at : at + u.size].data)
    if hashed is not None:
        for plane in views[1:]:
            hashed.update(plane.data)
    return bytes(buffer) if out is None else b""


def _add_noise(flat: Ints, noise: Sampler, where: Room) -> None:
    errors, x = where.samples[: flat.size], where.values[: flat.size]
    noise.fill(errors, where.words, x)
    x[...] = errors  # faster than a sum of unlike types
    flat += x


def _add_values(flat: Ints, vector: Unsigned, at: int, params: SecAggParams, where: Room) -> None:
    """Add the vector's values to the coefficients from ``at`` on, above the noise."""
    bits = params.modulus_bits
    for j in range(params.values_per_coefficient):
        values = digit(vector, j, at, flat.size, params)
        if values.size:
            x = where.values[: values.size]
            x.view(np.uint64)[...] = values
            end = bits * (j + 1) + params.scale_bits
            if end == params.log_q:  # its sign reaches no bit below the modulus
                x <<= end - bits
            else:
                x <<= 64 - bits
                x >>= 64 - end
            flat[: x.size] += x


class Accumulator:
    """The running sum of ciphertexts, as large as one of them."""

    def __init__(self, params: SecAggParams) -> None:
        self.params = params
        self._sum = planes(bytearray(params.ciphertext_bytes), params)
        self._copy = np.empty(4 * min(_PIECE, params.coefficients), np.uint8)

    def add(self, *ciphertexts: bytes | bytearray | memoryview) -> None:
        """Add ciphertexts to the sum; several in one go fetch it from memory once.

        Raises:
            MessageError: One does not have ``params.ciphertext_bytes`` bytes; none was added.
        """
        terms = list(map(self._planes, ciphertexts))
        for piece in self._pieces():
            total = [plane[piece] for plane in self._sum]
            for term in terms:
                carry: npt.NDArray[np.bool_] | None = None
                for index, (t, plane) in enumerate(zip(total, term, strict=True)):
                    x = self._aligned(plane[piece])
                    t += x
                    overflow = t < x if index + 1 < len(total) else None
                    if carry is not None:
                        t += carry.view(np.uint8)  # no cast where the plane is of bytes
                        if overflow is not None:
                            overflow |= carry & (t == 0)
                    carry = overflow

    def subtract(self, ciphertext: bytes | bytearray | memoryview) -> None:
        """Take out a ciphertext that was added.

        Raises:
            MessageError: It does not have ``params.ciphertext_bytes`` bytes.
        """
        term = self._planes(ciphertext)
        for piece in self._pieces():
            borrow: npt.NDArray[np.bool_] | None = None
            for index, (whole, plane) in enumerate(zip(self._sum, term, strict=True)):
                t, x = whole[piece], self._aligned(plane[piece])
                underflow = t < x if index + 1 < len(term) else None
                t -= x
                if borrow is not None:
                    if underflow is not None:
                        underflow |= borrow & (t == 0)
                    t -= borrow
                borrow = underflow

    def _planes(self, ciphertext: bytes | bytearray | memoryview) -> list[npt.NDArray[Any]]:
        if len(ciphertext) != self.params.ciphertext_bytes:
            raise MessageError(
                f"a ciphertext has {len(ciphertext)} bytes, expected {self.params.ciphertext_bytes}"
            )
        return planes(ciphertext, self.params)

    def _aligned(self, piece: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a piece of a plane, or a copy of one that begins at an odd address.

        In an upload the ciphertext begins anywhere, and numpy takes twice as long for such an
        array. The next call overwrites the copy.
        """
        if piece.flags.aligned:
            return piece
        copy = self._copy[: piece.nbytes].view(piece.dtype)
        copy.view(np.uint8)[...] = piece.view(np.uint8)
        return copy

    def _pieces(self) -> Iterator[slice]:
        """Yield the ranges of coefficients that are added in turn."""
        for start in range(0, self.params.coefficients, _PIECE):
            yield slice(start, start + _PIECE)

    def open(
        self,
        public: PublicPolynomials,
        secret_sum: npt.NDArray[np.integer[Any]],
        count: int,
    ) -> Ints:
        """Decrypt the sum of ``count`` ciphertexts.

        Both tests come before the result is used: the secrets' sum must be as small as that of
        honest secrets (checked before anything is multiplied by it), and what remains below the
        values must be the noise of honest ciphertexts. Honest dealers fail the first with chance
        below 2^-80, and the second with chance 2^-64 for each of `SecAggParams.coefficients` (see
        `SecAggParams.noise_limit`): below 2^-40 for up to 2^24 of them, and below 2^-33 for 2^31,
        the most. The root mean square of 2,048 or more coefficients exceeds 1.25 of its
        expectation with chance below 2^-128.

        Args:
            public: The round's public ring elements.
            secret_sum: (2048,) the sum of the dealers' secrets, centred.
            count: Dealers in the sum, 1 to n.

        Returns:
            The centred sums, (dimension,) int64, between ``-2^(b-1)`` and ``2^(b-1) - 1``.

        Raises:
            InputError: ``count`` or the shape of ``secret_sum`` is wrong.
            ResidualError: The sum is not one of honest ciphertexts under honest secrets.
        """
        params = self.params
        if not 1 <= count <= params.n:
            raise InputError(f"count is {count}: it must be from 1 to {params.n}")
        if public.params != params:
            raise InputError("the public polynomials belong to other parameters")
        limit = secret_limit(count)
        largest = int(np.abs(np.asarray(secret_sum, np.int64)).max(initial=0))
        checks.secret_bound(largest, limit, count)
        multiplier = Multiplier(secret_sum, public.limb_bits)
        # Half-up rounding errs by 1/2 on average, and noise is centred in its field.
        centre = (1 << (params.scale_bits - 1)) - (count // 2 if params.dropped_bits else 0)
        constant = np.int64(_signed((centre + multiplier.excess) % _WORD))
        result = np.empty(params.dimension, np.int64)
        squares, worst = 0.0, 0
        with room() as where:
            for start, low, high in public.blocks(where):
                f = where.products[: len(low)]
                multiplier.times(low, high, where.transforms[: len(low)], f)
                at = start * RING_DEGREE
                v = self._combined(at, f.size)
                v <<= params.dropped_bits
                v -= f.reshape(-1)
                v += constant
                noise = v & ((1 << params.scale_bits) - 1)
                noise -= 1 << (params.scale_bits - 1)
                worst = max(worst, int(noise.max()), -int(noise.min()))
                real = where.transforms.view(np.float64).reshape(-1)[: noise.size]
                real[...] = noise
                real *= real
                squares += float(real.sum())  # a scalar product would wake other cores, to spin
                # The values lie above the noise, modulo q.
                v <<= 64 - params.log_q
                v >>= 64 - params.log_q + params.scale_bits
                unpack(v, result, at, params)
        checks.residual(params, count, worst, math.sqrt(squares / params.coefficients))
        return result

    def _combined(self, at: int, size: int) -> Ints:
        """Return the coefficients of the sum from their planes."""
        low, *others = (plane[at : at + size] for plane in self._sum)
        v: Ints = low.astype(np.int64)
        shift = 8 * low.itemsize
        for plane in others:
            part = plane.astype(np.int64)
            part <<= shift
            v |= part
            shift += 8 * plane.itemsize
        return v


def _signed(word: int) -> int:
    return word - _WORD if word >= _WORD >> 1 else word
