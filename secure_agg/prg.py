"""Masks: AES-256-CTR under a whole 256-bit key, expanded and added while still in cache.

A key is used for one vector and never again, so the counter starts at zero. The stream, read as
little-endian integers of the ring's type, is the mask (NIST SP 800-38A, section 6.5).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from secure_agg.ring import Vector

__all__ = ["add_masks", "stream"]

_BLOCK: Final = 1 << 17  # bytes: block, buffer and key schedule together stay in L2
_ZEROS: Final = memoryview(bytes(_BLOCK))
_COUNTER: Final = modes.CTR(bytes(16))


def _context(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES(key), _COUNTER).encryptor()


def stream(key: bytes, size: int) -> bytes:
    """Return the first ``size`` bytes of a 32 byte key's stream."""
    return _context(key).update(bytes(size))


def add_masks(
    total: Vector, plus: Sequence[bytes], minus: Sequence[bytes] = (), *, threads: int = 1
) -> None:
    """Add the masks of ``plus`` to ``total`` in place and subtract those of ``minus``.

    The sum wraps modulo the width of ``total``'s type; `Ring.reduce` finishes a narrower ring.

    Args:
        total: Contiguous vector of the ring's type, shape (length,), changed in place.
        plus: 32 byte keys.
        minus: 32 byte keys.
        threads: AES releases the interpreter lock, so that keys spread over threads; each
            thread beyond the first takes one more vector of memory.
    """
    if threads > 1 and len(plus) + len(minus) >= 2 * threads and total.nbytes >= _BLOCK:
        _add_threaded(total, plus, minus, threads)
        return
    added = [_context(key) for key in plus]
    subtracted = [_context(key) for key in minus]
    buffer = bytearray(min(_BLOCK, total.nbytes))
    view = memoryview(buffer)
    mask = np.frombuffer(buffer, total.dtype)
    step = _BLOCK // total.dtype.itemsize
    for start in range(0, len(total), step):
        block = total[start : start + step]
        if len(block) < len(mask):
            view, mask = view[: block.nbytes], mask[: len(block)]
        zeros = _ZEROS[: block.nbytes]
        for context in added:
            context.update_into(zeros, view)
            np.add(block, mask, out=block)
        for context in subtracted:
            context.update_into(zeros, view)
            np.subtract(block, mask, out=block)


def _add_threaded(
    total: Vector, plus: Sequence[bytes], minus: Sequence[bytes], threads: int
) -> None:
    partial = [np.zeros_like(total) for _ in range(threads - 1)]
    workers = [
        threading.Thread(
            target=add_masks, args=(out, plus[i::threads], minus[i::threads]), daemon=True
        )
        for i, out in enumerate(partial, start=1)
    ]
    for worker in workers:
        worker.start()
    add_masks(total, plus[::threads], minus[::threads])
    for worker, out in zip(workers, partial, strict=True):
        worker.join()
        np.add(total, out, out=total)
