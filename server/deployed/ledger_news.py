"""What each device is told of a job's ledger: the lines that it lacks, then how its round ended."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedsys.privacy import Ledger
from fedsys.wire import fleet_pb2
from fedsys.wire.limits import MAX_LINES
from server.deployed.fleet import Devices

__all__ = ["LedgerNews"]

_AT_ONCE = 8 << 20
"""Bytes of lines that a device is sent with one outcome. One that lacks more countersigns later."""
_BLOCK = 1 << 20


class LedgerNews:
    """Sends lines of one job's ledger. They are on disk before anybody is told of them.

    Args:
        ledger: the job's ledger.
        path: its file.
        job: the job's 32 bytes.
        fleet: the sessions.
        members: node of each client number.
        prekeys: how many sealing keys of each of these nodes are held.
    """

    def __init__(
        self,
        ledger: Ledger,
        path: Path,
        *,
        job: bytes,
        fleet: Devices,
        members: tuple[int, ...],
        prekeys: Callable[[Sequence[int]], Mapping[int, int]],
    ) -> None:
        self._ledger = ledger
        self._path = path
        self._job = job
        self._fleet = fleet
        self._members = members
        self.prekeys = prekeys
        self._ends = array("Q", [0])
        """Where each line begins, and the last one ends."""
        self._held: dict[int, int] = {}
        self._owed: dict[int, fleet_pb2.Outcome] = {}

    def consented(self, client: int, lines: int) -> None:
        """A client said how many lines it has; an outcome that it missed follows now.

        Args:
            client: the client, which agreed to the job's terms.
            lines: as it said.
        """
        self._held[client] = min(lines, len(self._ledger.tree))
        owed = self._owed.pop(client, None)
        if owed is not None:
            node = self._members[client]
            owed.prekeys = self.prekeys([node])[node]
            self.tell(client, owed)

    def arrived(self, client: int) -> None:
        """A client opened another session, perhaps with another process: what it has is not known
        before it agrees to the terms there."""
        self._held.pop(client, None)

    def knows(self, client: int) -> bool:
        """Whether a client said in its session how many lines it has."""
        return client in self._held

    def owe(self, client: int, outcome: fleet_pb2.Outcome) -> None:
        """A client of a round is not there: it is told once it comes back and agrees again."""
        self._owed[client] = outcome

    def tell(self, client: int, outcome: fleet_pb2.Outcome) -> None:
        """Send a client that is there the lines up to its round's end, then the outcome.

        Args:
            client: the client.
            outcome: of a round that the ledger concludes; without a head, no lines are sent.
        """
        node = self._members[client]
        if outcome.ledger_head and client in self._held:
            self._send_lines(client, node, self._ledger.concluded[outcome.round].seq + 1)
        self._fleet.send(node, fleet_pb2.Down(outcome=outcome))

    def _send_lines(self, client: int, node: int, stop: int) -> None:
        """Lines from the first that a client lacks up to `stop`, or as many as fit."""
        self._index(stop)
        first, sent = self._held[client], 0
        while first < stop and sent < _AT_ONCE:
            last = first + 1
            while last < stop and self._ends[last + 1] - self._ends[first] <= MAX_LINES:
                last += 1
            raw = self._read(self._ends[first], self._ends[last])
            self._fleet.send(node, fleet_pb2.Down(lines=fleet_pb2.Lines(job=self._job, lines=raw)))
            first, sent = last, sent + len(raw)
        self._held[client] = first

    def _index(self, stop: int) -> None:
        """Find where lines end, up to `stop` of them."""
        if len(self._ends) > stop:
            return
        with self._path.open("rb") as file:
            file.seek(self._ends[-1])
            at = self._ends[-1]
            while block := file.read(_BLOCK):
                found = block.find(b"\n")
                while found >= 0:
                    self._ends.append(at + found + 1)
                    found = block.find(b"\n", found + 1)
                at += len(block)

    def _read(self, start: int, stop: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)
