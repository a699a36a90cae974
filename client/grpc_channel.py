"""How a device connects: mutual TLS under the one authority that it pinned, and joining once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.identity import Credentials, TlsKey, pem_of
from fedsys.durable import make_folder
from fedsys.errors import ConfigError, EnrollmentError, ProtocolError
from fedsys.secret_files import read_secret, write_secret
from fedsys.wire import fleet_pb2
from fedsys.wire.address import host_and_port
from fedsys.wire.frames import MAX_FRAME
from fedsys.wire.roster import RosterChain, SignedStatement
from fedsys.wire.services import ENROLLMENT, FLEET, method
from fedsys.wire.token import JoinToken, enrollment_proof
from secure_agg import Identity

__all__ = ["CHANNEL_OPTIONS", "call", "join", "leave", "open_channel", "renew"]

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_FRAME),
    ("grpc.max_send_message_length", MAX_FRAME),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
)
_SECONDS = 30.0
_REFUSALS = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
)


def open_channel(address: str, *, ca: bytes, key: bytes, certificate: bytes) -> grpc.Channel:
    """A channel with mutual TLS; all arguments but the address are PEM."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=ca, private_key=key, certificate_chain=certificate
    )
    return grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def call(
    channel: grpc.Channel,
    path: str,
    request: Any,
    reply: Callable[[bytes], Any],
    *,
    address: str = "",
    explain: Callable[[], str | None] | None = None,
) -> Any:
    """One unary call with a deadline.

    Args:
        channel: to the coordinator.
        path: of the method.
        request: its message.
        reply: reads the answer.
        address: the channel's, for the error message.
        explain: finds out why it was not reached, if it was not.

    Raises:
        EnrollmentError: the coordinator declined; the message is its reason.
        ConfigError: the coordinator was not reached.
    """
    stub = channel.unary_unary(
        path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=reply
    )
    try:
        return stub(request, timeout=_SECONDS)
    except grpc.RpcError as error:
        if error.code() in _REFUSALS:
            raise EnrollmentError(error.details()) from None
        why = explain() if explain is not None else None
        raise ConfigError(
            f"{address}{address and ': '}the coordinator was not reached "
            f"({error.code().name.lower()}: {error.details()}); "
            + (
                why
                or "has the token, or the certificate, expired, or was it made for another "
                "coordinator?"
            )
        ) from None


def join(address: str, token: JoinToken, folder: Path) -> Credentials:
    """Make this device's keys, exchange the token for a certificate, pin the roster.

    If it is interrupted at any point, it may be run again with the same token and folder.

    Raises:
        EnrollmentError: the coordinator declined.
        ConfigError: the folder belongs to a device that joined, or the coordinator was not reached.
    """
    if (folder / "agent.toml").exists():
        raise ConfigError(f"{folder}: this device joined already; leave first, or give another one")
    host_and_port(address, "HOST:PORT")
    try:
        make_folder(folder, mode=0o700)
        folder.chmod(0o700)
        identity, key = _own_keys(folder)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"{folder}: {reason}; give a folder that can be made and written"
        ) from None
    credential, ca = token.certificate, pem_of(token.ca)
    # ECDSA signatures are randomized: the request is kept, so that a retry sends the same one.
    csr_file = folder / "join.csr"
    if not csr_file.exists():
        write_secret(csr_file, key.csr)
    csr = csr_file.read_bytes()
    with open_channel(
        address,
        ca=ca,
        key=TlsKey.of_scalar(token.private_key).pem,
        certificate=pem_of(credential),
    ) as channel:
        reply = call(
            channel,
            method(ENROLLMENT, "Enroll"),
            fleet_pb2.EnrollRequest(
                csr=csr,
                identity=identity.public_bytes,
                proof=identity.sign(enrollment_proof(credential, csr)),
            ),
            fleet_pb2.EnrollReply.FromString,
            address=address,
            explain=lambda: _fault(address, ca, pem_of(credential)),
        )
    key.check(reply.certificate, ca)
    Ed25519PublicKey.from_public_bytes(reply.signer)
    news = [SignedStatement(statement=s.statement, signature=s.signature) for s in reply.roster]
    chain = RosterChain(key=token.roster_key)
    pinned = [each for each in news if chain.accept(each) is not None]
    newest = chain.newest
    if newest is not None and newest.members.get(reply.node, identity.public_bytes) != (
        identity.public_bytes
    ):
        raise ProtocolError("the roster holds another key for this device")
    credentials = Credentials(
        folder=folder,
        node=reply.node,
        name=reply.name,
        coordinator=address,
        identity=identity,
        ca=ca,
        roster_key=token.roster_key,
        signer=reply.signer,
    )
    credentials.store_tls(key, reply.certificate)
    credentials.store(pinned)
    for name in ("join.csr", "tls.key"):
        (folder / name).unlink(missing_ok=True)
    return credentials


def renew(credentials: Credentials, channel: grpc.Channel) -> None:
    """Exchange a certificate that is still valid for a new one, under a new key."""
    key = TlsKey.generate()
    csr = key.csr
    current = credentials.certificate.public_bytes(serialization.Encoding.DER)
    reply = call(
        channel,
        method(FLEET, "Renew"),
        fleet_pb2.RenewRequest(
            csr=csr, proof=credentials.identity.sign(enrollment_proof(current, csr))
        ),
        fleet_pb2.RenewReply.FromString,
        address=credentials.coordinator,
        explain=lambda: _fault(credentials.coordinator, credentials.ca, credentials.tls()[1]),
    )
    key.check(reply.certificate, credentials.ca)
    credentials.store_tls(key, reply.certificate)


def leave(credentials: Credentials) -> None:
    """Have the coordinator revoke this device."""
    key, certificate = credentials.tls()
    with open_channel(
        credentials.coordinator, ca=credentials.ca, key=key, certificate=certificate
    ) as channel:
        call(
            channel,
            method(FLEET, "Leave"),
            fleet_pb2.Nothing(),
            fleet_pb2.Nothing.FromString,
            address=credentials.coordinator,
            explain=lambda: _fault(credentials.coordinator, credentials.ca, certificate),
        )


def _fault(address: str, ca: bytes, certificate: bytes) -> str | None:
    from client.reachability import fault  # it calls through this module

    return fault(address, ca=ca, certificate=certificate)


def _own_keys(folder: Path) -> tuple[Identity, TlsKey]:
    """This device's keys, made at the first call and reloaded after an interruption."""
    if not (folder / "identity.ed25519").exists():
        write_secret(folder / "identity.ed25519", Identity.generate().private_bytes())
    if not (folder / "tls.key").exists():
        write_secret(folder / "tls.key", TlsKey.generate().pem)
    private = serialization.load_pem_private_key(read_secret(folder / "tls.key"), None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{folder / 'tls.key'}: not a P-256 key; delete it and join again")
    return Identity(read_secret(folder / "identity.ed25519")), TlsKey(private)
