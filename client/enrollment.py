"""Joining a coordinator's fleet once, renewing the certificate, leaving."""

from __future__ import annotations

from pathlib import Path

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.grpc_channel import call, open_channel
from client.identity import Credentials, TlsKey, pem_of
from client.reachability import fault
from fedsys.durable import make_folder
from fedsys.errors import ConfigError, ProtocolError
from fedsys.secret_files import read_secret, write_secret
from fedsys.wire import fleet_pb2
from fedsys.wire.address import host_and_port
from fedsys.wire.roster import SignedStatement
from fedsys.wire.roster_chain import RosterChain
from fedsys.wire.services import ENROLLMENT, FLEET, method
from fedsys.wire.token import JoinToken, enrollment_proof
from secure_agg import Identity

__all__ = ["join", "leave", "renew"]


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
            explain=lambda: fault(address, ca=ca, certificate=pem_of(credential)),
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
        explain=lambda: fault(
            credentials.coordinator, ca=credentials.ca, certificate=credentials.tls()[1]
        ),
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
            explain=lambda: fault(
                credentials.coordinator, ca=credentials.ca, certificate=certificate
            ),
        )


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
