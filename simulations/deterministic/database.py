"""The coordinator's database on a disk that fails: SQLite in memory, written whole at each commit.

SQLite flushes its files itself, out of sight. What it promises of a commit is what `State` relies
on, so that is what is kept: once a commit returns it survives a loss of power, one that was cut
short is there or is not, and one that the disk refused is undone for those who go on.
"""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path

from sqlalchemy import Engine

from fedsys.durable import write_atomically
from server.home.state import JobRow, State, engine_of

__all__ = ["job_of", "open_state"]

FILE = "state.sqlite"


class _Connection(sqlite3.Connection):
    """Commits when the file has it; without a path it has no file."""

    path: Path | None = None
    content: bytes = b""
    """What the file has."""
    written: int = -1
    """Changes that the file has, by SQLite's count. That leaves out the making of tables: a new
    database is written at once."""

    def commit(self) -> None:
        changed = self.in_transaction and self.total_changes != self.written
        super().commit()
        if changed and self.path is not None:
            content = self.serialize()  # before the commit, it may lack what is uncommitted
            try:
                write_atomically(self.path, content, mode=0o600)
            except OSError as error:
                if self.content:
                    self.deserialize(self.content)
                self.written = self.total_changes
                raise sqlite3.OperationalError("disk I/O error") from error
            self.content, self.written = content, self.total_changes


class _Databases:
    """One engine for all of them, one after the other: an engine that is new compiles every query
    again, and processes start often here.

    Attributes:
        path: of the file that the next connection reads and writes; None for a copy of `content`.
        content: that it begins with.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.content = b""
        self._engine = engine_of("sqlite://", creator=self._connect)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", factory=_Connection)
        connection.path = self.path
        if self.content:
            connection.deserialize(self.content)
            connection.content, connection.written = self.content, 0
        return connection

    def engine(self, path: Path | None, content: bytes) -> Engine:
        """The engine, which has let go of the database before."""
        self._engine.dispose()
        self.path, self.content = path, content
        return self._engine


_databases = functools.cache(_Databases)


def open_state(path: Path) -> State:
    """The database of a process that starts; made if its file is not there. The process before it
    is dead, and its `State` of no use any more.

    Args:
        path: of the file, on the acting machine's disk.
    """
    return State(_databases().engine(path, path.read_bytes() if path.exists() else b""))


def job_of(content: bytes) -> JobRow | None:
    """The newest job in a database of these bytes; None where there is none."""
    state = State(_databases().engine(None, content))
    try:
        return next(reversed(state.jobs()), None)
    finally:
        state.close()
