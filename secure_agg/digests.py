"""Domain-separated SHA-256 (FIPS 180-4); PROTOCOL.md, section 3, lists what is hashed.

A digest is ``SHA-256(tag || len(p1) || p1 || len(p2) || p2 ...)``, each length eight bytes little
endian, so that no two lists of parts give the same input. ``tag`` is the SHA-256 of the suite and a
name, which keeps the uses apart. `secure_agg.keys` hashes parts of fixed length behind a tag.
"""

from __future__ import annotations

import functools
import hashlib

__all__ = ["SUITE", "digest", "tag"]

SUITE = b"fedsys/secure_agg/1 X25519 Ed25519 HKDF-SHA256 ChaCha20-Poly1305 AES-256-CTR GF(2^16)"
"""What a session runs, hashed into everything it signs."""


@functools.cache
def tag(name: str) -> bytes:
    """Return the 32 bytes that separate the uses called ``name``."""
    return hashlib.sha256(SUITE + b"|" + name.encode("ascii")).digest()


def digest(name: str, *parts: bytes) -> bytes:
    """Hash ``parts`` injectively under the domain ``name``; 32 bytes."""
    pieces = [tag(name)]
    for part in parts:
        pieces += (len(part).to_bytes(8, "little"), part)
    return hashlib.sha256(b"".join(pieces)).digest()
