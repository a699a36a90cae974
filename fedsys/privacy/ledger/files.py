"""Opens untrusted files and reads their lines, strictly and within bounds."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedsys.errors import LedgerError
from fedsys.privacy.ledger.lines import MAX_LINE_BYTES

__all__ = ["MAX_FILE_BYTES", "MEMBERS", "open_regular", "read_lines", "write_errors"]

MEMBERS = "members.json"
"""In a deployed run's folder: the signed roster, and the terms that its members agreed to."""
MAX_FILE_BYTES = 1 << 30
"""The largest file that is read."""


def open_regular(path: Path, limit: int = MAX_FILE_BYTES) -> BinaryIO:
    """Opens a regular file of at most ``limit`` bytes; never follows a link, never blocks.

    Raises:
        LedgerError: it is not such a file, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise LedgerError(f"{path.name} is a symbolic link, which is not followed") from None
        raise LedgerError(f"cannot read {path.name}: {error.strerror}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        os.close(descriptor)
        raise LedgerError(f"{path.name} is not a regular file of at most {limit >> 20} MiB")
    return os.fdopen(descriptor, "rb", buffering=1 << 16)


def read_lines(
    file: BinaryIO, name: str, *, limit: int = MAX_LINE_BYTES
) -> Iterator[tuple[bytes, bool]]:
    """Yields each line without its newline, and whether it had one.

    Raises:
        LedgerError: a line exceeds ``limit`` bytes.
    """
    number = 0
    while True:
        raw = file.readline(limit + 1)
        if not raw:
            return
        number += 1
        if raw.endswith(b"\n"):
            yield raw[:-1], True
        elif len(raw) > limit:
            raise LedgerError(f"{name} line {number} is longer than {limit} bytes")
        else:
            yield raw, False


@contextmanager
def write_errors(name: Path | str) -> Iterator[None]:
    """Has an OSError of the block raised as a LedgerError that names the file."""
    try:
        yield
    except BlockingIOError:
        raise LedgerError(f"{name} is in use by another process") from None
    except OSError as error:
        raise LedgerError(f"cannot write {name}: {error.strerror}") from None
