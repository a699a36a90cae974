"""Reads untrusted ``.npz`` files: bounded before they are read, never unpickled.

NumPy's own reader allocates what an array's header claims before it reads any data, inflates
whatever the archive holds, and lets a dozen kinds of error escape from damaged files. Here every
size is taken from the archive's directory, an array must fill its entry exactly, and every fault is
a ValueError.

>>> import io
>>> file = io.BytesIO()
>>> np.savez(file, x=np.arange(3, dtype=np.uint8))
>>> with open_arrays(file, most=1 << 20) as arrays:
...     arrays.names, arrays.read("x")
(('x',), array([0, 1, 2], dtype=uint8))
"""

from __future__ import annotations

import ast
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arrays", "check_directory", "open_arrays"]

_MOST_DIRECTORY = 1 << 18
"""The most bytes of an archive's directory: a few thousand entries; each becomes an object."""
_MOST_RATIO = 32
"""The most that compressed arrays may unpack to, as a multiple of their file's size."""
_ALWAYS = 64 << 20
"""Bytes that even a small file may unpack to."""
_MOST_HEADER = 4096
_MOST_NAME = 200
_PIECE = 1 << 20
_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")
_MALFORMED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class Arrays:
    """The arrays of an open file.

    Attributes:
        names: the arrays' names, in the file's order.
    """

    def __init__(self, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> None:
        self._archive = archive
        self._entries = entries
        self.names = tuple(entries)

    def read(self, name: str) -> NDArray[Any]:
        """One array of numbers or booleans.

        Raises:
            ValueError: there is no array of that name, or it is damaged.
            OSError: the file cannot be read.
        """
        if name not in self._entries:
            raise ValueError(f"no array {name!r}")
        entry = self._entries[name]
        try:
            with self._archive.open(entry) as member:
                shape, dtype, column_major, begins = _header(member)
                count = math.prod(shape)
                if begins + count * dtype.itemsize != entry.file_size:
                    raise ValueError("its shape does not match its entry's size")
                array = np.empty(count, dtype=dtype)
                _fill(array.data.cast("B") if count else memoryview(b""), member)
            return array.reshape(shape, order="F" if column_major else "C")
        except _MALFORMED as error:
            raise ValueError(f"array {name!r}: {_text(error)}") from None


@contextmanager
def open_arrays(file: IO[bytes], *, most: int, compressed: bool = False) -> Iterator[Arrays]:
    """The arrays of an ``.npz`` file.

    Args:
        file: a seekable file.
        most: the most bytes that all arrays may take together.
        compressed: whether compressed arrays are read too.

    Raises:
        ValueError: it is not such a file, or holds more than is read.
        OSError: it cannot be read.
    """
    try:
        size = file.seek(0, os.SEEK_END)
        check_directory(file, size, most=_MOST_DIRECTORY)
        archive = zipfile.ZipFile(file)
    except _MALFORMED as error:
        raise ValueError(_text(error)) from None
    with archive:
        yield Arrays(archive, _entries(archive, size, most=most, compressed=compressed))


def check_directory(file: IO[bytes], size: int, *, most: int) -> None:
    """Bounds an archive's directory before `zipfile` parses it into objects.

    Args:
        file: a seekable file.
        size: its length.
        most: the most bytes of a directory.

    Raises:
        ValueError: the directory is longer, or the file is no plain archive.
        OSError: it cannot be read.
    """
    tail = min(size, 22 + 20 + 56)
    file.seek(size - tail)
    found = file.read(tail)
    end = found[-22:]
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:22] != bytes(2):
        raise ValueError("no archive, or one that is cut off")
    length = int.from_bytes(end[12:16], "little")
    if found[-42:-38] == b"PK\x06\x07" and found[-98:-94] == b"PK\x06\x06":
        # ZIP64: the true length is in the record before. Without one, `zipfile` takes the other.
        length = int.from_bytes(found[-58:-50], "little")
    if length > most:
        raise ValueError(f"a directory of {length} bytes; at most {most} are read")


def _entries(
    archive: zipfile.ZipFile, size: int, *, most: int, compressed: bool
) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if not name.isprintable() or len(name) > _MOST_NAME:
            raise ValueError("an array with an invalid name")
        if name in entries:
            raise ValueError(f"two arrays {name!r}")
        if entry.flag_bits & 1:
            raise ValueError(f"array {name!r}: encrypted")
        stored = entry.compress_type == zipfile.ZIP_STORED
        if not stored and not (compressed and entry.compress_type == zipfile.ZIP_DEFLATED):
            raise ValueError(f"array {name!r}: compressed in an unsupported way")
        if stored and entry.file_size != entry.compress_size:
            raise ValueError(f"array {name!r}: its sizes disagree")
        total += entry.file_size
        entries[name] = entry
    if total > most:
        raise ValueError(f"it unpacks to {total} bytes; at most {most} are read")
    if total > max(_ALWAYS, _MOST_RATIO * size):
        raise ValueError(
            f"{size} bytes would unpack to {total}, over {_MOST_RATIO} times as many; store it "
            f"uncompressed, with numpy.savez"
        )
    return entries


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Shape, type, order and data offset of an array."""
    magic = member.read(8)
    width = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}.get(magic)
    if width is None:
        raise ValueError("not an array of a supported version")
    length = int.from_bytes(member.read(width), "little")
    if length > _MOST_HEADER:
        raise ValueError(f"a header of {length} bytes; at most {_MOST_HEADER} are read")
    text = member.read(length)
    if len(text) != length:
        raise ValueError("cut off")
    body = ast.literal_eval(text.decode("ascii").strip())
    if not isinstance(body, dict) or body.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("a malformed header")
    kind, column_major, shape = body["descr"], body["fortran_order"], body["shape"]
    if type(kind) is not str or _DTYPE.fullmatch(kind) is None:
        raise ValueError("an array of neither numbers nor booleans")
    if type(column_major) is not bool or type(shape) is not tuple or len(shape) > 32:
        raise ValueError("a malformed header")
    if not all(type(each) is int and each >= 0 for each in shape):
        raise ValueError("an impossible shape")
    return shape, np.dtype(kind), column_major, 8 + width + length


def _fill(target: memoryview, member: IO[bytes]) -> None:
    """Fills `target` exactly; the archive's checksum is compared at the end."""
    at = 0
    while at < len(target):
        piece = member.read(min(_PIECE, len(target) - at))
        if not piece:
            raise ValueError("cut off")
        target[at : at + len(piece)] = piece
        at += len(piece)


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
