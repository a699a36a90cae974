"""Files that survive a power loss: name and content are on disk when a call returns.

This relies on what POSIX promises, and no more: flushing a file makes its content durable, flushing
a folder the names in it. Every function here raises OSError where the disk fails.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import nullcontext, suppress
from pathlib import Path

__all__ = [
    "DurableFile",
    "append_lines",
    "flush_names",
    "make_folder",
    "overwrite",
    "write_atomically",
    "write_new",
]


class DurableFile:
    """An append-only file, exclusively locked; ``append`` returns when the bytes are on disk.

    Args:
        path: the file; a link is refused.
        create: whether to create it, in which case it must not exist; otherwise it must.
        mode: permissions of a new file.

    Attributes:
        path: as given.

    Raises:
        BlockingIOError: another process holds its lock.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, *, create: bool, mode: int) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        flags |= os.O_CREAT | os.O_EXCL if create else 0
        self.path = path
        self._descriptor = os.open(path, flags, mode)
        self._failed = False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if create:
                flush_names(path.parent)
            else:
                # A killed process may have written more than it flushed: that must survive a power
                # loss before anything is built on it.
                os.fsync(self._descriptor)
        except OSError:
            os.close(self._descriptor)
            raise

    def append(self, data: bytes) -> None:
        """Adds bytes at the end.

        Once that failed or was interrupted, the state of the file is unknown and further appends
        are refused; the next process that opens it cuts off a torn line.
        """
        if self._failed:
            raise OSError(errno.EIO, "an earlier write to it failed")
        try:
            _write_all(self._descriptor, data)
            os.fsync(self._descriptor)
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Refuses further appends."""
        self._failed = True

    def cut(self, count: int) -> None:
        """Removes the last ``count`` bytes."""
        os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - count)
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Releases the file and its lock."""
        os.close(self._descriptor)


def flush_names(folder: Path) -> None:
    """Makes a folder's entries durable, whichever process made them."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, *, mode: int = 0o777) -> None:
    """Creates a folder and its parents, durably; an existing folder is left as it is.

    Its name is flushed even then, since the process that created it may have died before doing so;
    except where its parent is not readable, since then another user created and keeps it.

    Args:
        path: the folder.
        mode: its permissions, minus the umask; its parents have the default ones.
    """
    there = path.exists()
    missing = [folder for folder in path.parents if not folder.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    with suppress(PermissionError) if there else nullcontext():
        flush_names(path.parent)
    for folder in missing:
        flush_names(folder.parent)


def write_new(
    path: Path, content: bytes | memoryview, *, mode: int = 0o644, durable: bool = True
) -> None:
    """Writes a new file with its content on disk, replacing an existing one; the new name is
    durable after `flush_names` of its folder. Nothing is flushed unless `durable`.

    An existing link, or file that others can read, is removed and never written to.
    """
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode)
    try:
        _write_all(descriptor, content)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(
    path: Path, content: bytes, *, mode: int = 0o644, durable: bool = True
) -> None:
    """Writes ``content`` so that ``path`` holds either its old content or all of the new.

    Args:
        path: the file.
        content: its whole new content.
        mode: its permissions.
        durable: whether it must survive a power loss. A file that is only for other processes, and
            written again after a start, need not.
    """
    partial = path.with_name(path.name + ".partial")
    write_new(partial, content, mode=mode, durable=durable)
    partial.replace(path)
    if durable:
        flush_names(path.parent)


def overwrite(path: Path, content: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Overwrites a file's content in place; a missing file is created, with its name durable too.
    A crash during the write leaves any mixture of old and new content.

    Args:
        path: the file; a link is refused.
        content: its whole new content.
        mode: permissions of a new file; an existing one loses all others.
    """
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    made = not path.exists()
    descriptor = os.open(path, flags | (os.O_CREAT | os.O_EXCL if made else 0), mode)
    try:
        _restrict(descriptor, mode)
        _write_all(descriptor, content)
        if os.fstat(descriptor).st_size > len(content):
            os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if made:
        flush_names(path.parent)


def append_lines(path: Path, lines: bytes, *, mode: int = 0o644) -> None:
    """Adds complete lines to a file; a missing file is created, with its name durable too. A last
    line that a crash tore is cut off first.

    Args:
        path: the file; a link is refused.
        lines: the lines, each with its line feed.
        mode: permissions of a new file; an existing one loses all others.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    made = not path.exists()
    with os.fdopen(os.open(path, flags, mode), "rb+", buffering=0) as file:
        _restrict(file.fileno(), mode)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.readall().rfind(b"\n") + 1)
        _write_all(file.fileno(), lines)
        os.fsync(file.fileno())
    if made:
        flush_names(path.parent)


def _restrict(descriptor: int, mode: int) -> None:
    """Removes the permissions that `mode` does not include; only the file's owner can."""
    found = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if found & ~mode:
        os.fchmod(descriptor, found & mode)


def _write_all(descriptor: int, content: bytes | memoryview) -> None:
    written = 0
    while written < len(content):
        written += os.write(descriptor, content[written:])
