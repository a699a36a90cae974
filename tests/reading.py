"""What a test's own code reads from files, which no clock has to tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reads_at_most(megabytes: int) -> Iterator[None]:
    """Hold whatever runs inside to that many megabytes of ``read`` calls (Linux's count)."""
    before = _bytes_read()
    yield
    assert _bytes_read() - before <= megabytes << 20


def _bytes_read() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])
