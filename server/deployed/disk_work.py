"""Work that writes to the disk, done in a thread and never left half way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

__all__ = ["to_its_end"]

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


async def to_its_end(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Run a function in a thread; cancelled, however often, wait for it all the same.

    Raises:
        asyncio.CancelledError: the caller was cancelled; the function has returned by then.
    """
    task = asyncio.create_task(asyncio.to_thread(function, *arguments, **options))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled() and task.exception() is not None:
            _log.error("while stopping: %s", task.exception())
        raise
