"""Key-additive encryption of integer vectors: ciphertexts add up, and so do their keys.

A dealer with secret ring element s encrypts its vector x as

    c = round(a s + e + 2^delta pack(x))    in Z_q[X] / (X^2048 + 1),  q = 2^log_q,

with a public a, fresh s and e from the discrete Gaussian with sigma 4.5 (`secure_agg.gaussian`),
and the low ``dropped_bits`` rounded away. The sum of the ciphertexts decrypts under the sum of the
secrets, and under nothing less.

**Why it hides.** Without rounding c is an RLWE sample plus the message. RLWE with a modulus of any
shape, hence a power of two, is no easier than worst-case problems in ideal lattices (Peikert,
Regev and Stephens-Davidowitz, STOC 2017, for any ring and modulus; the theorem asks for a wider
error than 4.5, so that, as in every practical scheme, the concrete parameters rest on the
estimate in `secure_agg.hardness`). What the sum reveals, ``sum s`` and ``sum e``, is for any two
honest dealers a hint on each one's secret and error; Hint-RLWE with Gaussian hints is as hard as
RLWE with the smaller deviation ``4.5 / sqrt(2) = 3.18`` (Kim, Lee, Seo and Song, CRYPTO 2023). The
step from their hints to ours, sums with another dealer's secret and error, is ours, and so is the
hybrid over dealers; PROTOCOL.md writes both out. Rounding is computed from c alone.

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

A limb has ``|a| <= 2^(w-1) sqrt(N)``. A dealer's secret has ``|s| <= 60 sqrt(N)``, and the bound is
0.38. A sum of secrets may be larger: `_Secret` computes its norm and, where the bound reaches 1/2,
splits it at 2^7 as well; limbs of at most 64 give a bound of 0.41. Nothing rests on the typical
size of errors, which is a thousand times smaller.

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
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from secure_agg.errors import InputError, MessageError, ResidualError
from secure_agg.gaussian import KEY_BYTES, TAIL, Keystream, Sampler
from secure_agg.params import RING_DEGREE, SIGMA, SecAggParams

__all__ = [
    "SECRET_SIGMAS",
    "Accumulator",
    "PackedSum",
    "PublicPolynomials",
    "encrypt",
    "packed_sum",
    "sample_secret",
    "secret_limit",
    "to_ring",
]

Complex: TypeAlias = npt.NDArray[np.complex128]
Ints: TypeAlias = npt.NDArray[np.int64]
Unsigned: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]

SECRET_SIGMAS: Final = 12.0
"""A sum of honest secrets exceeds this many standard deviations with chance below 2^-90."""
_HALF: Final = RING_DEGREE // 2
_BLOCK: Final = 8
"""Polynomials handled together: what a pass touches, 0.5 MiB, stays in a core's cache."""
_WORD: Final = 1 << 64
_SECRET_SPLIT: Final = 7
_SECRET_MAX: Final = 1 << 13
_MAGIC: Final = 1.5 * 2.0**52
"""Added to a double of magnitude below 2^51, leaves the nearest integer in its low bits."""
_MAGIC_BITS: Final = 0x4338 << 48

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


_RELATIVE_ERROR: Final = _relative_error()


def _transform(z: Complex) -> None:
    """Replace ring elements, (..., H) as complex numbers, by their transforms."""
    z *= _TWIST
    np.fft.fft(z, out=z)


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

    def blocks(self) -> Iterator[tuple[int, Complex, Complex]]:
        """Yield index of the first polynomial and transforms of the low and the high limbs.

        Each is (polynomials, 1024). Without cache the arrays are overwritten by the next block.
        """
        if self._cached:
            if self._cache is None:
                self._cache = [(i, a.copy(), b.copy()) for i, a, b in self._expand()]
            yield from self._cache
        else:
            yield from self._expand()

    def limbs(self) -> Iterator[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        """Yield index of the first polynomial, and low and high limbs, (polynomials, 2048).

        ``a = low + 2^limb_bits high`` modulo q; both are uniform and centred. Polynomial i takes
        bytes ``16384 i`` to ``16384 (i + 1)`` of the keystream: 2,048 little-endian words of 32
        bits for the low limbs, then as many for the high ones, of which each takes the most
        significant ``limb_bits`` as a two's complement number.
        """
        stream = Keystream(self._seed)
        total = self.params.polynomials
        for start in range(0, total, _BLOCK):
            count = min(_BLOCK, total - start)
            words = np.frombuffer(bytearray(stream.read(8 * count * RING_DEGREE)), "<i4")
            words >>= 32 - self.limb_bits  # keeps the high bits, with their sign
            both = words.reshape(count, 2, RING_DEGREE)
            yield start, both[:, 0], both[:, 1]

    def _expand(self) -> Iterator[tuple[int, Complex, Complex]]:
        scratch = np.empty((2, min(_BLOCK, self.params.polynomials), _HALF), np.complex128)
        for start, *limbs in self.limbs():
            z = scratch[:, : len(limbs[0])]
            for transformed, limb in zip(z, limbs, strict=True):
                transformed.view(np.float64)[...] = limb
                _transform(transformed)
            yield start, z[0], z[1]


class _Secret:
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
        norm = math.sqrt(float(s.astype(np.float64) @ s.astype(np.float64)))
        a_norm = 2.0 ** (limb_bits - 1) * math.sqrt(RING_DEGREE)
        if norm * a_norm * _RELATIVE_ERROR < 0.5:
            parts = [(0, s)]
        else:
            low = ((s + (1 << (_SECRET_SPLIT - 1))) & ((1 << _SECRET_SPLIT) - 1)) - (
                1 << (_SECRET_SPLIT - 1)
            )
            parts = [(0, low), (_SECRET_SPLIT, (s - low) >> _SECRET_SPLIT)]
        self.limbs: list[tuple[int, Complex]] = []
        for shift, part in parts:
            z = part.astype(np.float64).view(np.complex128)
            _transform(z)
            self.limbs.append((shift, z))
        self.limb_bits = limb_bits
        # What `_MAGIC_BITS` contribute to the sum that `times` returns.
        self.excess = sum(
            _MAGIC_BITS << (shift + high) for shift, _ in parts for high in (0, limb_bits)
        )

    def times(self, low: Complex, high: Complex, z: Complex, out: Ints) -> None:
        """Write ``a s + excess`` modulo 2^64 to ``out``, (polynomials, 2048).

        Args:
            low, high: Transforms of a's limbs, (polynomials, 1024).
            z: Scratch of the same shape.
            out: Where the result goes.
        """
        bits = z.view(np.int64)
        first = True
        for base, limb in ((self.limb_bits, high), (0, low)):
            for shift, secret in self.limbs:
                np.multiply(limb, secret, out=z)
                np.fft.ifft(z, out=z)
                z *= _UNTWIST
                z += _MAGIC * (1 + 1j)
                if base + shift and not first:
                    bits <<= base + shift
                if first:
                    np.left_shift(bits, base + shift, out=out)
                else:
                    out += bits
                first = False


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

    Returns:
        The ciphertext, planes in order: for every coefficient its low 32 bits, then its next 16
        or 8, little-endian; empty when ``out`` is given.

    Raises:
        InputError: The vector, the secret or ``out`` does not have its shape or type.
    """
    params = public.params
    _check_vector(vector, params)
    if len(noise_key) != KEY_BYTES:
        raise InputError(f"the noise key has {len(noise_key)} bytes: {KEY_BYTES} are needed")
    if int(np.abs(secret).max(initial=0)) > TAIL:
        raise InputError(f"a secret has a coefficient above {TAIL}")
    buffer = bytearray(params.ciphertext_bytes) if out is None else out
    if len(buffer) != params.ciphertext_bytes:
        raise InputError(
            f"out has {len(buffer)} bytes: a ciphertext takes {params.ciphertext_bytes}"
        )
    planes = _planes(buffer, params)
    multiplier = _Secret(secret, public.limb_bits)
    noise = Sampler(noise_key)
    half = 1 << (params.dropped_bits - 1) if params.dropped_bits else 0
    constant = np.uint64((half - multiplier.excess) % _WORD)
    modulus = np.uint64((1 << params.log_q) - 1)
    scratch, product = _scratch(params)
    for start, low, high in public.blocks():
        f = product[: len(low)]
        multiplier.times(low, high, scratch[: len(low)], f)
        flat = f.reshape(-1)
        flat += noise.sample(flat.size)
        at = start * RING_DEGREE
        for j in range(params.values_per_coefficient):
            values = _digit(vector, j, at, flat.size, params)
            if values.size:
                x = values.astype(np.uint64).view(np.int64)
                x <<= 64 - params.modulus_bits
                x >>= 64 - params.modulus_bits * (j + 1) - params.scale_bits
                flat[: x.size] += x
        u = flat.view(np.uint64)
        u += constant
        u &= modulus
        u >>= np.uint64(params.dropped_bits)
        for index, plane in enumerate(planes):
            plane[at : at + u.size] = u
            if index + 1 < len(planes):
                u >>= np.uint64(8 * plane.itemsize)
    return bytes(buffer) if out is None else b""


class Accumulator:
    """The running sum of ciphertexts, as large as one of them."""

    def __init__(self, params: SecAggParams) -> None:
        self.params = params
        self._sum = _planes(bytearray(params.ciphertext_bytes), params)

    def add(self, ciphertext: bytes | bytearray | memoryview) -> None:
        """Add a ciphertext to the sum.

        Raises:
            MessageError: It does not have ``params.ciphertext_bytes`` bytes.
        """
        for total, term in self._blocks(ciphertext):
            carry: npt.NDArray[np.bool_] | None = None
            for index, (t, x) in enumerate(zip(total, term, strict=True)):
                t += x
                overflow = t < x if index + 1 < len(total) else None
                if carry is not None:
                    t += carry
                    if overflow is not None:
                        overflow |= carry & (t == 0)
                carry = overflow

    def subtract(self, ciphertext: bytes | bytearray | memoryview) -> None:
        """Take out a ciphertext that was added.

        Raises:
            MessageError: It does not have ``params.ciphertext_bytes`` bytes.
        """
        for total, term in self._blocks(ciphertext):
            borrow: npt.NDArray[np.bool_] | None = None
            for index, (t, x) in enumerate(zip(total, term, strict=True)):
                underflow = t < x if index + 1 < len(total) else None
                t -= x
                if borrow is not None:
                    if underflow is not None:
                        underflow |= borrow & (t == 0)
                    t -= borrow
                borrow = underflow

    def _blocks(
        self, ciphertext: bytes | bytearray | memoryview
    ) -> Iterator[tuple[list[Any], list[Any]]]:
        """Yield matching pieces of the planes of the sum and of a ciphertext, low first."""
        if len(ciphertext) != self.params.ciphertext_bytes:
            raise MessageError(
                f"a ciphertext has {len(ciphertext)} bytes, expected {self.params.ciphertext_bytes}"
            )
        planes = _planes(ciphertext, self.params)
        step = 16 * RING_DEGREE
        for start in range(0, self.params.coefficients, step):
            piece = slice(start, start + step)
            yield [plane[piece] for plane in self._sum], [plane[piece] for plane in planes]

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
        below 2^-80, and the second below 2^-40 (2^-64 a coefficient; see
        `SecAggParams.noise_limit`; the root mean square of 2,048 or more coefficients exceeds 1.25
        of its expectation with chance below 2^-128).

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
        if largest > limit:
            raise ResidualError(
                f"the sum of {count} secrets has a coefficient above {limit:.0f}: the shares do "
                "not add up to honest secrets"
            )
        multiplier = _Secret(secret_sum, public.limb_bits)
        # Half-up rounding errs by 1/2 on average, and noise is centred in its field.
        centre = (1 << (params.scale_bits - 1)) - (count // 2 if params.dropped_bits else 0)
        constant = np.int64(_signed((centre + multiplier.excess) % _WORD))
        result = np.empty(params.dimension, np.int64)
        squares, worst = 0.0, 0
        scratch, product = _scratch(params)
        for start, low, high in public.blocks():
            f = product[: len(low)]
            multiplier.times(low, high, scratch[: len(low)], f)
            at = start * RING_DEGREE
            v = self._combined(at, f.size)
            v <<= params.dropped_bits
            v -= f.reshape(-1)
            v += constant
            noise = v & ((1 << params.scale_bits) - 1)
            noise -= 1 << (params.scale_bits - 1)
            worst = max(worst, int(noise.max()), -int(noise.min()))
            real = noise.astype(np.float64)
            squares += float(real @ real)
            # The values lie above the noise, modulo q.
            v <<= 64 - params.log_q
            v >>= 64 - params.log_q + params.scale_bits
            _unpack(v, result, at, params)
        _check_residual(params, count, worst, math.sqrt(squares / params.coefficients))
        return result

    def _combined(self, at: int, size: int) -> Ints:
        """Return the coefficients of the sum from their planes."""
        v = np.zeros(size, np.int64)
        shift = 0
        for plane in self._sum:
            v |= plane[at : at + size].astype(np.int64) << shift
            shift += 8 * plane.itemsize
        return v


def _check_residual(params: SecAggParams, count: int, worst: int, rms: float) -> None:
    sigma = params.noise_sigma(count)
    if rms > 1.25 * sigma + 1 or worst > params.noise_limit(count) + 1:
        raise ResidualError(
            f"the noise of {count} ciphertexts has root mean square {rms:.0f} and maximum {worst}, "
            f"expected {sigma:.0f} and at most {params.noise_limit(count):.0f}: a ciphertext does "
            "not match its shares"
        )


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
        _check_vector(vector, self.params)
        step = 16 * RING_DEGREE
        for start in range(0, self.params.dimension, step):
            x = vector[start : start + step].astype(np.uint64).view(np.int64)
            x <<= 64 - self.params.modulus_bits
            x >>= 64 - self.params.modulus_bits
            self.sums[start : start + step] += x

    def total(self) -> Ints:
        """Return the centred sums, (dimension,) int64, as `Accumulator.open` does."""
        params = self.params
        result = self.sums.copy()
        carry: Ints | None = None
        for j in range(params.values_per_coefficient):
            digit = _digit(result, j, 0, params.coefficients, params)
            if carry is not None:
                digit += carry[: digit.size]
            carry = _wrap(digit, params.modulus_bits)
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


def _unpack(v: Ints, result: Ints, at: int, params: SecAggParams) -> None:
    """Write the digits of the coefficients from ``at`` on to their places in ``result``."""
    bits = params.modulus_bits
    for j in range(params.values_per_coefficient):
        place = _digit(result, j, at, v.size, params)
        above = _wrap(v, bits)
        place[...] = v[: place.size]
        v = above


def _digit(
    vector: npt.NDArray[Any], j: int, at: int, size: int, params: SecAggParams
) -> npt.NDArray[Any]:
    """Return the view of the values that are digit j of the coefficients at to at + size."""
    start = j * params.coefficients_used
    end = min(start + params.coefficients_used, params.dimension)
    return vector[min(start + at, end) : min(start + at + size, end)]


def _planes(buffer: bytes | bytearray | memoryview, params: SecAggParams) -> list[npt.NDArray[Any]]:
    """Return views of a ciphertext's planes, each (coefficients,)."""
    planes = []
    offset = 0
    for size in params.planes:
        planes.append(np.frombuffer(buffer, f"<u{size}", params.coefficients, offset))
        offset += size * params.coefficients
    return planes


def _scratch(params: SecAggParams) -> tuple[Complex, Ints]:
    block = min(_BLOCK, params.polynomials)
    return np.empty((block, _HALF), np.complex128), np.empty((block, RING_DEGREE), np.int64)


def _signed(word: int) -> int:
    return word - _WORD if word >= _WORD >> 1 else word


def _check_vector(vector: Unsigned, params: SecAggParams) -> None:
    if not isinstance(vector, np.ndarray) or vector.dtype.kind != "u":
        kind = vector.dtype if isinstance(vector, np.ndarray) else type(vector).__name__
        raise InputError(f"a vector is {kind}: an array of unsigned integers is needed")
    if vector.shape != (params.dimension,):
        raise InputError(f"a vector has shape {vector.shape}: ({params.dimension},) is needed")
