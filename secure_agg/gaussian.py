"""Secrets and errors of the masks: the discrete Gaussian over the integers, sigma = 4.5.

Sampling inverts the cumulative distribution. A sample is determined by 80 uniform bits: 16 of a
first keystream are enough for all but about one sample in a thousand, whose interval holds a
threshold; those take the other 64 bits from a second keystream.

The thresholds are computed once, with 60 decimal digits, and truncated to 80 bits: the
distribution is within statistical distance 2^-73 of the discrete Gaussian (120 thresholds, each
off by less than 2^-80; values beyond 60 = 13.3 sigma have mass 2^-128). A ciphertext of 2^20
coefficients is within 2^-53 of one with ideal noise.

Cache timing. A table of 64 KiB is indexed by secret bits, so that the cache lines that are read
depend on the secret and on the errors. An attacker that runs on the same core or shares its cache
may observe some of this; over the network nothing is observable. A device that shares its
processor with untrusted code is outside what the package protects.

>>> Sampler(bytes(32)).sample(8).tolist()
[1, 0, -3, 0, -3, -6, 0, 0]
"""

from __future__ import annotations

import decimal
import functools
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_agg.hardness import SIGMA

__all__ = ["KEY_BYTES", "TAIL", "Keystream", "Sampler", "thresholds"]

KEY_BYTES: Final = 32
TAIL: Final = 60
"""No sample exceeds this absolute value, 13.3 sigma."""
_COARSE: Final = 16
_FINE: Final = 64
_FINE_BLOCK: Final = 1 << 64
_UNDECIDED: Final = 127
_ZEROS: Final = memoryview(bytes(1 << 18))


class Keystream:
    """The output of AES-256 in counter mode, read in order.

    Args:
        key: 32 bytes; fresh wherever the stream must be secret.
        block: Counter at which the stream starts, in blocks of 16 bytes.
    """

    __slots__ = ("_encryptor",)

    def __init__(self, key: bytes, block: int = 0) -> None:
        self._encryptor = Cipher(
            algorithms.AES256(key), modes.CTR(block.to_bytes(16, "big"))
        ).encryptor()

    def read(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        if count <= len(_ZEROS):
            return self._encryptor.update(_ZEROS[:count])
        return self._encryptor.update(bytes(count))

    def fill(self, buffer: memoryview, count: int) -> None:
        """Write the next ``count`` bytes to the start of a buffer, which is longer by 15 bytes."""
        zeros = _ZEROS[:count] if count <= len(_ZEROS) else bytes(count)
        self._encryptor.update_into(zeros, buffer[: count + 15])


class Sampler:
    """Independent samples, determined by a key.

    Args:
        key: 32 fresh bytes. The bits that are needed by one sample in a thousand come from the
            same keystream, 2^64 blocks further on.
    """

    __slots__ = ("_coarse", "_fine")

    def __init__(self, key: bytes) -> None:
        self._coarse = Keystream(key)
        self._fine = Keystream(key, _FINE_BLOCK)

    def sample(self, count: int) -> npt.NDArray[np.int8]:
        """Return the next ``count`` samples, (count,)."""
        out = np.empty(count, np.int8)
        self.fill(out, np.empty(2 * count + 15, np.uint8), np.empty(count, np.int64))
        return out

    def fill(
        self, out: npt.NDArray[np.int8], words: npt.NDArray[np.uint8], places: npt.NDArray[np.int64]
    ) -> None:
        """Write the next samples to ``out``, (count,).

        Args:
            out: Where they go.
            words: Scratch of at least ``2 count + 15`` bytes.
            places: Scratch of at least ``count``.
        """
        table, high, low = _tables()
        count = out.size
        self._coarse.fill(words.data, 2 * count)
        bits, places = words[: 2 * count].view("<u2"), places[:count]
        places[...] = bits
        np.take(table, places, out=out, mode="clip")  # all are within; "raise" would copy the table
        undecided = np.flatnonzero(out == _UNDECIDED)
        if undecided.size:
            u = bits[undecided, None]
            v = np.frombuffer(self._fine.read(8 * undecided.size), "<u8")[:, None]
            reached = (high < u) | ((high == u) & (low <= v))
            out[undecided] = reached.sum(axis=1) - TAIL


@functools.cache
def thresholds() -> tuple[int, ...]:
    """Return ``floor(2^80 P[X <= v])`` for v from -60 to 59.

    A sample is -60 plus the number of thresholds that its 80 bits reach.
    """
    with decimal.localcontext() as context:
        context.prec = 60
        denominator = 2 * decimal.Decimal(SIGMA) ** 2
        half = [(-decimal.Decimal(v * v) / denominator).exp() for v in range(TAIL + 1)]
        weights = half[:0:-1] + half
        total = sum(weights)
        below = decimal.Decimal(0)
        result = []
        for weight in weights[:-1]:
            below += weight
            result.append(int(below / total * 2 ** (_COARSE + _FINE)))
    return tuple(result)


@functools.cache
def _tables() -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint16], npt.NDArray[np.uint64]]:
    """Return the samples by 16 bits, and the thresholds' high 16 and low 64 bits."""
    bounds = thresholds()
    high = np.array([t >> _FINE for t in bounds], np.uint16)
    low = np.array([t & ((1 << _FINE) - 1) for t in bounds], np.uint64)
    within = np.bincount(high, minlength=1 << _COARSE)  # thresholds in an interval of 16 bits
    table = (np.cumsum(within) - TAIL).astype(np.int8)
    table[within > 0] = _UNDECIDED
    table.flags.writeable = False
    return table, high, low
