"""Sealing shares: one X25519 agreement for each pair of dealer and committee member, or a hybrid.

A sealed share is ChaCha20-Poly1305 (RFC 8439) under a key that is used once: it is derived from the
agreed secrets and from everything that distinguishes this share from any other, by the one-step
key derivation of NIST SP 800-56C with SHA-256. A member that cannot use its share reveals that key,
and nothing else becomes readable. Suite 2 concatenates an ML-KEM-768 secret (FIPS 203) to the
X25519 secret, and hashes the encapsulation and both public keys with them: the key is secret while
one of the two problems is hard.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from secure_agg import checks
from secure_agg.digests import tag
from secure_agg.errors import ParameterError

__all__ = [
    "ENCAPSULATION_SIZE",
    "KEY_SIZE",
    "PRIVATE_SIZE",
    "PUBLIC_SIZE",
    "TAG_SIZE",
    "Opener",
    "Sealer",
    "is_encapsulation_key",
    "is_low_order",
    "public_of",
    "require_suite",
    "seal",
    "unseal",
]

KEY_SIZE: Final = 32
TAG_SIZE: Final = 16
PUBLIC_SIZE: Final = {1: 32, 2: 32 + 1184}
PRIVATE_SIZE: Final = {1: 32, 2: 32 + 64}
ENCAPSULATION_SIZE: Final = {1: 0, 2: 1088}
_ZERO: Final = bytes(32)
_NONCE: Final = bytes(12)  # every key seals one share
_COUNTER: Final = b"\0\0\0\1"
_DEALT: Final = struct.Struct("<II")
_SEAT: Final = struct.Struct("<I")

_PRIME: Final = 2**255 - 19
_ORDER_8: Final = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
_LOW_ORDER: Final = frozenset((0, 1, _PRIME - 1, *_ORDER_8))
_LOW_ENCODINGS: Final = frozenset(
    (value | high << 255).to_bytes(32, "little")
    for u in _LOW_ORDER
    for value in (u, u + _PRIME)
    for high in (0, 1)
    if value < 2**255
)
"""All that RFC 7748 decodes to them: its masks the highest bit, and reduces."""


def is_low_order(public: bytes) -> bool:
    """Whether an X25519 public key lies in the small subgroup, in any encoding."""
    return public[:32] in _LOW_ENCODINGS


def is_encapsulation_key(public: bytes) -> bool:
    """Whether bytes are an ML-KEM-768 key that passes the modulus check of FIPS 203, or empty."""
    try:
        return not public or bool(_mlkem(public))
    except ValueError:
        return False


@functools.cache
def _has_mlkem() -> bool:
    try:
        MLKEM768PrivateKey.from_seed_bytes(bytes(64))
    except UnsupportedAlgorithm:
        return False
    return True


def require_suite(suite: int) -> None:
    """Refuse a suite that this machine cannot compute.

    Raises:
        ParameterError: `cryptography` was built on a library without ML-KEM-768.
    """
    if suite == 2 and not _has_mlkem():
        raise ParameterError(
            "suite 'x25519-mlkem768' needs ML-KEM-768, which the library that the package "
            "'cryptography' was built on does not have: install its wheel from PyPI, or choose "
            "suite 'x25519'"
        )


def public_of(private: bytes, suite: int) -> bytes:
    """Return the public sealing key of a private one; PUBLIC_SIZE[suite] bytes."""
    public = X25519PrivateKey.from_private_bytes(private[:32]).public_key().public_bytes_raw()
    if suite == 2:
        kem = MLKEM768PrivateKey.from_seed_bytes(private[32:])
        public += kem.public_key().public_bytes_raw()
    return public


@functools.lru_cache(maxsize=4096)
def _x25519(public: bytes) -> X25519PublicKey:
    return X25519PublicKey.from_public_bytes(public)


@functools.lru_cache(maxsize=1024)
def _mlkem(public: bytes) -> MLKEM768PublicKey:
    return MLKEM768PublicKey.from_public_bytes(public)


def _agree(exchange: Callable[[X25519PublicKey], bytes], public: X25519PublicKey) -> bytes:
    """Return the X25519 secret (RFC 7748).

    Raises:
        LowOrderPoint: The public key is of low order, and the secret therefore zero.
    """
    try:
        secret = exchange(public)
    except ValueError:  # OpenSSL refuses an all-zero secret
        secret = _ZERO
    checks.contributory(secret)
    return secret


def _derive(secret: bytes, fixed: tuple[bytes, ...]) -> bytes:
    """NIST SP 800-56C, one step: H(counter || Z || FixedInfo), all parts of fixed length."""
    return hashlib.sha256(b"".join((_COUNTER, secret, *fixed))).digest()


class Sealer:
    """A dealer's ephemeral key of one upload.

    Args:
        private: 32 secret bytes, used for this upload alone.
        session: 32 bytes.
        dealer: The dealer's id.
        sequence: Number of its upload in the session.
    """

    __slots__ = ("_exchange", "_head", "_session", "public")

    def __init__(self, private: bytes, session: bytes, dealer: int, sequence: int) -> None:
        key = X25519PrivateKey.from_private_bytes(private)
        self.public = key.public_key().public_bytes_raw()
        self._exchange = key.exchange
        self._session = session
        self._head = tag("seal") + session + _DEALT.pack(dealer, sequence)

    def seal(
        self, positions: Sequence[int], publics: Sequence[bytes], shares: Sequence[bytes]
    ) -> tuple[list[bytes], list[bytes]]:
        """Seal the shares of committee members.

        One kind of work after the other for all of them is faster than one member after the other:
        a core keeps the code that it runs.

        Args:
            positions: The members'.
            publics: Their sealing keys, of suite 1 or 2 by their length.
            shares: To be encrypted.

        Returns:
            The keys, 32 bytes, each of which opens its share alone; and the sealed shares: in
            suite 2 the encapsulation, then what is encrypted.

        Raises:
            LowOrderPoint: A member's key is of low order.
        """
        points = [_x25519(public[:32]) for public in publics]
        try:
            secrets = list(map(self._exchange, points))
            if _ZERO in secrets:
                checks.contributory(_ZERO)
        except ValueError:  # a key of low order among them: which one it is, is found one by one
            secrets = [_agree(self._exchange, point) for point in points]
        heads = [b""] * len(secrets)
        for i, public in enumerate(publics):
            if len(public) > 32:
                second, heads[i] = _mlkem(public[32:]).encapsulate()
                secrets[i] += second
        keys = [
            _derive(secret, (self._head, _SEAT.pack(position), self.public, public, head))
            for secret, position, public, head in zip(
                secrets, positions, publics, heads, strict=True
            )
        ]
        sealed = [seal(key, share, self._session) for key, share in zip(keys, shares, strict=True)]
        if any(heads):
            sealed = [head + box for head, box in zip(heads, sealed, strict=True)]
        return keys, sealed

    def __repr__(self) -> str:
        return f"Sealer(public={self.public.hex()[:16]}...)"


class Opener:
    """A committee member's private sealing key in one session.

    Args:
        private: PRIVATE_SIZE[suite] secret bytes.
        suite: 1 or 2.
        session: 32 bytes.
        position: The member's, in the committee.
    """

    __slots__ = ("_exchange", "_kem", "_position", "_public", "_seat", "_start")

    def __init__(self, private: bytes, suite: int, session: bytes, position: int) -> None:
        key = X25519PrivateKey.from_private_bytes(private[:32])
        self._exchange = key.exchange
        self._public = key.public_key().public_bytes_raw()
        self._kem: MLKEM768PrivateKey | None = None
        if suite == 2:
            self._kem = MLKEM768PrivateKey.from_seed_bytes(private[32:])
            self._public += self._kem.public_key().public_bytes_raw()
        self._position = position
        self._start = tag("seal") + session
        self._seat = _SEAT.pack(position)

    def key(self, dealer: int, sequence: int, ephemeral: bytes, encapsulation: bytes) -> bytes:
        """Return the key of the share that a dealer's upload seals to this member.

        Raises:
            LowOrderPoint: The dealer's key is of low order.
        """
        secret = _agree(self._exchange, X25519PublicKey.from_public_bytes(ephemeral))
        if self._kem is not None:
            secret += self._kem.decapsulate(encapsulation)
        dealt = _DEALT.pack(dealer, sequence)
        return _derive(
            secret, (self._start, dealt, self._seat, ephemeral, self._public, encapsulation)
        )

    def __repr__(self) -> str:
        return f"Opener(position={self._position})"


def seal(key: bytes, plain: bytes, session: bytes) -> bytes:
    """Encrypt one share; TAG_SIZE bytes more than ``plain``."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, plain, session)


def unseal(key: bytes, sealed: bytes, session: bytes) -> bytes | None:
    """Decrypt what `seal` made, or return None when anything differs from what was sealed."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, session)
    except InvalidTag:
        return None
