"""What virtual clients keep from round to round: `local.state`, in one file of the run's folder.

It stands for the folders of as many devices, so nothing of it is ever summed, sent or published.
A state belongs to the round in which its client trained, and counts once that round is committed:
what a crash or an abort leaves behind is dropped, so that a resumed run is the run that was never
interrupted. Memory does not grow with the population.
"""

from __future__ import annotations

import contextlib
import io
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from fedsys.errors import RunFolderError

__all__ = ["NAME", "ClientStates"]

NAME = "client_states.sqlite"
"""Of the file, within the run's folder."""

_PATIENCE = 600.0
_TABLE = """
    CREATE TABLE IF NOT EXISTS states (
        client INTEGER NOT NULL, round INTEGER NOT NULL, tensors BLOB NOT NULL,
        PRIMARY KEY (client, round)
    ) WITHOUT ROWID
"""


class ClientStates:
    """The clients' states of one run, shared by all processes of a simulation.

    Args:
        path: The file; it appears with the first state.

    Attributes:
        path: The same.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: sqlite3.Connection | None = None

    def load(self, client: int, round: int) -> dict[str, Tensor]:
        """See `client.training.procedure.visit.States`."""
        if not self._there():
            return {}
        with self._database() as database:
            found = database.execute(
                "SELECT tensors FROM states WHERE client = ? AND round < ? "
                "ORDER BY round DESC LIMIT 1",
                (int(client), round),
            ).fetchone()
        return {} if found is None else _read(found[0])

    def save(self, client: int, round: int, state: Mapping[str, Tensor]) -> None:
        """See `client.training.procedure.visit.States`. Durable after `settle`."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        with self._database() as database:
            database.execute(
                "INSERT OR REPLACE INTO states VALUES (?, ?, ?)",
                (int(client), round, buffer.getvalue()),
            )

    def settle(self, round: int) -> None:
        """Make the states of `round` durable, before it is committed. Of what its clients kept
        before, the newest remains, in case it is not."""
        if not self._there():
            return
        with self._database() as database:
            database.execute("PRAGMA synchronous = FULL")
            database.execute(
                "DELETE FROM states WHERE round < ?1 AND EXISTS (SELECT 1 FROM states AS newer "
                "WHERE newer.client = states.client AND newer.round > states.round "
                "AND newer.round < ?1)",
                (round,),
            )
            # Writes the log to disk even where nothing was deleted, other processes' part included.
            database.execute("PRAGMA user_version = 1")
        with self._database() as database:
            database.execute("PRAGMA synchronous = NORMAL")

    def forget(self, round: int) -> None:
        """Drop the states of a round that gave no model."""
        if self._there():
            with self._database() as database:
                database.execute("DELETE FROM states WHERE round = ?", (round,))

    def keep_only(self, rounds: Collection[int]) -> None:
        """Drop the states of all rounds but these, which are committed."""
        if not self._there():
            return
        with self._database() as database:
            held = [row[0] for row in database.execute("SELECT DISTINCT round FROM states")]
            for round in held:
                if round and round not in rounds:  # 0: kept from the run before
                    database.execute("DELETE FROM states WHERE round = ?", (round,))

    def take_over(self, other: Path) -> None:
        """Begin with what the clients of another run kept last, where it kept anything."""
        if not other.exists():
            return
        with self._database():
            pass  # the file and its table are there
        self.close()
        source = sqlite3.connect(f"file:{quote(str(other))}?mode=ro", uri=True)
        try:
            newest = source.execute(
                "SELECT client, tensors, MAX(round) FROM states GROUP BY client"
            )
            with self._database() as database:
                for client, tensors, _ in newest:
                    database.execute("INSERT INTO states VALUES (?, 0, ?)", (client, tensors))
        except sqlite3.Error as error:
            raise RunFolderError(f"{other}: what clients keep cannot be read: {error}") from None
        finally:
            source.close()

    def close(self) -> None:
        """Close the file; it opens again on use."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _there(self) -> bool:
        return self._open is not None or self.path.exists()

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._open is None:
                self._open = self._connected()
            with self._open:  # one transaction
                yield self._open
        except sqlite3.Error as error:
            raise RunFolderError(
                f"{self.path}: what clients keep cannot be read or written: {error}"
            ) from None

    def _connected(self) -> sqlite3.Connection:
        if not self.path.exists():
            # Of clients' data: for the owner of the run alone.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        database = sqlite3.connect(self.path, timeout=_PATIENCE, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        with database:
            database.execute(_TABLE)
        return database


def _read(content: bytes) -> dict[str, Tensor]:
    found = torch.load(io.BytesIO(content), weights_only=True)
    return dict(found)
