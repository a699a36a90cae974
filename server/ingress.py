"""What every message of an agent passes before anybody works on it, whatever carried it here.

::

    ingress = Ingress(link, fleet)
    assembler = Assembler(limit=ingress.limit, passed=ingress.passed)   # a stream's frames
    message = ingress.take(whole)                                       # ProtocolError, or an `Up`
    await asyncio.sleep(ingress.wait())                                 # the agent is held back

Its size is judged by its kind before it is parsed, its kind by where the session stands, and its
texts are made fit for a log. Rates are kept for each node, over all its sessions.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from fedsys.errors import ProtocolError
from fedsys.printable import printable
from fedsys.wire import fleet_pb2
from fedsys.wire.limits import check_up, kind_of_up, up_limits
from fedsys.wire.refusals import reason_of
from secure_agg.prekeys import PREKEY_SIZE
from server.deployed.fleet import Fleet, Link, Said

__all__ = ["MOST_AT_ONCE", "Ingress"]

MOST_AT_ONCE = 32
"""Messages in one batch, where a host carries batches; an agent answers a handful."""
_LENGTHS = {
    "job": (0, 32),
    "terms": (32,),
    "ledger_head": (32,),
    "signature": (64,),
    "prekeys": tuple(PREKEY_SIZE.values()),
}


class Ingress:
    """The filter of one session.

    Args:
        link: the session's.
        fleet: whose events take what passes.
    """

    def __init__(self, link: Link, fleet: Fleet) -> None:
        self.greeted = False
        self._link = link
        self._fleet = fleet
        self._pace = fleet.pace_of(link.node)

    def limit(self, begins: bytes) -> int:
        """Bytes of a message that begins so, if it may come now."""
        return up_limits(self._link.answer).get(kind_of_up(begins), 0)

    def passed(self, begins: bytes) -> int:
        """Bytes of a message that begins so and came too late: it is let pass, and not held."""
        return self._fleet.largest_answer if kind_of_up(begins) == "answer" else 0

    def take(self, whole: bytes) -> fleet_pb2.Up:
        """Parse one message.

        Raises:
            ProtocolError: the session cannot go on.
        """
        kind = check_up(whole, up_limits(self._link.answer))
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
        self.greeted = True
        return message

    def hand_on(self, message: fleet_pb2.Up, size: int) -> None:
        """Give a message to whoever takes the fleet's events."""
        self._link.pending += 1
        self._fleet.events.put_nowait(Said(self._link.node, message, self._link, size))

    def wait(self) -> float:
        """Seconds for which the agent is not to be read: it has said more than it may."""
        return self._pace.take()
