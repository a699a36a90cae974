"""Long messages in pieces, each with a checksum; both ends hold bounded memory.

>>> frames = [fleet_pb2.Frame.FromString(f) for f in split(0, b"x" * 10, chunk=4)]
>>> assembler = Assembler(limit=100)
>>> [assembler.add(frame) for frame in frames]
[None, None, b'xxxxxxxxxx']
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from fedsys.errors import ProtocolError
from fedsys.wire import fleet_pb2

__all__ = ["CHUNK", "MAX_FRAME", "Assembler", "split"]

CHUNK = 1 << 18
"""Bytes of data in a frame; a model on its way to many is held that often, thrice each time."""
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

    Attributes:
        limit: bytes of the largest parcel that is accepted; may be changed between parcels.
    """

    def __init__(self, *, limit: int) -> None:
        self.limit = limit
        self._next = 0
        self._size = 0
        self._parts: list[bytes] = []
        self._have = 0

    def add(self, frame: fleet_pb2.Frame) -> bytes | None:
        """Take the next frame; the whole parcel once it is complete.

        Raises:
            ProtocolError: out of order, too large, or damaged; the session cannot go on.
        """
        if frame.parcel != self._next or frame.offset != self._have:
            raise ProtocolError(
                f"frame of parcel {frame.parcel} at {frame.offset}: expected parcel {self._next} "
                f"at {self._have}"
            )
        if self._have == 0:
            if frame.size > self.limit:
                raise ProtocolError(
                    f"a message of {frame.size} bytes: at most {self.limit} are accepted"
                )
            self._size = frame.size
        if frame.size != self._size or self._have + len(frame.data) > self._size:
            raise ProtocolError(f"frames of parcel {frame.parcel} disagree about its size")
        if not frame.data and self._size:
            raise ProtocolError(f"an empty frame of parcel {frame.parcel}")
        if zlib.crc32(frame.data) != frame.crc32:
            raise ProtocolError(f"a frame of parcel {frame.parcel} fails its checksum")
        self._parts.append(frame.data)
        self._have += len(frame.data)
        if self._have < self._size:
            return None
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._have = [], 0
        self._next += 1
        return whole
