"""Ed25519 verification (RFC 8032), shared between the virtual members of one process."""

from __future__ import annotations

import functools

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from secure_agg.shared import Shared

__all__ = ["SIGNATURE_SIZE", "verifies"]

SIGNATURE_SIZE = 64


def verifies(public: bytes, signature: bytes, message: bytes, shared: Shared | None = None) -> bool:
    """Whether a signature is valid under a public key of 32 bytes."""

    try:
        if shared is None:
            _verify(public, signature, message)
        else:
            shared.get((public, signature, message), lambda: _verify(public, signature, message))
    except (InvalidSignature, ValueError):
        return False
    return True


def _verify(public: bytes, signature: bytes, message: bytes) -> None:
    _key(public).verify(signature, message)


@functools.lru_cache(maxsize=4096)
def _key(public: bytes) -> Ed25519PublicKey:
    """A member signs its sealing key, its upload, its endorsement and its answer."""
    return Ed25519PublicKey.from_public_bytes(public)
