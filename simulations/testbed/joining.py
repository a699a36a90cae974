"""A device's enrolment without sockets: makes the calls of `client.enrollment.join` itself."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate

from client.identity import TlsKey
from fedsys.wire.token import JoinToken, enrollment_proof
from secure_agg import Identity
from server.home.enrollment import Enrolled, Registry
from server.home.pki import Peer

__all__ = ["Joined", "join"]


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What a device holds once it has joined.

    Attributes:
        token: The token that it joined with.
        key: The TLS key of its connection.
        identity: Its identity in the roster.
        enrolled: Its number, name and certificate.
    """

    token: JoinToken
    key: TlsKey
    identity: Identity
    enrolled: Enrolled


def join(registry: Registry, name: str) -> Joined:
    """Issue a token and enrol a device with it, under fresh keys."""
    token = registry.issue_token(name)
    credential = load_der_x509_certificate(token.certificate).public_bytes(Encoding.PEM)
    key, identity = TlsKey.generate(), Identity.generate()
    csr = key.csr
    enrolled = registry.enroll(
        Peer.of(credential),
        csr=csr,
        identity=identity.public_bytes,
        proof=identity.sign(enrollment_proof(token.certificate, csr)),
    )
    return Joined(token=token, key=key, identity=identity, enrolled=enrolled)
