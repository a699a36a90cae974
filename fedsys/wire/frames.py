"""Long messages in pieces, each with a checksum; both ends hold bounded memory.

>>> frames = [fleet_pb2.Frame.FromString(f) for f in split(0, b"x" * 10, chunk=4)]
>>> assembler = Assembler(limit=100, least=4)
>>> [assembler.add(frame) for frame in frames]
[None, None, b'xxxxxxxxxx']
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from fedsys.errors import ProtocolError
from fedsys.wire import fleet_pb2

__all__ = ["CHUNK", "MAX_FRAME", "MIN_CHUNK", "Assembler", "split"]

Limit = Callable[[bytes], int]

CHUNK = 1 << 18
"""Bytes of data in a frame; a model on its way to many is held that often, thrice each time."""
MIN_CHUNK = 1 << 14
"""What a frame carries at least, unless it is its parcel's last."""
MAX_FRAME = (1 << 20) + 4096
"""What either end accepts as one gRPC message."""


def split(parcel: int, data: bytes, *, chunk: int = CHUNK) -> Iterator[bytes]:
    """The serialised frames of one parcel, in order; an empty parcel is one empty frame."""
    view = memoryview(data)
    for offset in range(0, max(len(data), 1), chunk):
        piece = bytes(view[offset : offset + chunk])
        frame = fleet_pb2.Frame(
            parcel=parcel, size=len(data), offset=offset, crc32=zlib.crc32(piece), data=piece
        ).SerializeToString()
        del piece  # not held while the frame is on its way
        yield frame


class Assembler:
    """Puts one direction's frames together again.

    Args:
        limit: bytes of the largest parcel that is accepted, or says so by a parcel's first bytes.
        passed: the same of the largest parcel that is let pass without being held, where it is not
            accepted: what was right to send when it was sent, and is not any more.
        least: bytes of a frame that is not its parcel's last; many small ones would cost more to
            hold than what they carry.

    Attributes:
        limit: may be changed between parcels.
        parcels: that are complete, accepted or not.
    """

    def __init__(
        self, *, limit: int | Limit, passed: int | Limit = 0, least: int = MIN_CHUNK
    ) -> None:
        self.limit = limit
        self.parcels = 0
        self._passed = passed
        self._least = least
        self._size = 0
        self._held = True
        self._parts: list[bytes] = []
        self._have = 0

    def add(self, frame: fleet_pb2.Frame) -> bytes | None:
        """Take the next frame; the whole parcel once it is complete, unless it was let pass.

        Raises:
            ProtocolError: out of order, too large, in too small pieces, or damaged; the session
                cannot go on.
        """
        if frame.parcel != self.parcels or frame.offset != self._have:
            raise ProtocolError(
                f"frame of parcel {frame.parcel} at {frame.offset}: expected parcel "
                f"{self.parcels} at {self._have}"
            )
        if self._have == 0:
            self._begin(frame)
        if frame.size != self._size or self._have + len(frame.data) > self._size:
            raise ProtocolError(f"frames of parcel {frame.parcel} disagree about its size")
        if not frame.data and self._size:
            raise ProtocolError(f"an empty frame of parcel {frame.parcel}")
        if len(frame.data) < min(self._least, self._size - self._have):
            raise ProtocolError(
                f"a frame of parcel {frame.parcel} has {len(frame.data)} bytes: at least "
                f"{self._least} are sent before the last"
            )
        if zlib.crc32(frame.data) != frame.crc32:
            raise ProtocolError(f"a frame of parcel {frame.parcel} fails its checksum")
        if self._held:
            self._parts.append(frame.data)
        self._have += len(frame.data)
        if self._have < self._size:
            return None
        parts, self._parts, self._have = self._parts, [], 0
        self.parcels += 1
        if not self._held:
            return None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _begin(self, frame: fleet_pb2.Frame) -> None:
        limit = _of(self.limit, frame.data)
        self._size, self._held = frame.size, frame.size <= limit
        if not self._held and frame.size > _of(self._passed, frame.data):
            raise ProtocolError(f"a message of {frame.size} bytes: at most {limit} are accepted")


def _of(limit: int | Limit, begins: bytes) -> int:
    return limit if isinstance(limit, int) else limit(begins)
