"""Randomness as an argument: the operating system's entropy, or an AES-CTR stream keyed by it.

>>> stream = AesCtrStream(bytes(32))
>>> stream(4).hex()
'dc95c078'
>>> stream.words(2).dtype
dtype('uint64')
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from fedsys.errors import MechanismError

__all__ = ["KEY_BYTES", "AesCtrStream", "Entropy"]

Entropy = Callable[[int], bytes]
"""``entropy(n)`` returns n unpredictable bytes; ``os.urandom`` is one."""

KEY_BYTES = 32
_ZEROS = memoryview(bytes(1 << 19))


class AesCtrStream:
    """The AES-256-CTR keystream: an ``Entropy`` expanded at about 5 GB/s from one 32-byte key.

    The counter starts at zero, so a key must never be used for two streams; ``from_entropy``
    draws a fresh one. A stream cannot be copied or pickled, and its repr reveals nothing.
    NIST SP 800-38A, section 6.5.

    Args:
        key: 32 bytes.

    Raises:
        MechanismError: the key has another length.
    """

    __slots__ = ("_update",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise MechanismError(
                f"an AES-CTR stream needs a key of {KEY_BYTES} bytes, got {len(key)}"
            )
        self._update = Cipher(AES256(key), CTR(bytes(16))).encryptor().update_into

    @classmethod
    def from_entropy(cls, entropy: Entropy) -> AesCtrStream:
        """A stream under a fresh key of 32 bytes, drawn from ``entropy`` in one call."""
        return cls(entropy(KEY_BYTES))

    def __repr__(self) -> str:
        return "AesCtrStream(<secret>)"

    def __reduce__(self) -> str:
        raise TypeError("an AES-CTR stream holds a secret and is never pickled")

    def __call__(self, count: int) -> bytes:
        """The next ``count`` bytes of the stream."""
        out = np.empty(count, dtype=np.uint8)
        self.fill(out)
        return out.tobytes()

    def fill(self, out: NDArray[Any]) -> None:
        """Overwrites a C-contiguous array with the next ``out.nbytes`` bytes of the stream."""
        if not out.size:
            return
        view = out.data.cast("B")
        step = len(_ZEROS)
        for start in range(0, len(view), step):
            block = view[start : start + step]
            self._update(_ZEROS[: len(block)], block)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next ``8 count`` bytes as little-endian 64-bit words (count,)."""
        out = np.empty(count, dtype="<u8")
        self.fill(out)
        return out
