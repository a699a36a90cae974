"""The roster's versions in a coordinator's database: read once, verified, and handed to devices."""

from __future__ import annotations

import threading

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedsys.errors import ConfigError
from fedsys.wire.roster import RosterStatement, SignedStatement
from fedsys.wire.roster_chain import RosterChain, shortest
from server.home.state import RosterRow, State

__all__ = ["Rosters", "row_of"]


class Rosters:
    """All versions that the authority signed.

    Args:
        state: The database that keeps them.
        key: Ed25519 public key of the roster's authority.
    """

    def __init__(self, state: State, key: bytes) -> None:
        self._state = state
        self._chain = RosterChain(key=key, complete=True)
        """What was read so far; versions are only ever added."""
        self._lock = threading.Lock()

    def chain(self) -> RosterChain:
        """All versions; a copy, to which others may be added."""
        with self._state.reading() as session:
            return self.followed(session)

    def followed(self, session: Session) -> RosterChain:
        """The same within a transaction, which calls it before it adds a version: it may yet fail.

        Only those are read and verified that have not been before.
        """
        query = select(RosterRow).where(RosterRow.version > self._chain.version)
        rows = session.scalars(query.order_by(RosterRow.version)).all()
        with self._lock:  # not while waiting for the database, which another thread may hold
            for row in rows:
                if row.version > self._chain.version:
                    self._chain.accept(_signed(row))
            return self._chain.copy()

    def hash_of(self, session: Session, version: int) -> bytes | None:
        """Hash of a version, within a transaction; None if there is none."""
        step = self.followed(session).step(version)
        return None if step is None else step.hash

    def statements(self, after: int = 0) -> list[SignedStatement]:
        """Versions later than `after`, as they are kept: see `RosterRow`."""
        return [_signed(row) for row in self._state.rosters(after)]

    def signed(self, version: int) -> SignedStatement:
        """A version in full, as the authority signed it.

        Raises:
            ConfigError: There is none of that number.
        """
        with self._state.reading() as session:
            row = session.get(RosterRow, version)
            statement = self.followed(session).find(version)
        if row is None or statement is None:
            raise ConfigError(f"roster version {version}: there is none")
        return SignedStatement(statement=statement.encoded, signature=row.signature)

    def news(self, node: int, after: int) -> list[SignedStatement]:
        """What a device lacks, oldest first: the changes after the version that it holds.

        One that holds none begins with the whole list that first names it, or else the newest. So a
        device has every later list for a coordinator that was restored from a backup in which it
        is a member.
        """
        if after > 0:
            return self.statements(after)
        steps = self.chain().steps
        if not steps:
            return []
        begin = next((step.version for step in steps if node in step.added), steps[-1].version)
        return [self.signed(begin), *self.statements(begin)]


def row_of(before: RosterStatement | None, after: RosterStatement, signature: bytes) -> RosterRow:
    """The row of a version that follows another.

    Args:
        before: the version before; None for the first.
        after: the version.
        signature: the authority's over the whole of it.
    """
    return RosterRow(version=after.version, statement=shortest(before, after), signature=signature)


def _signed(row: RosterRow) -> SignedStatement:
    return SignedStatement(statement=row.statement, signature=row.signature)
