"""Where ciphertexts wait while they may still have to be taken out of the sum again."""

from __future__ import annotations

import io
import tempfile
import weakref
from typing import Final

from secure_agg.errors import StateError

__all__ = ["IN_MEMORY", "Spool"]

IN_MEMORY: Final = 1 << 26
"""Bytes of uploads that one sum keeps in memory, 64 MiB; what comes after them goes to a file."""


class Spool:
    """Byte strings by id, in memory up to 64 MiB and in an unnamed temporary file beyond.

    The file is in the folder that ``TMPDIR`` names, `tempfile`'s default otherwise. It holds
    ciphertexts as they arrived from the network, and no secret.

    In memory nothing is copied: a view of a message keeps the message, which is counted in full.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, bytes | bytearray | memoryview]] = {}
        self._held = 0
        self._file: io.FileIO | None = None
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0

    def put(self, id_: int, data: bytes | bytearray | memoryview) -> None:
        """Keep ``data``, which must not change any more, under an id that is not there yet.

        Raises:
            StateError: The file cannot be written.
        """
        whole = data.obj if isinstance(data, memoryview) else data
        size = memoryview(whole).nbytes
        if self._held + size <= IN_MEMORY:
            self._kept[id_] = size, data
            self._held += size
            return
        try:
            file = self._opened()
            file.seek(self._end)
            rest = memoryview(data)
            while rest:  # an unbuffered file may take less than it is given
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise StateError(f"the spool of uploads cannot be written: {error.strerror}") from None
        self._places[id_] = (self._end, len(data))
        self._end += len(data)

    def take(self, id_: int) -> bytes | bytearray | memoryview:
        """Return what is kept under an id, and forget it.

        Raises:
            StateError: The file cannot be read.
        """
        if id_ in self._kept:
            size, kept = self._kept.pop(id_)
            self._held -= size
            return kept
        start, size = self._places.pop(id_)
        data = bytearray(size)
        rest = memoryview(data)
        try:
            file = self._opened()
            file.seek(start)
            while rest and (count := file.readinto(rest)):
                rest = rest[count:]
        except OSError as error:
            raise StateError(f"the spool of uploads cannot be read: {error.strerror}") from None
        if rest:
            raise StateError("the spool of uploads was cut short")
        return data

    def close(self) -> None:
        """Forget everything and give the space back."""
        if self._file is not None:
            self._file.close()
        self._kept.clear()
        self._places.clear()

    def _opened(self) -> io.FileIO:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)  # a round that is given up is just let go of
        return self._file
