"""A member's keys of one round: X25519 agreements, the keys derived from them, sealed shares.

Every key is derived by HKDF-SHA256 (RFC 5869) with the whole context in ``info``. One pair of
X25519 keys seals shares and is never revealed; the other makes masks, and is what the other
members reconstruct when its owner vanishes.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure_agg import checks
from secure_agg.digests import tag
from secure_agg.errors import ShareError
from secure_agg.prg import stream
from secure_agg.shared import Shared

__all__ = [
    "RoundSecrets",
    "agree",
    "commit_share",
    "derive_key",
    "pair_key",
    "public_of",
    "seal",
    "seed_hash",
    "self_mask_key",
    "unseal",
    "verifies",
]

SECRET_SIZE: Final = 32
OPENING_SIZE: Final = 32
HALF_SIZE: Final = SECRET_SIZE + OPENING_SIZE
PLAIN_SIZE: Final = 2 * HALF_SIZE
NONCE_SIZE: Final = 12
SEALED_SIZE: Final = NONCE_SIZE + PLAIN_SIZE + 16

_PRIME: Final = 2**255 - 19
_ORDER_8: Final = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
_LOW_ORDER: Final = frozenset((0, 1, _PRIME - 1, *_ORDER_8))
_EDGE: Final = struct.Struct("<II")
_SHARE_TAGS: Final = (tag("share of self-mask seed"), tag("share of mask key"))


def derive_key(secret: bytes, purpose: str, *context: bytes) -> bytes:
    """Return a key of 32 bytes; ``info`` is the purpose's tag and the context, whose length the
    purpose fixes."""
    return hkdf(secret, tag(purpose) + b"".join(context))


def hkdf(secret: bytes, info: bytes) -> bytes:
    """Return 32 bytes by HKDF-SHA256 without salt (RFC 5869)."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret)


class RoundSecrets:
    """All of a member's randomness in one round, expanded from 32 bytes.

    One seed makes every message of the round a function of what was received: a restarted member
    repeats its messages to the bit instead of drawing anew under a key already used.

    Args:
        seed: 32 bytes.

    Attributes:
        cipher: Private X25519 key under which shares are sealed.
        cipher_public: Its public key, 32 bytes.
        mask: Private X25519 key s of the pairwise masks, 32 bytes.
        mask_public: Its public key, 32 bytes.
        nonce: Of the graph, 32 bytes.
        self_seed: b, of the member's own mask, 32 bytes.
    """

    __slots__ = ("cipher", "cipher_public", "mask", "mask_public", "nonce", "seed", "self_seed")

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        raw = stream(derive_key(seed, "round secrets"), 4 * 32)
        self.cipher = X25519PrivateKey.from_private_bytes(raw[:32])
        self.mask = raw[32:64]
        self.nonce = raw[64:96]
        self.self_seed = raw[96:]
        self.cipher_public = self.cipher.public_key().public_bytes_raw()
        self.mask_public = public_of(self.mask)

    def shares_entropy(self, size: int) -> bytes:
        """Return the ``size`` bytes that sharing takes: one stream, asked for once."""
        return stream(derive_key(self.seed, "sharing"), size)


def public_of(private: bytes) -> bytes:
    """Return the X25519 public key of 32 private bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


@functools.lru_cache(maxsize=4096)
def _public_key(public: bytes) -> X25519PublicKey:
    return X25519PublicKey.from_public_bytes(public)


def is_low_order(public: bytes) -> bool:
    """Whether an X25519 public key lies in the small subgroup, in any encoding."""
    u = int.from_bytes(public, "little") & (2**255 - 1)
    return u % _PRIME in _LOW_ORDER


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """Return the X25519 secret (RFC 7748).

    Raises:
        LowOrderPoint: When the other's key is of low order, and the secret therefore zero.
    """
    try:
        secret = private.exchange(_public_key(public))
    except ValueError:  # OpenSSL's word for an all-zero secret
        secret = bytes(32)
    checks.contributory(secret)
    return secret


def pair_key(
    purpose: str,
    agreed: Callable[[], bytes],
    own: bytes,
    other: bytes,
    context: bytes,
    shared: Shared | None = None,
) -> bytes:
    """Return the key for ``purpose`` in ``context`` of the owners of two public keys.

    Args:
        purpose: What the key is for.
        agreed: Gives their X25519 secret, which the two public keys determine.
        own: One's public key.
        other: The other's.
        context: What else the key is bound to.
        shared: Where both owners live in one process, the key is derived once.

    Raises:
        LowOrderPoint: As ``agreed`` does.
    """
    pair = own + other if own < other else other + own

    def compute() -> bytes:
        return derive_key(agreed(), purpose, context, pair)

    return compute() if shared is None else shared.get((purpose, context, pair), compute)


def self_mask_key(seed: bytes, transcript: bytes) -> bytes:
    """Return the mask key of a member's own seed b, 32 bytes, bound to the round's transcript."""
    return derive_key(seed, "self mask", transcript)


def seed_hash(view: bytes, id_: int, seed: bytes) -> bytes:
    """Return H(b), 32 bytes, which the member signs and the reconstruction is compared to."""
    return hashlib.sha256(tag("self-mask seed") + view + id_.to_bytes(4, "little") + seed).digest()


def commit_share(kind: int, dealer: int, holder: int, half: bytes) -> bytes:
    """Return SHA-256(domain, from, to, share, opening).

    ``kind`` 0 is b's share, 1 is s's; ``half`` is the share and its opening, 64 bytes.
    """
    return hashlib.sha256(_SHARE_TAGS[kind] + _EDGE.pack(dealer, holder) + half).digest()


def associated_data(context: bytes, sender: int, receiver: int) -> bytes:
    """Return what a sealed share is bound to: what it was dealt in, from and to."""
    return context + sender.to_bytes(4, "little") + receiver.to_bytes(4, "little")


def seal(
    key: bytes, nonce: bytes, plain: bytes, context: bytes, sender: int, receiver: int
) -> bytes:
    """Encrypt with ChaCha20-Poly1305 (RFC 8439).

    Args:
        key: 32 bytes.
        nonce: 12 bytes, never twice under one key.
        plain: Any bytes.
        context: What it is bound to, beside the ids.
        sender: Id.
        receiver: Id.

    Returns:
        ``nonce || ciphertext || tag``, 28 bytes more than ``plain``.
    """
    ad = associated_data(context, sender, receiver)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, ad)


def unseal(key: bytes, sealed: bytes, context: bytes, sender: int, receiver: int) -> bytes:
    """Decrypt what `seal` made.

    Raises:
        ShareError: When anything differs from what was sealed.
    """
    ad = associated_data(context, sender, receiver)
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], ad)
    except InvalidTag:
        raise ShareError(f"the share from member {sender} does not authenticate") from None


def verifies(public: bytes, signature: bytes, message: bytes, shared: Shared | None = None) -> bool:
    """Whether an Ed25519 signature is valid (RFC 8032)."""

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
