"""Keys on disk: mode 0600 from the first byte, refused when somebody else can read them."""

from __future__ import annotations

import stat
from pathlib import Path

from fedsys.durable import write_atomically
from fedsys.errors import ConfigError

__all__ = ["read_secret", "write_secret"]


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read; whole or not at all, durable on return."""
    write_atomically(path, content, mode=0o600)


def read_secret(path: Path) -> bytes:
    """The content of a secret file.

    Raises:
        ConfigError: it is not there, or others can read it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    if mode & 0o077:
        raise ConfigError(f"{path}: mode {mode:04o} lets others read it; run chmod 600 {path}")
    return content
