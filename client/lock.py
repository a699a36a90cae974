"""One process at a time for a device's folder: two would each keep a count of their own."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsys.errors import ConfigError

__all__ = ["exclusive", "held"]


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a device's folder; a process that dies lets go of it.

    Raises:
        ConfigError: another process holds it, or it cannot be written.
    """
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{folder / 'lock'}: {reason}; the agent must own its folder") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{folder}: an agent is running on it already; stop that one first"
            ) from None
        yield
    finally:
        os.close(handle)


def held(folder: Path) -> bool:
    """Whether a process holds a device's folder now."""
    try:
        handle = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
