"""The token with which one device can join once, and the proof that it holds its identity."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from fedsys.errors import ConfigError
from fedsys.wire import fleet_pb2

__all__ = ["JoinToken", "enrollment_proof"]

_PREFIX = "fedsys1."
_MAX = 16_384


def enrollment_proof(credential: bytes, csr: bytes) -> bytes:
    """What a device's identity signs to bind itself to a certificate request.

    Args:
        credential: DER certificate that authenticates the request.
        csr: DER certificate request.
    """
    return (
        b"fedsys enrollment v1\x00"
        + hashlib.sha256(credential).digest()
        + hashlib.sha256(csr).digest()
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class JoinToken:
    """A one-time invitation; until it is used, anyone who holds it can join in the device's place.

    Attributes:
        ca: DER certificate of the coordinator's authority.
        certificate: DER enrol-only client certificate.
        private_key: its 32 byte P-256 scalar.
        roster_key: Ed25519 key of the roster's authority.
    """

    ca: bytes
    certificate: bytes
    private_key: bytes
    roster_key: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate, for comparison by eye."""
        return hashlib.sha256(self.ca).hexdigest()

    def encode(self) -> str:
        """The token as one word of text."""
        message = fleet_pb2.JoinToken(
            ca=self.ca,
            certificate=self.certificate,
            private_key=self.private_key,
            roster_key=self.roster_key,
            checksum=self._checksum(),
        )
        return _PREFIX + base64.urlsafe_b64encode(message.SerializeToString()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> JoinToken:
        """The token that `encode` wrote.

        Raises:
            ConfigError: the text is not a complete token.
        """
        text = text.strip()
        wrong = ConfigError(
            "the token is damaged or incomplete: give the whole line that `fedsys coordinator "
            "enroll` printed"
        )
        if not text.startswith(_PREFIX) or len(text) > _MAX:
            raise wrong
        body = text.removeprefix(_PREFIX)
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            message = fleet_pb2.JoinToken.FromString(raw)
        except (binascii.Error, ValueError, DecodeError):
            raise wrong from None
        token = cls(
            ca=message.ca,
            certificate=message.certificate,
            private_key=message.private_key,
            roster_key=message.roster_key,
        )
        if message.checksum != token._checksum():
            raise wrong
        return token

    def __repr__(self) -> str:
        return f"JoinToken(ca={self.fingerprint[:16]}...)"

    def _checksum(self) -> bytes:
        state = hashlib.sha256()
        for part in (self.ca, self.certificate, self.private_key, self.roster_key):
            state.update(len(part).to_bytes(4, "big") + part)
        return state.digest()[:4]
