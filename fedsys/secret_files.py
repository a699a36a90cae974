"""Keys on disk: mode 0600 from the first byte, refused when somebody else can read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fedsys.durable import write_atomically
from fedsys.errors import ConfigError

__all__ = ["read_secret", "write_secret"]


def write_secret(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a new file that only its owner can read; atomically, and durable on return if
    `durable`."""
    write_atomically(path, content, mode=0o600, durable=durable)


def read_secret(path: Path, *, most: int = 1 << 20) -> bytes:
    """The content of a secret file, checked and read through one handle.

    Args:
        path: the file; a link is refused, since it may lead to a file that others write.
        most: the most bytes of a secret.

    Raises:
        ConfigError: it is missing, readable by others, owned by another user, or too large.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check(path, os.fstat(handle), most)
            with os.fdopen(handle, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(handle)
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None


def _check(path: Path, found: os.stat_result, most: int) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: not a regular file; put the secret itself there")
    if mode & 0o077:
        raise ConfigError(f"{path}: mode {mode:04o} lets others read it; run chmod 600 {path}")
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"{path}: belongs to user {found.st_uid}, who can read and change it; restore it from "
            f"a backup"
        )
    if found.st_size > most:
        raise ConfigError(
            f"{path}: {found.st_size} bytes, at most {most} are read; restore it from a backup"
        )
