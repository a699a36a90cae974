"""Enrollment of devices: one-time tokens, certificates, the signed roster, revocation; sans-IO."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from fedsys.errors import ConfigError, EnrollmentError, ProtocolError
from fedsys.wire.roster import RosterStatement, SignedStatement, signed_message
from fedsys.wire.roster_chain import RosterChain
from fedsys.wire.token import JoinToken, enrollment_proof
from server.home.continuity import Continuity
from server.home.pki import AGENT_DAYS, Authority, Peer
from server.home.prekeys import Prekeys
from server.home.rosters import Rosters, row_of
from server.home.state import (
    CertificateRow,
    MarkRow,
    NodeRow,
    PrekeyRow,
    State,
    TokenRow,
)

__all__ = ["Enrolled", "Registry"]

TOKEN_HOURS = 24.0
_MOST_A_DAY = 4
"""Certificates for one node: the first one, and renewals whose reply was lost."""
_MOST_CSR = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What a device gets when it joins."""

    node: int
    name: str
    certificate: bytes


class Registry:
    """The coordinator's list of nodes.

    Args:
        state: The database that keeps it.
        authority: Issues certificates.
        roster_key: Ed25519 public key of the roster's authority.
        roster_signer: The matching private key, where the operator holds it; otherwise new nodes
            stay pending until the authority signs a roster that lists them.
        clock: Returns seconds since 1970.
        colluders: Number of nodes that may collude with the coordinator, for rosters signed from
            now on.

    Attributes:
        prekeys: Sealing keys that the nodes deposited for future rounds.
        rosters: All versions of the roster.
        continuity: Notices that this database is older than what its nodes hold.
    """

    def __init__(
        self,
        *,
        state: State,
        authority: Authority,
        roster_key: bytes,
        roster_signer: Ed25519PrivateKey | None,
        clock: Callable[[], float] = time.time,
        colluders: int = 0,
    ) -> None:
        self.prekeys = Prekeys(state)
        self.rosters = Rosters(state, roster_key)
        self.continuity = Continuity(state, self.rosters.hash_of, clock)
        self._colluders = colluders
        self._state = state
        self._authority = authority
        self._roster_key = roster_key
        self._roster_signer = roster_signer
        self._clock = clock

    # -- tokens and certificates ------------------------------------------------------------------

    def issue_token(
        self, name: str, *, hours: float = TOKEN_HOURS, labels: Sequence[str] = ()
    ) -> JoinToken:
        """A token with which one device can join as `name`, once.

        Args:
            name: Of the device.
            hours: How long the token is valid.
            labels: By which jobs may choose the device.

        Raises:
            ConfigError: The name is taken, or it or a label is not valid.
        """
        for label in labels:
            if not _LABEL.fullmatch(label):
                raise ConfigError(
                    f"--label {label!r}: letters, digits, '.', '_', '=' and '-' are allowed, 64 at "
                    f"most"
                )
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"node name {name!r}: letters, digits, '.', '_' and '-' are allowed, 64 at most"
            )
        now = self._clock()
        certificate, scalar = self._authority.issue_credential(
            lifetime=dt.timedelta(hours=hours), now=_utc(now)
        )
        with self._state.transaction() as session:
            taken = session.scalar(select(NodeRow).where(NodeRow.name == name))
            if taken is not None:
                was = "was revoked, for good" if taken.status == "revoked" else "enrolled already"
                raise ConfigError(f"node {name}: {was}; choose another name")
            session.add(
                TokenRow(
                    serial=format(certificate.serial_number, "x"),
                    name=name,
                    expires_at=now + hours * 3600,
                    labels=" ".join(dict.fromkeys(labels)),
                )
            )
        return JoinToken(
            ca=self._authority.der,
            certificate=certificate.public_bytes(serialization.Encoding.DER),
            private_key=scalar,
            roster_key=self._roster_key,
        )

    def enroll(self, peer: Peer, *, csr: bytes, identity: bytes, proof: bytes) -> Enrolled:
        """Exchange a token for a certificate. The same device may ask again with the same keys.

        Raises:
            EnrollmentError: The token is spent, expired or unknown, or the request is not valid.
        """
        if peer.role != "enrol":
            raise EnrollmentError("this certificate does not enrol anybody")
        _check_sizes(csr=csr, proof=proof)
        if self.continuity.held:
            raise EnrollmentError(
                "this coordinator seems to have been restored from an older backup: its operator "
                "has to run `fedsys coordinator recover` before a device can join"
            )
        _check_proof(identity, proof, enrollment_proof(peer.der, csr))
        now = self._clock()
        with self._state.transaction() as session:
            token = session.get(TokenRow, peer.serial)
            if token is None or token.expires_at < now:
                raise EnrollmentError("this token is unknown or has expired")
            if token.node is not None:
                return self._again(session, token, csr, identity)
            taken = session.scalar(
                select(NodeRow).where((NodeRow.name == token.name) | (NodeRow.identity == identity))
            )
            if taken is not None:
                raise EnrollmentError("this name or this identity is enrolled already")
            node = NodeRow(
                name=token.name,
                identity=identity,
                status="pending",
                enrolled_at=now,
                version="",
                labels=token.labels,
            )
            session.add(node)
            session.flush()
            certificate = self._certify(session, node.id, csr)
            token.node, token.csr = node.id, csr
            if self._roster_signer is not None:
                node.status = "active"
                session.flush()
                self._sign_roster(session, self._proposal(session))
            return Enrolled(node=node.id, name=node.name, certificate=certificate)

    def renew(self, peer: Peer, *, csr: bytes, proof: bytes) -> bytes:
        """A new certificate (DER) for a node that holds a valid one, a few times a day at most.

        The node's expired certificates are forgotten.

        Raises:
            EnrollmentError: The node is not admitted, its identity did not sign the request, or it
                had several certificates within a day.
        """
        self.admit(peer)
        _check_sizes(csr=csr, proof=proof)
        now = self._clock()
        with self._state.transaction() as session:
            node = session.get_one(NodeRow, peer.node)
            own = CertificateRow.node == node.id
            lately = now - 86_400.0 + AGENT_DAYS * 86_400.0
            query = select(func.count()).where(own & (CertificateRow.expires_at > lately))
            if (session.scalar(query) or 0) >= _MOST_A_DAY:
                raise EnrollmentError(
                    f"node {node.name} was given {_MOST_A_DAY} certificates within a day; try "
                    f"again tomorrow"
                )
            _check_proof(node.identity, proof, enrollment_proof(peer.der, csr))
            session.execute(delete(CertificateRow).where(own & (CertificateRow.expires_at < now)))
            return self._certify(session, node.id, csr)

    def admit(self, peer: Peer) -> NodeRow:
        """The node that may act under this certificate now.

        Raises:
            EnrollmentError: The certificate is revoked, expired, or no node's.
        """
        with self._state.transaction() as session:
            row = session.get(CertificateRow, peer.serial)
            node = session.get(NodeRow, peer.node) if peer.role == "agent" else None
            if row is None and node is not None:
                row = _certificate_that_was_lost(session, peer)
        if row is None or node is None or row.node != peer.node or row.der != peer.der:
            raise EnrollmentError("this certificate is no node's")
        if row.revoked or node.status == "revoked":
            raise EnrollmentError(f"node {node.name} was revoked")
        if row.expires_at < self._clock():
            raise EnrollmentError(f"the certificate of node {node.name} has expired")
        return node

    def revoke(self, name: str) -> None:
        """Shut a node out: none of its calls is answered, and the next roster omits it.

        Raises:
            ConfigError: There is no such node.
        """
        holds = self.continuity.holds()
        with self._state.transaction() as session:
            node = session.scalar(select(NodeRow).where(NodeRow.name == name))
            if node is None:
                raise ConfigError(f"node {name}: there is none; see `fedsys coordinator nodes`")
            self._shut_out(session, node)
            # A list that is signed before newer ones came back from the devices would be a fork.
            if all(row.node == node.id for row in holds):
                session.flush()
                self._sign_if_changed(session)

    def shut_out(self) -> frozenset[str]:
        """Serial numbers of all revoked certificates."""
        query = select(CertificateRow.serial).where(CertificateRow.revoked)
        with self._state.transaction() as session:
            return frozenset(session.scalars(query))

    # -- the roster -------------------------------------------------------------------------------

    def chain(self) -> RosterChain:
        """All roster versions, verified; a copy, to which others may be added."""
        return self.rosters.chain()

    def statements(self, after: int = 0) -> list[SignedStatement]:
        """Roster versions later than `after`, as they are kept: see `RosterRow`."""
        return self.rosters.statements(after)

    def roster_version(self) -> int:
        """Number of the newest version; 0 before the first."""
        return self._state.roster_version()

    def propose(self) -> RosterStatement:
        """The roster that the authority is to sign next: all enrolled nodes not revoked."""
        with self._state.transaction() as session:
            return self._proposal(session)

    def accept(self, signed: SignedStatement) -> RosterStatement:
        """Accept the authority's next roster version.

        Raises:
            ProtocolError: It does not follow the newest, or is not signed by the pinned key.
            ConfigError: It has members that never enrolled, or were revoked.
        """
        with self._state.transaction() as session:
            chain = self.rosters.followed(session)
            before, statement = chain.newest, chain.accept(signed)
            if statement is None:
                raise ConfigError("this roster version is in force already")
            known = {row.id: row for row in session.scalars(select(NodeRow))}
            for node, key in statement.members.items():
                if node not in known or known[node].identity != key:
                    raise ConfigError(f"the roster has node {node}, which never enrolled so")
                if known[node].status == "revoked":
                    raise ConfigError(f"the roster has node {node}, which was revoked")
            for node, row in known.items():
                if row.status != "revoked":
                    row.status = "active" if node in statement.members else "pending"
            session.add(row_of(before, statement, signed.signature))
        return statement

    def sign(self) -> None:
        """Sign the list of the nodes as they are, where the operator is its authority, unless the
        newest one is the same."""
        with self._state.transaction() as session:
            self._sign_if_changed(session)

    def take_back(self, signed: SignedStatement) -> RosterStatement | None:
        """Take a list that the authority signed and this database has lost from a device that kept
        it: nodes that it omits are revoked, and those that it adds are known again.

        Returns:
            The list; None where it is held already.

        Raises:
            ProtocolError: It does not follow the newest, or is not signed by the pinned key.
        """
        with self._state.transaction() as session:
            chain = self.rosters.followed(session)
            before, statement = chain.newest, chain.accept(signed)
            if statement is None:
                return None
            known = {row.id: row for row in session.scalars(select(NodeRow))}
            for node, key in statement.members.items():
                if node in known and known[node].identity != key:
                    raise ProtocolError(
                        f"roster version {statement.version} gives node {node} another key than "
                        f"this database, which enrolled it after an old backup came back"
                    )
                if node not in known:
                    name = f"restored-{node}"
                    session.add(
                        NodeRow(
                            id=node,
                            name=name,
                            identity=key,
                            status="active",
                            enrolled_at=self._clock(),
                        )
                    )
                elif known[node].status == "pending":
                    known[node].status = "active"
            for node, row in known.items():
                if row.status == "active" and node not in statement.members:
                    self._shut_out(session, row)
            session.add(row_of(before, statement, signed.signature))
        return statement

    # -- inside a transaction ---------------------------------------------------------------------

    def _shut_out(self, session: Session, node: NodeRow) -> None:
        node.status = "revoked"
        for row in session.scalars(select(CertificateRow).where(CertificateRow.node == node.id)):
            row.revoked = True
        session.execute(delete(PrekeyRow).where(PrekeyRow.node == node.id))

    def _again(self, session: Session, token: TokenRow, csr: bytes, identity: bytes) -> Enrolled:
        node = session.get_one(NodeRow, token.node)
        if token.csr != csr or node.identity != identity:
            raise EnrollmentError(
                "this token was used already; ask the operator for another, and tell them if it "
                "was not you"
            )
        row = session.scalars(select(CertificateRow).where(CertificateRow.node == node.id)).first()
        if row is None or row.revoked:
            raise EnrollmentError(f"node {node.name} was revoked")
        return Enrolled(node=node.id, name=node.name, certificate=row.der)

    def _certify(self, session: Session, node: int, csr: bytes) -> bytes:
        now = _utc(self._clock())
        lifetime = dt.timedelta(days=AGENT_DAYS)
        certificate = self._authority.issue_agent(csr, node=node, lifetime=lifetime, now=now)
        der = certificate.public_bytes(serialization.Encoding.DER)
        session.add(
            CertificateRow(
                serial=format(certificate.serial_number, "x"),
                node=node,
                der=der,
                expires_at=(now + lifetime).timestamp(),
                revoked=False,
            )
        )
        return der

    def _proposal(self, session: Session) -> RosterStatement:
        before = self.rosters.followed(session).newest
        rows = session.scalars(select(NodeRow).where(NodeRow.status != "revoked"))
        members = {row.id: row.identity for row in rows}
        return RosterStatement(
            version=1 if before is None else before.version + 1,
            previous=b"" if before is None else before.hash,
            members=members,
            colluders=min(self._colluders, len(members)),
        )

    def _sign_if_changed(self, session: Session) -> None:
        newest, proposal = self.rosters.followed(session).newest, self._proposal(session)
        if dict(newest.members if newest is not None else {}) != dict(proposal.members):
            self._sign_roster(session, proposal)

    def _sign_roster(self, session: Session, statement: RosterStatement) -> None:
        if self._roster_signer is None:
            return
        signature = self._roster_signer.sign(signed_message(statement.encoded))
        session.add(row_of(self.rosters.followed(session).newest, statement, signature))


def _certificate_that_was_lost(session: Session, peer: Peer) -> CertificateRow | None:
    """A certificate of our authority that an older backup does not list, known again.

    Only one that was issued before the operator put the restored database to work: from then on
    every certificate is listed again.
    """
    recovered = session.get(MarkRow, "recovered")
    if recovered is None or peer.issued is None or peer.issued.timestamp() >= recovered.at:
        return None
    row = CertificateRow(
        serial=peer.serial,
        node=peer.node,
        der=peer.der,
        expires_at=peer.expires.timestamp(),
        revoked=False,
    )
    session.add(row)
    return row


def _check_sizes(*, csr: bytes, proof: bytes) -> None:
    """Bound a request's size before it is parsed."""
    if len(csr) > _MOST_CSR or len(proof) != 64:
        raise EnrollmentError(
            f"a request of {len(csr)} bytes and a proof of {len(proof)}: at most {_MOST_CSR} and "
            f"64 are read"
        )


def _check_proof(identity: bytes, proof: bytes, message: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(proof, message)
    except (InvalidSignature, ValueError):
        raise EnrollmentError("the device's identity did not sign this request") from None


def _utc(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
