"""A device's identity: keys that were made here and never leave, a certificate, a pinned roster.

::

    agent.toml        node number, name, coordinator's address, pinned keys
    identity.ed25519  signs this device's messages in secure aggregation
    tls.pem           P-256 key and certificate for the connection
    ca.pem            certificate of the coordinator's authority
    roster.jsonl      every roster that was accepted, in order: the first in full, then its changes
    journal.json      what the device agreed to and has spent: see `client.journal`

All of them exist from the moment it joins; one that is lost later is not created again.
"""

from __future__ import annotations

import datetime as dt
import json
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedsys.durable import append_lines, write_atomically
from fedsys.errors import ConfigError, ProtocolError
from fedsys.secret_files import read_secret, write_secret
from fedsys.wire.address import host_and_port
from fedsys.wire.roster import SignedStatement
from fedsys.wire.roster_chain import RosterChain
from secure_agg import Identity, SecureAggError

__all__ = ["Credentials", "TlsKey", "pem_of"]

_LOST = "restore this device's folder from a backup, or let it join again in another one"
_ROSTER_LOST = (
    "restore it from a backup, or leave (`fedsys agent leave DIR`) and join again under a new name "
    "in this folder, whose count of epsilon goes on"
)


@dataclass(frozen=True, repr=False)
class TlsKey:
    """This device's P-256 key for the connection."""

    private: ec.EllipticCurvePrivateKey

    @classmethod
    def generate(cls) -> TlsKey:
        """A fresh key from the operating system's entropy."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def of_scalar(cls, scalar: bytes) -> TlsKey:
        """The key that a token carries.

        Raises:
            ConfigError: it is not a P-256 scalar.
        """
        try:
            return cls(ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1()))
        except ValueError:
            raise ConfigError("the token is damaged: it holds no valid key") from None

    @property
    def pem(self) -> bytes:
        """The private key; a secret."""
        return self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def csr(self) -> bytes:
        """A certificate request (DER) for this key; the authority chooses the name."""
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return request.sign(self.private, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def check(self, certificate: bytes, ca: bytes) -> None:
        """Raise ProtocolError unless `certificate` (DER) is for this key and from that CA (PEM)."""
        try:
            found = x509.load_der_x509_certificate(certificate)
            found.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))
        except (ValueError, TypeError, InvalidSignature):
            raise ProtocolError("the coordinator sent a certificate of another authority") from None
        own = self.private.public_key().public_numbers()
        public = found.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey) or public.public_numbers() != own:
            raise ProtocolError("the coordinator sent a certificate for another key")


@dataclass(frozen=True, kw_only=True, repr=False)
class Credentials:
    """The contents of a device's folder.

    Attributes:
        folder: the folder, mode 0700.
        node: the device's number in the roster.
        name: the operator's name for it.
        coordinator: the coordinator's address, ``HOST:PORT``.
        identity: the signing key.
        ca: the authority's certificate, PEM.
        roster_key: public key of the roster's authority, pinned when this device joined.
        signer: public key that signs the coordinator's ledgers.
    """

    folder: Path
    node: int
    name: str
    coordinator: str
    identity: Identity
    ca: bytes
    roster_key: bytes
    signer: bytes

    def __repr__(self) -> str:
        return f"Credentials(node={self.node}, name={self.name!r}, folder={str(self.folder)!r})"

    @classmethod
    def load(cls, folder: Path) -> Credentials:
        """Read a device's folder.

        Raises:
            ConfigError: this device has not joined, or a file is damaged or open to others.
        """
        if not (folder / "agent.toml").is_file():
            raise ConfigError(
                f"{folder}: this device has not joined; run `fedsys agent join HOST:PORT "
                f"--token TOKEN {folder}`"
            )
        path = folder / "agent.toml"
        try:
            table = tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}; {_LOST}") from None
        coordinator = str(_of(table, "coordinator", str, path))
        host_and_port(coordinator, f"{path}: coordinator")
        return cls(
            folder=folder,
            node=int(_of(table, "node", int, path)),
            name=str(_of(table, "name", str, path)),
            coordinator=coordinator,
            identity=_identity(folder),
            ca=_authority(folder),
            roster_key=bytes(_of(table, "roster_key", _key, path)),
            signer=bytes(_of(table, "signer", _key, path)),
        )

    def store(self, rosters: Iterable[SignedStatement] = ()) -> None:
        """Write the device's files, ``agent.toml`` last, which marks the folder as complete. The
        keys have been written before.

        Args:
            rosters: the rosters to pin, in order; empty if the operator has not signed any yet.

        Raises:
            ConfigError: an existing journal is damaged, or none can be written.
        """
        from client.journal import Journal  # it imports accounting, which only joining needs here

        write_atomically(self.folder / "ca.pem", self.ca)
        write_atomically(self.folder / "roster.jsonl", _lines_of(rosters, begins=True))
        Journal.begin(self.folder / "journal.json")
        self.store_table()

    def store_table(self) -> None:
        """Write ``agent.toml``.

        Raises:
            OSError: it cannot be written.
        """
        table = {
            "node": self.node,
            "name": self.name,
            "coordinator": self.coordinator,
            "roster_key": self.roster_key.hex(),
            "signer": self.signer.hex(),
        }
        write_secret(self.folder / "agent.toml", tomli_w.dumps(table).encode())

    # -- the connection's key ----------------------------------------------------------------------

    def store_tls(self, key: TlsKey, certificate: bytes) -> None:
        """Replace the connection's key and certificate (DER) together."""
        write_secret(self.folder / "tls.pem", key.pem + pem_of(certificate))

    def tls(self) -> tuple[bytes, bytes]:
        """The connection's key and certificate, both PEM.

        Raises:
            ConfigError: they, or the authority's certificate, are damaged.
        """
        try:
            x509.load_pem_x509_certificate(self.ca)
        except ValueError:
            raise ConfigError(f"{self.folder / 'ca.pem'}: damaged; {_LOST}") from None
        whole = read_secret(self.folder / "tls.pem")
        at = whole.find(b"-----BEGIN CERTIFICATE")
        if at <= 0:
            raise ConfigError(f"{self.folder / 'tls.pem'}: damaged; {_LOST}")
        return whole[:at], whole[at:]

    @property
    def certificate(self) -> x509.Certificate:
        """The connection's certificate."""
        try:
            return x509.load_pem_x509_certificate(self.tls()[1])
        except ValueError:
            raise ConfigError(f"{self.folder / 'tls.pem'}: damaged; {_LOST}") from None

    def renewal_due(self, now: dt.datetime) -> bool:
        """Whether less than a third of the certificate's life is left."""
        found = self.certificate
        life = found.not_valid_after_utc - found.not_valid_before_utc
        return found.not_valid_after_utc - now < life / 3

    # -- the roster --------------------------------------------------------------------------------

    def roster_chain(self) -> RosterChain:
        """Every roster accepted so far, verified again.

        Raises:
            ProtocolError: the file was changed.
            ConfigError: the file is lost, and with it the rosters that this device accepted.
        """
        lines = self._roster_lines()
        # A file that was begun again while the device ran lacks what this device accepted before.
        chain = RosterChain(key=self.roster_key, complete=bool(lines) and not lines[0][1])
        for signed, _ in lines:
            try:
                chain.extend([signed])
            except ProtocolError as error:
                path = self.folder / "roster.jsonl"
                raise ProtocolError(f"{path}: {error}; {_ROSTER_LOST}") from None
        return chain

    def rosters(self) -> list[SignedStatement]:
        """Every roster accepted so far, as it came; no signature is checked.

        Raises:
            ProtocolError: the file was changed.
            ConfigError: the file is lost.
        """
        return [signed for signed, _ in self._roster_lines()]

    def _roster_lines(self) -> list[tuple[SignedStatement, bool]]:
        """The file's rosters, each with whether this device began with it."""
        found = []
        path = self.folder / "roster.jsonl"
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            raise ConfigError(
                f"{path}: is gone; it pins every roster that this device accepted, without which "
                f"it could be shown another past: {_ROSTER_LOST}"
            ) from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"{path}: {reason}; the agent must own its folder") from None
        for line in lines[:-1]:  # a crash may have torn the text after the last newline
            try:
                body = json.loads(line)
                signed = SignedStatement(
                    statement=body["statement"].encode(),
                    signature=bytes.fromhex(body["signature"]),
                )
                found.append((signed, body.get("begins") is True))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ProtocolError(f"{path}: damaged; {_ROSTER_LOST}") from None
        return found

    def append_roster(self, accepted: Iterable[SignedStatement], *, begins: bool = False) -> None:
        """Make newly accepted rosters durable, before they are used.

        Args:
            accepted: in order.
            begins: whether this device held none before them.

        Raises:
            OSError: they could not be written, and must not be used.
        """
        append_lines(self.folder / "roster.jsonl", _lines_of(accepted, begins=begins))


def _lines_of(rosters: Iterable[SignedStatement], *, begins: bool) -> bytes:
    """Lines of ``roster.jsonl``; the first that a device ever held says so."""
    lines: list[bytes] = []
    for signed in rosters:
        line: dict[str, Any] = {
            "statement": signed.statement.decode(),
            "signature": signed.signature.hex(),
        }
        if begins and not lines:
            line["begins"] = True
        lines.append(json.dumps(line).encode() + b"\n")
    return b"".join(lines)


def _of(table: dict[str, Any], name: str, read: Callable[[Any], Any], path: Path) -> Any:
    """One value of ``agent.toml``."""
    try:
        return read(table[name])
    except KeyError:
        raise ConfigError(f"{path}: {name} is missing; {_LOST}") from None
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: {name} = {table[name]!r} is invalid; {_LOST}") from None


def _key(text: Any) -> bytes:
    key = bytes.fromhex(text)
    if len(key) != 32:
        raise ValueError(text)
    return key


def _identity(folder: Path) -> Identity:
    path = folder / "identity.ed25519"
    try:
        return Identity(read_secret(path))
    except SecureAggError as error:
        raise ConfigError(f"{path}: {error}; {_LOST}") from None


def _authority(folder: Path) -> bytes:
    try:
        return (folder / "ca.pem").read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{folder / 'ca.pem'}: {reason}; {_LOST}") from None


def pem_of(certificate: bytes) -> bytes:
    """DER to PEM."""
    found = x509.load_der_x509_certificate(certificate)
    return found.public_bytes(serialization.Encoding.PEM)
