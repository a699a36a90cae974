"""Domain-separated SHA-256 (FIPS 180-4); PROTOCOL.md, section 3, lists what is hashed.

A digest is ``SHA-256(tag || len(p1) || p1 || len(p2) || p2 ...)``, each length eight bytes little
endian, so that no two lists of parts give the same input. ``tag`` is the SHA-256 of the suite and a
name, which keeps the uses apart.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from typing import Final

__all__ = ["SUITES", "digest", "tag"]

_SIZE: Final = struct.Struct("<Q")
PROTOCOL: Final = b"fedsys/secure_agg/2"
SUITES: Final = {
    1: b"X25519 Ed25519 ChaCha20-Poly1305 SHA-256 AES-256-CTR F65521 RLWE-2048",
    2: b"X25519 ML-KEM-768 Ed25519 ChaCha20-Poly1305 SHA-256 AES-256-CTR F65521 RLWE-2048",
}
"""What a session of each suite runs, hashed into its session."""


@functools.cache
def tag(name: str) -> bytes:
    """Return the 32 bytes that separate the uses called ``name``."""
    return hashlib.sha256(PROTOCOL + b"|" + name.encode("ascii")).digest()


def digest(name: str, *parts: bytes) -> bytes:
    """Hash ``parts`` injectively under the domain ``name``; 32 bytes."""
    pieces = [tag(name)]
    for part in parts:
        pieces += (_SIZE.pack(len(part)), part)
    return hashlib.sha256(b"".join(pieces)).digest()
