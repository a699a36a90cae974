"""Who is connected, and the queues between them and the code that runs jobs; no sockets.

A host makes a `Link` for each open session and feeds the fleet's events; each job that runs sends
to its part of the fleet and reads what happens there. Parts do not overlap: a device serves one job
at a time. Everything lives on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType

from fedsys.wire import fleet_pb2
from fedsys.wire.limits import kind_of_down
from server.home.pki import Peer
from server.pace import Pace

__all__ = ["Arrived", "Devices", "Event", "Fleet", "Left", "Link", "Part", "Said"]

_log = logging.getLogger(__name__)
Counted = Callable[[str, str, int], None]
_MOST_HELD = 16 << 20
"""Bytes of messages that wait for one job beyond which its devices are not read further."""
_MOST_QUEUED = 16 << 20
"""Bytes that wait for an agent, besides three of the largest message, before it is given up: one
that reads nothing would otherwise hold every round's model."""
_MESSAGES = 400
_MESSAGES_A_SECOND = 100.0
"""What an agent may say: several times what rounds that take milliseconds ask of it."""

_MOST_WARNINGS = 10_000


class _Outgoing(asyncio.Queue[bytes | None]):
    """Counts the bytes it holds.

    Attributes:
        held: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = 0

    def _put(self, item: bytes | None) -> None:
        super()._put(item)
        self.held += len(item or b"")

    def _get(self) -> bytes | None:
        item = super()._get()
        self.held -= len(item or b"")
        return item


@dataclass(eq=False)
class Link:
    """One agent's open session.

    Attributes:
        node: whose certificate it was opened with.
        version: of the agent's software.
        peer: its certificate.
        roster: newest version of the roster that was sent to it.
        outgoing: serialised `Down` messages; None ends the session.
        answer: bytes of the largest answer in the open round that it is in; 0 where it is in none.
        overrun: set once more waits for it than an agent that reads would let wait.
        pending: messages from this agent that nobody has taken out of the events yet.
        counted: told of every message: its direction (``in``, ``out``), kind and bytes.
        rosters: whether it was asked for signed lists that this coordinator has lost.
        instance: tells the agent's process from another one with the same keys; empty where its
            host cannot.
        address: where the agent is, for people; may be empty.
        repeats_offers: whether the host sends a job's offer along with each of its invitations, so
            that a device that agreed serves in every later session too.
        over: set once the session has ended.
    """

    node: int
    version: str = ""
    peer: Peer | None = None
    roster: int = 0
    outgoing: _Outgoing = field(default_factory=_Outgoing)
    answer: int = 0
    overrun: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    pending: int = 0
    counted: Counted = field(default=lambda _direction, _kind, _size: None, repr=False)
    rosters: bool = False
    instance: bytes = b""
    address: str = ""
    repeats_offers: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _largest: int = field(default=0, repr=False)

    def send(self, message: fleet_pb2.Down) -> None:
        """Queue a message."""
        self.send_bytes(message.SerializeToString())

    def send_bytes(self, message: bytes) -> None:
        """Queue a serialised message."""
        self.counted("out", kind_of_down(message), len(message))
        self.outgoing.put_nowait(message)
        self._largest = max(self._largest, len(message))
        if self.outgoing.held > _MOST_QUEUED + 3 * self._largest:
            self.overrun.set()

    async def ended(self, seconds: float) -> None:
        """Wait for the session's end, but no longer than so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.over.wait()

    def close(self, reason: fleet_pb2.Goodbye.Reason, text: str) -> None:
        """Say why, then end the session."""
        self.send(fleet_pb2.Down(goodbye=fleet_pb2.Goodbye(reason=reason, text=text)))
        self.outgoing.put_nowait(None)


@dataclass(frozen=True)
class Arrived:
    """A node opened a session."""

    node: int


@dataclass(frozen=True)
class Left:
    """A node's session ended."""

    node: int


@dataclass(frozen=True)
class Said:
    """A node sent a message.

    Attributes:
        node: who.
        message: what.
        link: where its host counts what is pending.
        size: bytes that it takes while it waits.
    """

    node: int
    message: fleet_pb2.Up
    link: Link | None = field(default=None, compare=False, repr=False)
    size: int = field(default=0, compare=False, repr=False)


Event = Arrived | Left | Said


class _Events(asyncio.Queue[Event]):
    """Counts the bytes it holds; counts down what a link has pending when its message is taken.

    Args:
        owners: the queue of each node that a job has; what happens there is put into that one.

    Attributes:
        room: set while it does not hold too much.
    """

    def __init__(self, owners: Mapping[int, _Events] = MappingProxyType({})) -> None:
        super().__init__()
        self.room = asyncio.Event()
        self.room.set()
        self._owners = owners
        self._held = 0

    def put_nowait(self, item: Event) -> None:
        owner = self._owners.get(item.node)
        if owner is None:
            super().put_nowait(item)
        else:
            owner.put_nowait(item)

    def _put(self, item: Event) -> None:
        super()._put(item)
        if isinstance(item, Said):
            self._hold(item.size)

    def _get(self) -> Event:
        event = super()._get()
        if isinstance(event, Said):
            self._hold(-event.size)
            if event.link is not None:
                event.link.pending -= 1
        return event

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > _MOST_HELD:
            self.room.clear()
        else:
            self.room.set()


class Devices(ABC):
    """What a job sees of a fleet.

    Attributes:
        clock: monotonic seconds; whatever waits for devices waits by this clock.
        links: open sessions by node, of the whole fleet.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        links: dict[int, Link],
        gone: dict[int, float],
        start: float,
        events: _Events,
    ) -> None:
        self.clock = clock
        self.links = links
        self._gone = gone
        self._start = start
        self._events = events

    @property
    def events(self) -> asyncio.Queue[Event]:
        """What happened, in order."""
        return self._events

    async def next_event(self, seconds: float) -> Event | None:
        """Take the next event; None where there was none in time.

        Not `asyncio.wait_for`: before Python 3.12 that swallows a cancellation which comes together
        with an event, and anyone who was to stop waits on.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self.events.get()
        except TimeoutError:
            return None

    def send(self, node: int, message: fleet_pb2.Down) -> bool:
        """Queue a message for a node; False where it is not connected."""
        link = self.links.get(node)
        if link is None:
            return False
        link.send(message)
        return True

    def send_bytes(self, node: int, message: bytes) -> bool:
        """Queue a serialised message, which many nodes may share."""
        link = self.links.get(node)
        if link is None:
            return False
        link.send_bytes(message)
        return True

    def absent_since(self, node: int) -> float | None:
        """When a node was seen last by this clock; None while it is connected."""
        if node in self.links:
            return None
        return self._gone.get(node, self._start)

    @abstractmethod
    def allow(self, bytes_each: int, nodes: Iterable[int]) -> None:
        """Set what the agents of an open round may send as one answer, those that come back later
        too; no other may send more than little. With no nodes no round is open."""


class Fleet(Devices):
    """All sessions.

    Args:
        clock: monotonic seconds.
        counted: told of every message that passes.

    Attributes:
        clock: as given.
        links: open sessions by node.
        largest_answer: bytes of the largest that any round ever allowed.
        copies: by node, what its operator should know of a second process with its keys.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        counted: Counted = lambda _direction, _kind, _size: None,
    ) -> None:
        self._owners: dict[int, _Events] = {}
        super().__init__(
            clock=clock, links={}, gone={}, start=clock(), events=_Events(self._owners)
        )
        self.counted = counted
        self._answers: dict[int, int] = {}
        self._paces: dict[int, Pace] = {}
        self._warned: set[tuple[int, bytes]] = set()
        self.largest_answer = 0
        self.copies: dict[int, str] = {}

    def part(self, nodes: Iterable[int]) -> Part:
        """Give these nodes to a job, whose alone they are until it releases them.

        Raises:
            ValueError: another job has one of them.
        """
        wanted = frozenset(nodes)
        if taken := wanted & self._owners.keys():
            raise ValueError(f"nodes {sorted(taken)} serve another job")
        events = _Events()
        self._owners.update(dict.fromkeys(wanted, events))
        return Part(self, wanted, events)

    def release(self, part: Part) -> None:
        """Take a part back; what happened there and nobody took becomes the fleet's."""
        for node in part.nodes:
            del self._owners[node]
        while not part.events.empty():
            event = part.events.get_nowait()
            if isinstance(event, Said) and event.link is not None:
                event.link.pending += 1  # it still waits
            self.events.put_nowait(event)

    def rival_of(self, link: Link) -> Link | None:
        """The open session of another process with the same node's keys: the device's folder was
        copied, or its process was started again and its old connection is not known to be dead."""
        older = self.links.get(link.node)
        if older is None or not older.instance or older.instance == link.instance:
            return None
        return older

    def warn_of_copy(self, link: Link, first: Link) -> str:
        """Tell operator and owner, once for each process, that two hold one device's keys.

        Args:
            link: of the process that came later.
            first: of the one that is connected.

        Returns:
            What the later one is told.
        """
        where = f"from {link.address or 'elsewhere'}"
        text = (
            f"node {link.node}: a second agent with this device's keys tries to connect {where}, "
            f"while the first is connected from {first.address or 'elsewhere'}: either its folder "
            f"was copied, so revoke it, or its network was cut and it will be back in a minute"
        )
        if (link.node, link.instance) not in self._warned:
            if len(self._warned) >= _MOST_WARNINGS:
                self._warned.clear()
            self._warned.add((link.node, link.instance))
            self.copies[link.node] = text
            _log.warning("%s", text)
            first.send(fleet_pb2.Down(notice=fleet_pb2.Notice(text=text)))
        return (
            f"another agent with this device's keys is connected, from {first.address}: only one "
            f"may be; if it is not yours, its keys were copied: tell the coordinator's operator"
        )

    def open(self, link: Link) -> None:
        """Register a session; an older one of the same node is ended."""
        older = self.links.get(link.node)
        if older is not None:
            older.close(fleet_pb2.Goodbye.REPLACED, "another session of this node was opened")
        link.answer = self._answers.get(link.node, 0)
        self.links[link.node] = link
        self._gone.pop(link.node, None)
        self.events.put_nowait(Arrived(link.node))

    def closed(self, link: Link) -> None:
        """A session ended."""
        link.over.set()
        if self.links.get(link.node) is link:
            del self.links[link.node]
            self._gone[link.node] = self.clock()
            self.events.put_nowait(Left(link.node))

    async def room(self, node: int | None = None) -> None:
        """Wait while so much of a node's job, or of any, is waiting to be taken that a host should
        not read on.

        Anyone who takes the events waits for no message that is still to be read, so that this
        ends.
        """
        if node is not None:
            await self._owners.get(node, self._events).room.wait()
            return
        for events in {self._events, *self._owners.values()}:
            await events.room.wait()

    def allow(
        self, bytes_each: int, nodes: Iterable[int], *, of: frozenset[int] | None = None
    ) -> None:
        """As `Devices.allow` says.

        Args:
            bytes_each: of the largest answer.
            nodes: members of the open round.
            of: nodes of the part in which it is; nothing changes for others. None for all nodes.
        """
        kept = {} if of is None else {n: each for n, each in self._answers.items() if n not in of}
        self._answers = {**kept, **dict.fromkeys(nodes, bytes_each)}
        self.largest_answer = max(self.largest_answer, bytes_each)
        for node, link in self.links.items():
            link.answer = self._answers.get(node, 0)

    def pace_of(self, node: int) -> Pace:
        """How fast a node may send messages, over all its sessions."""
        if node not in self._paces:
            self._paces[node] = Pace(burst=_MESSAGES, a_second=_MESSAGES_A_SECOND, clock=self.clock)
        return self._paces[node]


class Part(Devices):
    """The devices of one job.

    Args:
        fleet: which they are of.
        nodes: theirs.
        events: what happens there.

    Attributes:
        nodes: as given.
    """

    def __init__(self, fleet: Fleet, nodes: frozenset[int], events: _Events) -> None:
        super().__init__(
            clock=fleet.clock,
            links=fleet.links,
            gone=fleet._gone,
            start=fleet._start,
            events=events,
        )
        self.nodes = nodes
        self._fleet = fleet

    def allow(self, bytes_each: int, nodes: Iterable[int]) -> None:
        """As `Devices.allow` says; other jobs' rounds go on as they are."""
        self._fleet.allow(bytes_each, nodes, of=self.nodes)
