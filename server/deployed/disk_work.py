"""Work that writes to the disk, done in a thread and never left half way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

__all__ = ["all_ended", "to_its_end"]

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


async def all_ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their ends, however often the caller is cancelled meanwhile; what
    they raise is logged."""
    waiting = {task for task in tasks if not task.done()}
    for task in waiting:
        task.cancel()
    while waiting:
        with suppress(asyncio.CancelledError):
            _, waiting = await asyncio.wait(waiting)
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            _log.error("while stopping: %s", task.exception())
