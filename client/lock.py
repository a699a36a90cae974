"""One process at a time per device folder: two would each keep their own count of what was spent.

``lock`` is held with flock(2), so it is released when a process dies; its text says who held it
last.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsys.errors import ConfigError

__all__ = ["exclusive", "holder"]

_STEP = 0.05


@contextmanager
def exclusive(
    folder: Path, who: str, *, mark: str | None = None, patience: float = 0.2
) -> Iterator[bool]:
    """Hold a device's folder.

    Args:
        folder: the device's folder.
        who: names the holder, for a process that finds the folder locked.
        mark: an unpredictable text that identifies a cache of the folder's contents; None if there
            is no cache.
        patience: seconds to wait for another process. Not 0, since `holder` takes the lock briefly.

    Yields:
        Whether the last holder had the same mark, so that the cache is still valid.

    Raises:
        ConfigError: another process holds it, or it cannot be written.
    """
    path = folder / "lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{path}: {reason}; the agent must own its folder") from None
    try:
        if not _taken(handle, patience):
            raise ConfigError(
                f"{folder}: {_text(handle)[0]} is at work in it; stop that process, or wait until "
                f"it ends: only one process may use a device's folder"
            )
        same = mark is not None and _text(handle)[1] == mark
        if not same:
            _write(handle, path, f"{who} (process {os.getpid()})\n{mark or os.urandom(16).hex()}")
        yield same
    finally:
        os.close(handle)


def holder(folder: Path) -> str | None:
    """The process that holds a device's folder now, or None."""
    try:
        handle = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _text(handle)[0]
    finally:
        os.close(handle)
    return None


def _taken(handle: int, patience: float) -> bool:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= until:
                return False
            time.sleep(_STEP)
        else:
            return True


def _text(handle: int) -> tuple[str, str]:
    """The process that holds the folder, or held it last, and its mark."""
    lines = os.pread(handle, 200, 0).decode("utf-8", "replace").splitlines()
    return (lines[0], lines[1]) if len(lines) == 2 else ("another process", "")


def _write(handle: int, path: Path, text: str) -> None:
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{path}: {reason}; the agent must own its folder") from None
