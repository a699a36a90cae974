"""Where ciphertexts wait while they may still have to be taken out of the sum again."""

from __future__ import annotations

import tempfile
import weakref
from typing import Final

from secure_agg.errors import StateError

__all__ = ["Spool"]

_IN_MEMORY: Final = 1 << 24


class Spool:
    """Byte strings by id, in memory up to 16 MiB and in an unnamed temporary file beyond.

    The file is in the folder that ``TMPDIR`` names, `tempfile`'s default otherwise. It holds
    ciphertexts as they arrived from the network, and no secret.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, self._file.close)  # a round that is given up is just let go of
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0

    def put(self, id_: int, data: bytes | bytearray | memoryview) -> None:
        """Keep ``data`` under an id that is not there yet.

        Raises:
            StateError: The file cannot be written.
        """
        try:
            self._file.seek(self._end)
            self._file.write(data)
        except OSError as error:
            raise StateError(f"the spool of uploads cannot be written: {error.strerror}") from None
        self._places[id_] = (self._end, len(data))
        self._end += len(data)

    def take(self, id_: int) -> bytes:
        """Return what is kept under an id, and forget it.

        Raises:
            StateError: The file cannot be read.
        """
        start, size = self._places.pop(id_)
        try:
            self._file.seek(start)
            data = self._file.read(size)
        except OSError as error:
            raise StateError(f"the spool of uploads cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise StateError("the spool of uploads was cut short")
        return data

    def __del__(self) -> None:
        self._file.close()

    def close(self) -> None:
        """Forget everything and give the space back."""
        self._file.close()
        self._places.clear()
