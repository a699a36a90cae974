"""The coordinator's certificate authority: P-256, because gRPC rejects Ed25519 certificates.

A certificate's alternative name states what it may do: ``fedsys://agent/7`` opens sessions as
node 7, ``fedsys://enrol`` requests one certificate and nothing else.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsys.durable import write_atomically
from fedsys.errors import ConfigError, ProtocolError
from fedsys.secret_files import read_secret, write_secret

__all__ = [
    "AGENT_DAYS",
    "Authority",
    "Peer",
    "ServerIdentity",
    "alternative_names",
    "default_hosts",
    "pem",
]

CA_DAYS = 3650
SERVER_DAYS = 365
AGENT_DAYS = 90
_BACKDATE = dt.timedelta(minutes=5)
"""Certificates are backdated, because devices' clocks are not exact."""
_AGENT = "fedsys://agent/"
_ENROL = "fedsys://enrol"
_DNS = re.compile(r"(?:\*\.)?(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The holder of a client certificate.

    Attributes:
        role: What the certificate allows.
        node: The agent's node id; -1 for an enrol-only credential.
        serial: Serial number, as hex.
        expires: End of the certificate's validity.
        der: The certificate, as DER.
        issued: When an agent's certificate was issued.
    """

    role: Literal["agent", "enrol"]
    node: int
    serial: str
    expires: dt.datetime
    der: bytes
    issued: dt.datetime | None = None

    @classmethod
    def of(cls, certificate: bytes) -> Peer:
        """Read a client certificate (PEM) that TLS has verified against our authority.

        Raises:
            ProtocolError: The certificate has no fedsys name.
        """
        try:
            found = x509.load_pem_x509_certificate(certificate)
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except (ValueError, x509.ExtensionNotFound):
            raise ProtocolError("a client certificate without a fedsys name") from None
        expires, serial = found.not_valid_after_utc, format(found.serial_number, "x")
        der = found.public_bytes(serialization.Encoding.DER)
        if uris == [_ENROL]:
            return cls(role="enrol", node=-1, serial=serial, expires=expires, der=der)
        if len(uris) == 1 and uris[0].startswith(_AGENT):
            number = uris[0].removeprefix(_AGENT)
            if number.isascii() and number.isdecimal():
                return cls(
                    role="agent",
                    node=int(number),
                    serial=serial,
                    expires=expires,
                    der=der,
                    issued=found.not_valid_before_utc + _BACKDATE,
                )
        raise ProtocolError("a client certificate without a fedsys name")


@dataclass(frozen=True, kw_only=True, repr=False)
class ServerIdentity:
    """Key and certificate that the devices' port presents, as PEM."""

    private_key: bytes
    certificate: bytes

    @property
    def fits(self) -> bool:
        """Whether the key matches the certificate."""
        try:
            key = serialization.load_pem_private_key(self.private_key, None)
            return key.public_key() == x509.load_pem_x509_certificate(self.certificate).public_key()
        except ValueError:
            return False


class Authority:
    """Issues and reads certificates; its key stays in the coordinator's folder, mode 0600."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    def __repr__(self) -> str:
        return f"Authority(fingerprint={self.fingerprint[:16]}...)"

    @classmethod
    def create(cls, folder: Path, *, now: dt.datetime | None = None) -> Authority:
        """A new authority, stored as ``ca.key`` and ``ca.pem`` in `folder`."""
        key, start = ec.generate_private_key(ec.SECP256R1()), now or _now()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedsys coordinator authority")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - _BACKDATE)
            .not_valid_after(start + dt.timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        write_secret(folder / "ca.key", _private_pem(key))
        write_atomically(folder / "ca.pem", pem(certificate))
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Load the authority that `create` stored.

        Raises:
            ConfigError: There is none, or others can read its key.
        """
        secret = read_secret(folder / "ca.key")
        try:
            key = serialization.load_pem_private_key(secret, None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        except (OSError, ValueError):
            raise ConfigError(
                f"{folder}: no usable authority here (ca.key, ca.pem); every device trusts that "
                f"one: restore both files from a backup of this folder"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{folder / 'ca.key'}: not a P-256 key")
        return cls(key, certificate)

    @property
    def der(self) -> bytes:
        """The authority's own certificate, as DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate, as hex."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def issue_server(
        self, hosts: Sequence[str], *, now: dt.datetime | None = None
    ) -> ServerIdentity:
        """A fresh key and certificate for the devices' port under these names."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(
            key.public_key(),
            "fedsys coordinator",
            alternative_names(hosts),
            ExtendedKeyUsageOID.SERVER_AUTH,
            now or _now(),
            dt.timedelta(days=SERVER_DAYS),
        )
        return ServerIdentity(private_key=_private_pem(key), certificate=pem(certificate))

    def issue_credential(
        self, *, lifetime: dt.timedelta, now: dt.datetime | None = None
    ) -> tuple[x509.Certificate, bytes]:
        """An enrol-only client certificate and its 32-byte private scalar."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(
            key.public_key(),
            "fedsys enrolment",
            [x509.UniformResourceIdentifier(_ENROL)],
            ExtendedKeyUsageOID.CLIENT_AUTH,
            now or _now(),
            lifetime,
        )
        return certificate, key.private_numbers().private_value.to_bytes(32, "big")

    def issue_agent(
        self,
        csr: bytes,
        *,
        node: int,
        lifetime: dt.timedelta = dt.timedelta(days=AGENT_DAYS),
        now: dt.datetime | None = None,
    ) -> x509.Certificate:
        """A certificate for the key in a request (DER); nothing else in the request is used.

        Raises:
            ProtocolError: The request is damaged, not self-signed, or not for a P-256 key.
        """
        if len(csr) > 8192:
            raise ProtocolError("a certificate request of more than 8 KiB")
        try:
            request = x509.load_der_x509_csr(csr)
            valid, public = request.is_signature_valid, request.public_key()
        except (ValueError, InvalidSignature):
            raise ProtocolError("a certificate request that does not read") from None
        if (
            not valid
            or not isinstance(public, ec.EllipticCurvePublicKey)
            or not isinstance(public.curve, ec.SECP256R1)
        ):
            raise ProtocolError("a certificate request without a P-256 key that signed it")
        return self._issue(
            public,
            f"node {node}",
            [x509.UniformResourceIdentifier(f"{_AGENT}{node}")],
            ExtendedKeyUsageOID.CLIENT_AUTH,
            now or _now(),
            lifetime,
        )

    def _issue(
        self,
        public: ec.EllipticCurvePublicKey,
        name: str,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        start: dt.datetime,
        lifetime: dt.timedelta,
    ) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start - _BACKDATE)
            .not_valid_after(start + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False
            )
            .sign(self._key, hashes.SHA256())
        )


def default_hosts() -> list[str]:
    """localhost, its addresses and this host's name, where that is valid in a certificate."""
    own = socket.gethostname()
    names = ["localhost", "127.0.0.1", "::1", *([own] if _DNS.fullmatch(own) else [])]
    return list(dict.fromkeys(names))


def alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """These names and addresses as the alternative names of a server certificate.

    Raises:
        ConfigError: One is neither a host name nor an address.
    """
    return [_host(name) for name in hosts]


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        if _DNS.fullmatch(name) is None:
            raise ValueError(name)
        return x509.DNSName(name)
    except ValueError:
        raise ConfigError(
            f"--host {name}: neither a host name nor an address; give e.g. hub.example.org"
        ) from None


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
