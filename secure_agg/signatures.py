"""Ed25519 verification (RFC 8032), shared between the virtual members of one process."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from secure_agg.shared import Shared

__all__ = ["SIGNATURE_SIZE", "verifies"]

SIGNATURE_SIZE = 64


def verifies(public: bytes, signature: bytes, message: bytes, shared: Shared | None = None) -> bool:
    """Whether a signature is valid under a public key of 32 bytes."""

    def verify() -> None:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)

    try:
        if shared is None:
            verify()
        else:
            shared.get((public, signature, message), verify)
    except (InvalidSignature, ValueError):
        return False
    return True
