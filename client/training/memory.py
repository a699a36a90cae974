"""Keeps freed memory in the process, so that the next step reuses it without page faults."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory(limit: int = 512 << 20) -> bool:
    """Tell glibc's allocator to keep up to `limit` freed bytes.

    Training allocates and frees the same megabytes at every step; by default they go back to the
    kernel each time. Worth calling once in a process that trains many clients, not on a device.

    Returns:
        Whether the C library accepted the settings. Those other than glibc do not, harmlessly.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_THRESHOLD, 64 << 20), (_M_TRIM_THRESHOLD, limit), (_M_TOP_PAD, 16 << 20))
    return all(mallopt(name, value) == 1 for name, value in settings)
