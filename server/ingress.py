"""The filter that every message of an agent passes first, whichever host carried it.

::

    ingress = Ingress(link, fleet)
    assembler = Assembler(limit=ingress.limit, passed=ingress.passed)   # a stream's frames
    message = ingress.take(whole)                                       # an `Up`, or ProtocolError
    await asyncio.sleep(ingress.wait())                                 # the agent is held back

A message's kind bounds its size before it is parsed, the session's state decides which kinds are
allowed, and text in it is made safe for logs. Rates are limited for each node, over all its
sessions.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from fedsys.errors import ProtocolError
from fedsys.printable import printable
from fedsys.privacy.ledger.openings import NONCE_BYTES
from fedsys.wire import fleet_pb2
from fedsys.wire.limits import check_up, kind_of_up, up_limits
from fedsys.wire.refusals import reason_of
from secure_agg.prekeys import PREKEY_SIZE
from server.deployed.fleet import Fleet, Link, Said

__all__ = ["MOST_AT_ONCE", "Ingress"]

MOST_AT_ONCE = 32
"""Messages in one batch, where a host carries batches; an agent sends only a handful."""
_LENGTHS = {
    "job": (0, 32),
    "terms": (32,),
    "ledger_head": (32,),
    "previous": (32,),
    "weights": (32,),
    "nonce": (0, NONCE_BYTES),
    "signature": (64,),
    "prekeys": tuple(PREKEY_SIZE.values()),
    "roster_hash": (0, 32),
    "instance": (0, 16),
}


class Ingress:
    """The filter of one session.

    Args:
        link: The session.
        fleet: Receives, as events, the messages that pass.
    """

    def __init__(self, link: Link, fleet: Fleet) -> None:
        self.greeted = False
        self._link = link
        self._fleet = fleet
        self._pace = fleet.pace_of(link.node)

    def limit(self, begins: bytes) -> int:
        """Largest size in bytes of a message that begins so; 0 if it is not allowed now."""
        return self._limits.get(kind_of_up(begins), 0)

    @property
    def _limits(self) -> Mapping[str, int]:
        return up_limits(self._link.answer, rosters=self._link.rosters)

    def passed(self, begins: bytes) -> int:
        """Largest size in bytes of a late message that begins so: it is read and discarded."""
        return self._fleet.largest_answer if kind_of_up(begins) == "answer" else 0

    def take(self, whole: bytes) -> fleet_pb2.Up:
        """Parse one message.

        Raises:
            ProtocolError: The message is not allowed; the session cannot go on.
        """
        kind = check_up(whole, self._limits)
        self._fleet.counted("in", kind, len(whole))
        if not self.greeted and kind != "hello":
            raise ProtocolError("the first message is not a greeting")
        if self.greeted and kind == "hello":
            raise ProtocolError("an unexpected message: hello")
        try:
            message: fleet_pb2.Up = fleet_pb2.Up.FromString(whole)
        except DecodeError:
            raise ProtocolError(f"a {kind} that cannot be read") from None
        content = getattr(message, kind)
        for name, lengths in _LENGTHS.items():
            found = getattr(content, name, ())
            for value in (found,) if isinstance(found, bytes) else found:
                if len(value) not in lengths:
                    raise ProtocolError(f"a {kind} whose {name} has {len(value)} bytes")
        if kind == "refusal":
            content.reason = reason_of(content)
        elif kind == "hello":
            content.version = printable(content.version, 64)
            if any(len(each.job) != 32 for each in content.jobs):
                raise ProtocolError("a hello that names a job by other than 32 bytes")
        self.greeted = True
        return message

    def hand_on(self, message: fleet_pb2.Up, size: int) -> None:
        """Queue a message among the fleet's events."""
        self._link.pending += 1
        self._fleet.events.put_nowait(Said(self._link.node, message, self._link, size))

    def wait(self) -> float:
        """Count one message; seconds to wait before reading on, if the agent sends too fast."""
        return self._pace.take()
