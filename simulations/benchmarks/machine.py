"""Describes the machine that a benchmark ran on."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["machine", "measured_on", "one_core", "quiet"]


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core and its linear algebra in one thread, while this lasts.

    Threads that wait for each other on one core would cost CPU time that no work needed.
    """
    from threadpoolctl import threadpool_limits

    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    with threadpool_limits(limits=1):
        try:
            if allowed is not None:
                os.sched_setaffinity(0, {min(allowed)})
            yield
        finally:
            if allowed is not None:
                os.sched_setaffinity(0, allowed)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what others log as they go along, while this lasts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def machine() -> dict[str, Any]:
    """Processor, cores, load and versions, for comparing results."""
    from fedsys.versions import versions  # these bring torch, which a measured process may not have
    from simulations.engine.layout import cores

    return {
        "processor": _processor(),
        "cores": cores(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": versions()["torch"],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def measured_on(result: Mapping[str, Any]) -> str:
    """The line below a table: the machine, its load, and the command.

    Args:
        result: With ``machine``, as `machine` gives it, and ``command``.
    """
    where = result["machine"]
    return (
        f"{where['processor']}, {where['cores']} cores, load {where['load']:.1f}; "
        f"`{result['command']}`"
    )
