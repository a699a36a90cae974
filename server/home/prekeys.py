"""Sealing keys that devices deposited for future rounds: checked, bounded, each used once.

A round needs one of each committee member before its first message. A key is deleted from the
database before a message that names it is sent, so a coordinator killed in between has wasted it
but can never name it twice. Devices refuse a second use all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from fedsys.errors import ProtocolError
from fedsys.wire import fleet_pb2
from fedsys.wire.services import MAX_PREKEYS
from secure_agg import SecureAggError
from secure_agg.prekeys import PREKEY_SIZE, check_prekey
from server.home.state import NodeRow, PrekeyRow, State

__all__ = ["Prekeys"]

_log = logging.getLogger(__name__)


class Prekeys:
    """Every node's pool of sealing keys.

    Args:
        state: The database that keeps them.
        check: Raises SecureAggError unless the identity given signed the statement given.
    """

    def __init__(
        self, state: State, *, check: Callable[[bytes, bytes], None] = check_prekey
    ) -> None:
        self._state = state
        self._check = check

    def held(self, node: int, *, suite: int = 1) -> int:
        """How many keys of a node and a suite are left."""
        with self._state.transaction() as session:
            return _count(session, node, suite)

    def counts(self, nodes: Collection[int], *, suite: int = 1) -> dict[int, int]:
        """How many keys of each of these nodes, of one suite, are left."""
        query = select(PrekeyRow.node, func.count()).where(_of(suite)).group_by(PrekeyRow.node)
        with self._state.transaction() as session:
            found = {row[0]: int(row[1]) for row in session.execute(query)}
        return {node: found.get(node, 0) for node in nodes}

    def add(self, node: int, statements: Sequence[bytes], *, replace: bool = False) -> int:
        """Add a node's keys, up to `MAX_PREKEYS` of a suite; the excess is dropped.

        Args:
            node: The node that sent them.
            statements: Signed sealing keys.
            replace: Discard those kept so far, because the device has lost them.

        Returns:
            Number of the node's keys, of all suites, that are now kept.

        Raises:
            ProtocolError: Too many at once, or one is not valid; none of them is kept.
        """
        if len(statements) > MAX_PREKEYS:
            raise ProtocolError(
                f"{len(statements)} sealing keys at once: at most {MAX_PREKEYS} are kept"
            )
        with self._state.transaction() as session:
            owner = session.get(NodeRow, node)
        if owner is None:
            raise ProtocolError(f"sealing keys of node {node}, which never enrolled")
        for statement in statements:
            try:
                self._check(owner.identity, statement)
            except SecureAggError as error:
                raise ProtocolError(f"a sealing key of node {node}: {error}") from None
        with self._state.transaction() as session:
            if replace:
                session.execute(delete(PrekeyRow).where(PrekeyRow.node == node))
            fresh: list[bytes] = []
            held = 0
            for suite in PREKEY_SIZE:
                kept = _count(session, node, suite)
                alike = [each for each in statements if each[:1] == bytes((suite,))]
                fresh += dict.fromkeys(alike[: MAX_PREKEYS - kept])
                held += kept
            query = select(PrekeyRow.statement).where(PrekeyRow.statement.in_(fresh))
            known = set(session.scalars(query))
            added = [PrekeyRow(node=node, statement=each) for each in fresh if each not in known]
            session.add_all(added)
            return held + len(added)

    def keep(self, node: int, message: fleet_pb2.Up) -> None:
        """Move the sealing keys in a node's message, if any, into its pool.

        Raises:
            ProtocolError: As for `add`.
        """
        kind = message.WhichOneof("content")
        if kind not in ("hello", "consent", "countersignature", "prekeys"):
            return
        content = getattr(message, kind)
        statements = list(content.prekeys)
        content.ClearField("prekeys")
        if statements:
            self.add(node, statements, replace=kind == "hello")

    def take(self, nodes: Iterable[int], *, suite: int = 1) -> dict[int, bytes]:
        """The oldest key, of a suite, of each node that has one; durably deleted when this
        returns."""
        found: dict[int, bytes] = {}
        with self._state.transaction() as session:
            for node in nodes:
                own = select(PrekeyRow).where(PrekeyRow.node == node, _of(suite))
                row = session.scalars(own.order_by(PrekeyRow.number).limit(1)).first()
                if row is not None:
                    found[node] = row.statement
                    session.delete(row)
        return found


def _of(suite: int) -> ColumnElement[bool]:
    """Statements of a suite; each suite has a size of its own."""
    return func.length(PrekeyRow.statement) == PREKEY_SIZE[suite]


def _count(session: Session, node: int, suite: int) -> int:
    query = select(func.count()).select_from(PrekeyRow).where(PrekeyRow.node == node, _of(suite))
    return session.scalar(query) or 0
