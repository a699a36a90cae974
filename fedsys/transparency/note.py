"""Signed notes and verifier keys (https://c2sp.org/signed-note).

>>> key = VerifierKey.parse(
...     "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
>>> note = SignedNote.parse(
...     "This is an example message.\\n\\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXpp"
...     "zi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\\n".encode())
>>> note.is_signed_by(key)
True
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedsys.errors import FedsysError
from fedsys.printable import printable

__all__ = [
    "COSIGNATURE_V1",
    "ED25519",
    "MAX_NOTE_BYTES",
    "MAX_SIGNATURES",
    "NoteError",
    "NoteSignature",
    "SignedNote",
    "VerifierKey",
    "decimal",
    "decode_base64",
    "key_id",
    "require_name",
    "sign_note",
]

ED25519 = 0x01
"""Signature type of a key that signs a note's text as it is."""
COSIGNATURE_V1 = 0x04
"""Signature type of a witness's timestamped Ed25519 cosignature."""
MAX_NOTE_BYTES = 1 << 17
"""A longer note is refused unread; 16 post-quantum signatures fit."""
MAX_SIGNATURES = 64
"""A note with more is refused before any is verified."""

_DASH = "\N{EM DASH} "
_VKEY = re.compile(r"([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+={0,2})")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_MAX_NAME = 512


class NoteError(FedsysError):
    """A note, key, checkpoint, cosignature or proof that is malformed or does not verify."""


def decode_base64(text: str, what: str, *, strict: bool = True) -> bytes:
    """Standard base64 with padding.

    Args:
        text: the text, untrusted.
        what: what the text is, for the message.
        strict: whether the unused bits of the last character must be zero.

    Raises:
        NoteError: it is anything else.
    """
    try:
        found = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError:
        raise NoteError(f"{what} is not base64") from None
    if strict and base64.b64encode(found).decode("ascii") != text:
        raise NoteError(f"{what} is not canonical base64")
    return found


def decimal(text: str, what: str) -> int:
    """An ASCII decimal below 2^63 without leading zeros.

    Raises:
        NoteError: it is anything else.
    """
    if _NUMBER.fullmatch(text) is None or int(text) >= 1 << 63:
        raise NoteError(f"{what} is not a decimal number below 2^63 without leading zeros")
    return int(text)


def require_name(name: str) -> str:
    """Returns a valid key name, which is not empty and has neither spaces nor plus signs.

    Raises:
        NoteError: it is not a key name.
    """
    bad = not name or len(name) > _MAX_NAME or "+" in name or _CONTROL.search(name)
    if bad or any(each.isspace() for each in name):
        raise NoteError(
            f"{printable(name, 80)!r} is not a key name: expected 1 to {_MAX_NAME} characters "
            "without spaces and '+'"
        )
    return name


def key_id(name: str, algorithm: int, public: bytes) -> int:
    """SHA-256(name || 0x0A || signature type || public key)[:4], big-endian."""
    digest = hashlib.sha256(name.encode("utf-8") + b"\n" + bytes([algorithm]) + public)
    return int.from_bytes(digest.digest()[:4], "big")


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifierKey:
    """A "vkey": the name and public key under which signatures are verified.

    Attributes:
        name: the key's name.
        algorithm: `ED25519` or `COSIGNATURE_V1`.
        public: the public key, 32 bytes.
    """

    name: str
    algorithm: int
    public: bytes

    def __post_init__(self) -> None:
        require_name(self.name)
        if self.algorithm not in (ED25519, COSIGNATURE_V1):
            raise NoteError(
                f"key {printable(self.name, 80)} has signature type {self.algorithm}; known are "
                f"{ED25519} (Ed25519) and {COSIGNATURE_V1} (Ed25519 cosignature)"
            )
        if len(self.public) != 32:
            raise NoteError(f"key {printable(self.name, 80)} has {len(self.public)} bytes, not 32")

    @property
    def id(self) -> int:
        """The key id that its signatures carry besides its name."""
        return key_id(self.name, self.algorithm, self.public)

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Reads ``name+hash+key``.

        Raises:
            NoteError: it is not such a key, or of an unknown type.
        """
        found = _VKEY.fullmatch(text)
        if found is None:
            raise NoteError(
                f"{printable(text, 80)!r} is not a verifier key: expected name+hash+key"
            )
        raw = decode_base64(found[3], "a verifier key")
        key = cls(name=found[1], algorithm=raw[0] if raw else 0, public=raw[1:])
        if f"{key.id:08x}" != found[2]:
            raise NoteError(f"verifier key {printable(key.name, 80)}: its hash is another key's")
        return key

    def __str__(self) -> str:
        material = base64.b64encode(bytes([self.algorithm]) + self.public).decode("ascii")
        return f"{self.name}+{self.id:08x}+{material}"

    def holds(self, message: bytes, signature: bytes) -> bool:
        """Whether an Ed25519 signature over a message is this key's."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class NoteSignature:
    """One signature line.

    Attributes:
        name: the key's name.
        id: the key's id.
        value: what follows the id, at least one byte.
    """

    name: str
    id: int
    value: bytes

    @classmethod
    def parse(cls, line: str) -> NoteSignature:
        """Reads a line without its newline.

        Raises:
            NoteError: it is not a signature line.
        """
        name, space, text = line.removeprefix(_DASH).partition(" ")
        if not line.startswith(_DASH) or not space:
            raise NoteError("a note's signature line is not '— name base64'")
        raw = decode_base64(text, "a note's signature", strict=False)
        if len(raw) < 5:
            raise NoteError("a note's signature has no bytes after the key's id")
        return cls(name=require_name(name), id=int.from_bytes(raw[:4], "big"), value=raw[4:])

    def __str__(self) -> str:
        raw = self.id.to_bytes(4, "big") + self.value
        return f"{_DASH}{self.name} {base64.b64encode(raw).decode('ascii')}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedNote:
    """A text and signatures under it; reading it verifies no signature.

    Attributes:
        text: the signed text; ends in a newline.
        signatures: in order; those of unknown keys mean nothing.
    """

    text: str
    signatures: tuple[NoteSignature, ...]

    @classmethod
    def parse(cls, raw: bytes) -> SignedNote:
        """Reads a note.

        Raises:
            NoteError: it is malformed or too long.
        """
        if len(raw) > MAX_NOTE_BYTES:
            raise NoteError(f"a note of {len(raw)} bytes; at most {MAX_NOTE_BYTES} are read")
        try:
            content = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise NoteError("a note is not UTF-8") from None
        if _CONTROL.search(content):
            raise NoteError("a note has a control character")
        text, blank, rest = content.rpartition("\n\n")
        if not blank or not rest.endswith("\n"):
            raise NoteError("a note is not a text, an empty line and signature lines")
        lines = rest[:-1].split("\n")
        if len(lines) > MAX_SIGNATURES:
            raise NoteError(f"a note with {len(lines)} signatures; at most {MAX_SIGNATURES}")
        return cls(text=text + "\n", signatures=tuple(map(NoteSignature.parse, lines)))

    def encode(self) -> bytes:
        """The note's bytes."""
        lines = "".join(f"{each}\n" for each in self.signatures)
        return f"{self.text}\n{lines}".encode()

    def with_signatures(self, more: Iterable[NoteSignature]) -> SignedNote:
        """The same text with further signatures."""
        return SignedNote(text=self.text, signatures=(*self.signatures, *more))

    def signatures_of(self, key: VerifierKey) -> list[NoteSignature]:
        """The signatures that state a key's name and id, whether or not they verify."""
        wanted = key.id
        return [each for each in self.signatures if each.name == key.name and each.id == wanted]

    def is_signed_by(self, key: VerifierKey) -> bool:
        """Whether an Ed25519 key signed the text.

        Raises:
            NoteError: a signature states the key's name and id but does not verify.
        """
        if key.algorithm != ED25519:
            raise NoteError(f"key {key.name} cosigns; it does not sign notes")
        found = self.signatures_of(key)
        for each in found:
            if not key.holds(self.text.encode(), each.value):
                raise NoteError(f"the signature of {printable(key.name, 80)} does not verify")
        return bool(found)


def sign_note(text: str, *, name: str, key: Ed25519PrivateKey) -> NoteSignature:
    """An Ed25519 signature over a note's text.

    Args:
        text: the text; ends in a newline.
        name: the key's name.
        key: the signing key.
    """
    public = key.public_key().public_bytes_raw()
    return NoteSignature(
        name=require_name(name), id=key_id(name, ED25519, public), value=key.sign(text.encode())
    )
