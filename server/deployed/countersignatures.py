"""Agents' statements about rounds: checked against roster, terms and ledger, then kept."""

from __future__ import annotations

import logging
from collections import Counter

from fedsys.durable import append_lines
from fedsys.privacy.ledger.openings import NONCE_BYTES
from fedsys.wire import countersign, fleet_pb2
from fedsys.wire.countersign import NO_HEAD, Countersignature
from fedsys.wire.roster import RosterStatement
from server.home.state import CountersignatureRow, State
from server.job import Job

__all__ = ["Countersignatures"]

_log = logging.getLogger(__name__)
_MOST_COMPLAINTS = 10


class Countersignatures:
    """Those of this process's jobs; the last round's come when its job is over.

    They are kept in the database, and next to the ledger in ``countersignatures.jsonl``.

    Args:
        state: where they are kept.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._jobs: dict[bytes, _Book] = {}
        self._wrong: Counter[int] = Counter()

    def expect(
        self, name: bytes, *, id: str, terms: bytes, roster: RosterStatement, job: Job
    ) -> None:
        """Take those of a job from now on.

        Args:
            name: the job's 32 bytes, which are signed.
            id: the job's in the database.
            terms: digest of the terms that agents agreed to.
            roster: whose keys count.
            job: whose ledger is countersigned.
        """
        self._jobs[name] = _Book(state=self._state, id=id, terms=terms, roster=roster, job=job)

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
        found = Countersignature.from_wire(
            given, client=book.roster.nodes.index(node), key=book.roster.members[node]
        )
        wrong = book.contradiction(found)
        if wrong is None and not found.holds(given.job):
            wrong = "does not hold"
        if wrong is not None:
            self._complain(node, f"a countersignature for round {found.round} that {wrong}")
        elif not book.holds(found):
            row = CountersignatureRow(
                job=book.id, round=found.round, node=node, line=found.encode().decode()
            )
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

    def __init__(
        self, *, state: State, id: str, terms: bytes, roster: RosterStatement, job: Job
    ) -> None:
        self.id = id
        self._terms = terms
        self._arrivals = job.plan.sampling == "arrivals"
        self.roster = roster
        self._ledger = job.ledger
        self._path = job.folder.path / countersign.FILE
        self._kept: set[tuple[int, int]] = set()
        if self._path.exists():
            self._read()
        with state.transaction() as session:
            rows = session.query(CountersignatureRow).filter_by(job=id).all()
            stored = [Countersignature.parse(row.line.encode(), "a stored one") for row in rows]
        self.add([each for each in stored if not self.holds(each)])

    def contradiction(self, found: Countersignature) -> str | None:
        """What is wrong with a statement by the ledger; None if it belongs to it."""
        ends = self._ledger.concluded
        end = ends.get(found.round)
        if end is None or end.hash != found.ledger_head.hex():
            return "is of no line that concludes it"
        if found.terms != self._terms:
            return "is of other terms"
        if found.weights.hex() != end.model and not self._arrivals:
            return "states another model than was sent"
        if len(found.nonce) != NONCE_BYTES:
            return "has no nonce"
        before = self._ledger.concluded_by(found.previous.hex())
        if found.previous != NO_HEAD and not (before and before < found.round):
            return "follows a statement about another ledger"
        return None

    def holds(self, found: Countersignature) -> bool:
        """Whether this client's word on this round is kept."""
        return (found.round, found.client) in self._kept

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
