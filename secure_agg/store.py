"""Where a machine's state survives a crash: written before the message that it stands for is sent.

A store holds one blob. A member has two. The *durable* one, on a disk, holds marks and no secret:
what this member must never do twice. The *volatile* one, in memory or on a tmpfs that a reboot
empties, belongs to `SealingKeys` and holds the private sealing keys and the work of open rounds.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

from secure_agg.errors import StateError

__all__ = ["FileStore", "MemoryStore", "Store", "pack_fields", "present", "unpack_fields"]

_CHECKSUM: Final = 32
_LENGTH: Final = 8
T = TypeVar("T")


class Store(Protocol):
    """One durable blob."""

    def load(self) -> bytes | None:
        """Return the blob, or None before the first `save`.

        Raises:
            StateError: It cannot be read.
        """

    def save(self, data: bytes) -> None:
        """Replace the blob; it is durable, wholly or not at all, when this returns.

        Raises:
            StateError: It cannot be written.
        """


class MemoryStore:
    """A store for tests and for hosts with their own database.

    Attributes:
        data: The blob, or None.
    """

    def __init__(self, data: bytes | None = None) -> None:
        self.data = data

    def load(self) -> bytes | None:
        """Return the blob."""
        return self.data

    def save(self, data: bytes) -> None:
        """Replace the blob."""
        self.data = data


class FileStore:
    """One file, mode 0600, replaced atomically and flushed to the disk with its folder.

    Whatever lies under the names that it writes, a link or a file that others can read, is
    replaced and never written through: the bytes are secret.

    Args:
        path: Of the file, in a folder that is there; ``.new`` next to it is replaced. Neither is
            followed if it is a symbolic link.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def load(self) -> bytes | None:
        """Return the file's content, or None where there is no file.

        Raises:
            StateError: It is there and cannot be read.
        """
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise StateError(f"{self.path}: cannot be read: not a regular file")
                with os.fdopen(handle, "rb", closefd=False) as file:
                    return file.read()
            finally:
                os.close(handle)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{self.path}: cannot be read: {error.strerror}") from error

    def save(self, data: bytes) -> None:
        """Write, flush, rename, flush the folder.

        Raises:
            StateError: One of these failed; the file holds the blob before, or this one.
        """
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            fresh.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(fresh, flags, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StateError(f"{self.path}: cannot be written: {error.strerror}") from error


def pack_fields(magic: bytes, fields: Sequence[bytes]) -> bytes:
    """Join fields with their lengths, under a name and a SHA-256 checksum."""
    parts = [magic, len(fields).to_bytes(4, "little")]
    for field in fields:
        parts += (len(field).to_bytes(8, "little"), field)
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part)
    return b"".join((*parts, checksum.digest()))


def unpack_fields(magic: bytes, data: bytes) -> list[bytes]:
    """Split what `pack_fields` joined.

    Raises:
        StateError: On another name, a damaged or a truncated blob.
    """
    body, found = data[:-_CHECKSUM], data[-_CHECKSUM:]
    if not body.startswith(magic) or hashlib.sha256(body).digest() != found:
        raise StateError("a stored state that is damaged or of another kind")
    at = len(magic)
    count = int.from_bytes(body[at : at + 4], "little")
    at += 4
    if count > (len(body) - at) // _LENGTH:  # each field has a length at least
        raise StateError("a stored state whose fields do not fill it")
    fields = []
    for _ in range(count):
        size = int.from_bytes(body[at : at + _LENGTH], "little")
        at += _LENGTH
        fields.append(body[at : at + size])
        at += size
    if at != len(body):
        raise StateError("a stored state whose fields do not fill it")
    return fields


def present(value: T | None) -> T:
    """Return what a machine's stage guarantees to be there.

    Raises:
        StateError: When it is not: the state was put together by hand.
    """
    if value is None:
        raise StateError("a state that lacks what its stage requires")
    return value
