"""Long messages in pieces, each with a checksum; both ends use bounded memory.

A frame is a head of 28 bytes, integers little-endian, followed by its data::

    parcel 8 | size 8 | offset 8 | crc32 4 | data

It is not a protobuf message, because reading data from one copies it twice.

>>> assembler = Assembler(limit=100, least=4)
>>> [assembler.add(frame) for frame in split(0, b"x" * 10, chunk=4)]
[None, None, b'xxxxxxxxxx']
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedsys.errors import ProtocolError

__all__ = ["CHUNK", "MAX_CHUNK", "MAX_FRAME", "MIN_CHUNK", "Assembler", "Frame", "split"]

Limit = Callable[[bytes], int]

CHUNK = 1 << 18
"""Bytes of data in a frame; while a model is sent to many devices, each of them takes three times
this in memory."""
MAX_CHUNK = 1 << 20
"""Bytes of data in a frame of a parcel that goes to one receiver."""
MIN_CHUNK = 1 << 14
"""The fewest bytes of data in a frame, unless it is its parcel's last."""
MAX_FRAME = MAX_CHUNK + 4096
"""What either end accepts as one gRPC message."""
_HEAD = struct.Struct("<QQQI")
_BEGINS = 16
"""First bytes of a parcel, from which its kind, and so its limit, is known."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A piece of one parcel.

    Attributes:
        parcel: number of the parcel, from 0 in each direction of a session.
        size: bytes of the whole parcel.
        offset: offset of the data in the parcel.
        crc32: checksum of the data (ISO-HDLC, as in zlib).
        data: the piece.
    """

    parcel: int
    size: int
    offset: int
    crc32: int
    data: bytes | memoryview

    def encode(self) -> bytes:
        """The frame as it is sent."""
        head = _HEAD.pack(self.parcel, self.size, self.offset, self.crc32)
        return b"".join((head, self.data))

    @classmethod
    def decode(cls, message: bytes) -> Frame:
        """The frame that these bytes encode; its data is a view of them.

        Raises:
            ProtocolError: there are too few bytes.
        """
        if len(message) < _HEAD.size:
            raise ProtocolError(f"a frame of {len(message)} bytes: its head takes {_HEAD.size}")
        parcel, size, offset, crc32 = _HEAD.unpack_from(message)
        data = memoryview(message)[_HEAD.size :]
        return cls(parcel=parcel, size=size, offset=offset, crc32=crc32, data=data)


def split(parcel: int, data: bytes, *, chunk: int = CHUNK) -> Iterator[bytes]:
    """The encoded frames of one parcel, in order; an empty parcel is one empty frame."""
    view = memoryview(data)
    for offset in range(0, max(len(data), 1), chunk):
        piece = view[offset : offset + chunk]
        frame = Frame(
            parcel=parcel, size=len(data), offset=offset, crc32=zlib.crc32(piece), data=piece
        )
        yield frame.encode()


class Assembler:
    """Reassembles one direction's frames.

    Args:
        limit: size in bytes of the largest accepted parcel, or a function that returns it from a
            parcel's first bytes.
        passed: the same for the largest parcel that is skipped without being held, where it is not
            accepted: a message that was correct when it was sent, but no longer is.
        least: fewest bytes of a frame that is not its parcel's last; many small frames would cost
            more to hold than the data in them.

    Attributes:
        limit: as given; may be changed between parcels.
        parcels: number of complete parcels, accepted or not.
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
        self._parts: list[bytes | memoryview] = []
        self._have = 0

    def add(self, message: bytes) -> bytes | None:
        """Takes the next frame; returns the whole parcel once it is complete, unless skipped.

        Raises:
            ProtocolError: the frame is out of order, too large, too small or damaged; the session
                cannot continue.
        """
        frame = Frame.decode(message)
        count = len(frame.data)
        if frame.parcel != self.parcels or frame.offset != self._have:
            raise ProtocolError(
                f"frame of parcel {frame.parcel} at {frame.offset}: expected parcel "
                f"{self.parcels} at {self._have}"
            )
        if self._have == 0:
            self._begin(frame)
        if frame.size != self._size or self._have + count > self._size:
            raise ProtocolError(f"frames of parcel {frame.parcel} disagree about its size")
        if not count and self._size:
            raise ProtocolError(f"an empty frame of parcel {frame.parcel}")
        if count < min(self._least, self._size - self._have):
            raise ProtocolError(
                f"a frame of parcel {frame.parcel} has {count} bytes: at least "
                f"{self._least} are sent before the last"
            )
        if zlib.crc32(frame.data) != frame.crc32:
            raise ProtocolError(f"a frame of parcel {frame.parcel} fails its checksum")
        if self._held:
            self._parts.append(frame.data)
        self._have += count
        if self._have < self._size:
            return None
        parts, self._parts, self._have = self._parts, [], 0
        self.parcels += 1
        return b"".join(parts) if self._held else None

    def _begin(self, frame: Frame) -> None:
        begins = bytes(frame.data[:_BEGINS])
        limit = _of(self.limit, begins)
        self._size, self._held = frame.size, frame.size <= limit
        if not self._held and frame.size > _of(self._passed, begins):
            raise ProtocolError(f"a message of {frame.size} bytes: at most {limit} are accepted")


def _of(limit: int | Limit, begins: bytes) -> int:
    return limit if isinstance(limit, int) else limit(begins)
