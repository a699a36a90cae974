"""A full disk: told from other errors, and waited out."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from fedsys.durable import write_new

__all__ = ["is_full", "space_again"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PROBE_BYTES = 1 << 20
_SECONDS = 5.0


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that a disk has no space left."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        found = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(found, "sqlite_errorcode", None) if isinstance(found, sqlite3.Error) else 0
        if code is not None and code & 0xFF == sqlite3.SQLITE_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


async def space_again(folder: Path) -> None:
    """Wait until a mebibyte can be written to a folder."""
    while True:
        await asyncio.sleep(_SECONDS)
        try:
            await asyncio.to_thread(_probe, folder / "space.probe")
        except OSError:
            continue
        return


def _probe(path: Path) -> None:
    try:
        write_new(path, bytes(_PROBE_BYTES), mode=0o600)
    finally:
        path.unlink(missing_ok=True)
