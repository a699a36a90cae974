"""Agents' word that they took part in a round: checked against roster and ledger, then kept."""

from __future__ import annotations

import logging
from collections import Counter

from fedsys.durable import append_lines
from fedsys.wire import countersign, fleet_pb2
from fedsys.wire.countersign import Countersignature
from fedsys.wire.roster import RosterStatement
from server.home.state import CountersignatureRow, State
from server.job import Job

__all__ = ["Countersignatures"]

_log = logging.getLogger(__name__)
_MOST_COMPLAINTS = 10


class Countersignatures:
    """Those of this process's jobs; the last round's come when its job is over.

    They are kept in the database, and beside the ledger in ``countersignatures.jsonl``.

    Args:
        state: where they are kept.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._jobs: dict[bytes, _Book] = {}
        self._wrong: Counter[int] = Counter()

    def expect(self, name: bytes, *, id: str, roster: RosterStatement, job: Job) -> None:
        """Take those of a job from now on.

        Args:
            name: the job's 32 bytes, which are signed.
            id: the job's in the database.
            roster: whose keys count.
            job: whose ledger is countersigned.
        """
        self._jobs[name] = _Book(state=self._state, id=id, roster=roster, job=job)

    def take(self, node: int, given: fleet_pb2.Countersignature) -> None:
        """Keep a node's signature if it holds and is of our ledger; durable when this returns.

        Args:
            node: whose certificate the session was opened with.
            given: as it came.
        """
        book = self._jobs.get(given.job)
        if book is None or node not in book.roster.members:
            self._complain(node, "a countersignature of no job that was asked for")
            return
        row = CountersignatureRow(
            job=book.id,
            round=given.round,
            node=node,
            ledger_head=given.ledger_head,
            participations=given.participations,
            signature=given.signature,
        )
        found = book.of_row(row)
        if book.committed(given.round) != given.ledger_head:
            self._complain(node, f"a countersignature of no commit of round {given.round}")
        elif not found.holds(given.job):
            self._complain(node, "a countersignature that does not hold")
        elif not book.holds(found):
            with self._state.transaction() as session:
                session.merge(row)
            book.add([found])

    def _complain(self, node: int, what: str) -> None:
        """Log what is wrong with a node's words, a few times."""
        self._wrong[node] += 1
        if self._wrong[node] <= _MOST_COMPLAINTS:
            is_last = self._wrong[node] == _MOST_COMPLAINTS
            last = "; no more of this node's are logged" if is_last else ""
            _log.warning("node %d: %s%s", node, what, last)


class _Book:
    """One job's file; what the database has and it lacks, because of a crash, is added first."""

    def __init__(self, *, state: State, id: str, roster: RosterStatement, job: Job) -> None:
        self.id = id
        self.roster = roster
        self._ledger = job.ledger
        self._path = job.folder.path / countersign.FILE
        self._kept: set[tuple[int, int]] = set()
        if self._path.exists():
            self._read()
        with state.transaction() as session:
            rows = session.query(CountersignatureRow).filter_by(job=id).all()
            stored = [self.of_row(row) for row in rows]
        self.add([each for each in stored if not self.holds(each)])

    def committed(self, round: int) -> bytes:
        """Hash of the line that commits a round; empty if none does."""
        return bytes.fromhex(self._ledger.committed.get(round, ""))

    def holds(self, found: Countersignature) -> bool:
        """Whether this client's word on this round is kept."""
        return (found.round, found.client) in self._kept

    def of_row(self, row: CountersignatureRow) -> Countersignature:
        return Countersignature(
            round=row.round,
            client=self.roster.nodes.index(row.node),
            key=self.roster.members[row.node],
            ledger_head=row.ledger_head,
            participations=row.participations,
            signature=row.signature,
        )

    def add(self, found: list[Countersignature]) -> None:
        """Appends lines; on disk when this returns."""
        if not found:
            return
        lines = b"".join(each.encode() + b"\n" for each in found)
        append_lines(self._path, lines, mode=0o600)
        self._kept.update((each.round, each.client) for each in found)

    def _read(self) -> None:
        """Notes what is there, and cuts off a line that a crash tore."""
        with self._path.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
        for number, raw in enumerate(content.split(b"\n")[:-1], start=1):
            each = Countersignature.parse(raw, f"{countersign.FILE} line {number}")
            self._kept.add((each.round, each.client))
