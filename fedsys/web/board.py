"""What a page shows, in named sections; a stream sends those that changed since it last looked.

A stream keeps a number, not a queue: one that reads slowly misses what came in between, and costs
no memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from fedsys.run_folder import plain_json

__all__ = ["Board"]

_log = logging.getLogger(__name__)
_IDLE_SECONDS = 30.0

Sections = Mapping[str, Any]


class Board:
    """Sections and who watches them; it belongs to one event loop.

    Args:
        read: gives all sections by name, as JSON values; called in another thread, and only while
            somebody watches.
        seconds: between two calls.
    """

    def __init__(self, read: Callable[[], Sections], *, seconds: float = 1.0) -> None:
        self._read = read
        self._seconds = seconds
        self._texts: dict[str, str] = {}
        self._changed: dict[str, int] = {}
        self._version = 0
        self._news = asyncio.Event()
        self._wanted = asyncio.Event()
        self._watchers = 0
        self._failing = False
        self.closed = False

    @property
    def watchers(self) -> int:
        """Open streams."""
        return self._watchers

    def __enter__(self) -> Board:
        """Somebody watches."""
        self._watchers += 1
        self._wanted.set()
        return self

    def __exit__(self, *_: object) -> None:
        self._watchers -= 1
        if not self._watchers:
            self._wanted.clear()

    async def follow(self) -> None:
        """Read again and again, until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                self.show(await asyncio.to_thread(self._read))
                self._failing = False
            except Exception as error:  # the page must not end what it is about
                if not self._failing:
                    _log.exception("the page cannot be brought up to date")
                self._failing = True
                self.show({"problem": f"{type(error).__name__}; see the log"}, partly=True)
            await asyncio.sleep(self._seconds)

    def show(self, sections: Sections, *, partly: bool = False) -> None:
        """Take sections in; those that are missing are gone, unless only a part is given."""
        texts = {
            name: json.dumps(plain_json(value), allow_nan=False) for name, value in sections.items()
        }
        gone = [] if partly else [name for name in self._texts if name not in texts]
        for name in gone:
            texts[name] = "null"
        changed = [name for name, text in texts.items() if self._texts.get(name) != text]
        if not changed:
            return
        self._version += 1
        for name in changed:
            self._texts[name] = texts[name]
            self._changed[name] = self._version
        news, self._news = self._news, asyncio.Event()
        news.set()

    def since(self, version: int) -> tuple[int, dict[str, str]]:
        """The newest version, and the JSON text of each section that changed after the given one;
        a section that is gone is null."""
        found = {name: self._texts[name] for name, at in self._changed.items() if at > version}
        if version == 0:
            found = {name: text for name, text in found.items() if text != "null"}
        return self._version, found

    async def changed(self, version: int, seconds: float = _IDLE_SECONDS) -> bool:
        """Wait until something changed after a version, or the time is over; whether it did."""
        if self._version > version or self.closed:
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        return self._version > version or self.closed

    def close(self) -> None:
        """End every stream."""
        self.closed = True
        self._news.set()
