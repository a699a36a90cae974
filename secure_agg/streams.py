"""From one draw of entropy to the keys of independent streams, and from a stream to field elements.

Everything that a dealer does is a function of 32 bytes, which a test can fix.
"""

from __future__ import annotations

import hashlib

import numpy as np

from secure_agg.digests import tag
from secure_agg.field import PRIME, Elements
from secure_agg.gaussian import Keystream

__all__ = ["derive", "uniform"]


def derive(seed: bytes, purpose: str) -> bytes:
    """Return a key of 32 bytes for one purpose of a 32-byte seed."""
    return hashlib.sha256(tag(purpose) + seed).digest()


def uniform(stream: Keystream, count: int) -> Elements:
    """Return ``count`` elements of the field, exactly uniform given a uniform stream.

    Rejection from 16 bits, of which 15 values in 65,536 are thrown away. How many are says nothing
    about those that stay.
    """
    parts: list[Elements] = []
    missing = count
    while missing:
        raw = np.frombuffer(stream.read(2 * missing), "<u2")
        kept = raw[raw < PRIME]
        parts.append(kept.astype(np.int64))
        missing -= len(kept)
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
