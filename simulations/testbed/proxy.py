"""A network between agents and coordinator with adjustable faults.

::

    with Proxy(lambda: ("127.0.0.1", 7443), seed=1) as proxy:
        ...                                       # agents dial 127.0.0.1:proxy.port
        proxy.weather = Weather(latency=0.1, jitter=0.05, rate=1e6)
        proxy.cut()

It sees only TLS records. Bytes keep their order, as TCP guarantees; they may be delayed or changed,
or the connection may break.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = ["Proxy", "Weather"]

_CHUNK = 1 << 16
_QUEUE = 16
_RECORDED = 1 << 20
_KEPT = 16
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Weather:
    """What the network does to the bytes that it carries.

    Attributes:
        latency: Delay of each byte in seconds, in each direction.
        jitter: Largest additional delay in seconds, drawn for each chunk.
        rate: Bytes a second in each direction of each connection; None for no limit.
        cut: Probability that a chunk (up to 64 KiB) is lost together with its connection.
        corrupt: Probability that one bit of a chunk is flipped.
        closed: Whether new connections are refused.
    """

    latency: float = 0.0
    jitter: float = 0.0
    rate: float | None = None
    cut: float = 0.0
    corrupt: float = 0.0
    closed: bool = False


FAIR = Weather()


@dataclass
class Counts:
    """Counts of what the proxy has done.

    Attributes:
        connections: Connections let through.
        cuts: Connections broken, by weather or `Proxy.cut`.
        flipped: Bits flipped.
    """

    connections: int = 0
    cuts: int = 0
    flipped: int = 0


@dataclass(eq=False)
class _Connection:
    """One agent's connection; `record` holds the first bytes that the agent sent."""

    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    record: bytearray = field(default_factory=bytearray)

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """Listens on a free port of the loopback; runs in a thread of its own.

    Args:
        upstream: Returns the address at which the coordinator currently listens.
        seed: Seed of the weather's random draws.

    Attributes:
        weather: Read for every chunk; may be changed at any time.
        counts: Counts of what happened so far.
    """

    def __init__(self, upstream: Callable[[], tuple[str, int]], *, seed: int = 0) -> None:
        self.weather = FAIR
        self.counts = Counts()
        self.port = 0
        self._upstream = upstream
        self._dice = random.Random(seed)  # noqa: S311  # of faults, not of secrets
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._records: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._do(self._start()).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop()).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def cut(self) -> int:
        """Break every connection; returns how many there were."""

        async def cut() -> int:
            found = list(self._open)
            for connection in found:
                connection.abort()
            self.counts.cuts += len(found)
            return len(found)

        return self._do(cut()).result(30)

    @property
    def records(self) -> list[bytes]:
        """What agents sent first on each of the last few connections, up to 1 MiB each."""

        async def copy() -> list[bytes]:
            return [*self._records, *(bytes(each.record) for each in self._open)][-_KEPT:]

        return self._do(copy()).result(30)

    # -- in the thread -----------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_CHUNK)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self.weather.closed:
            writer.transport.abort()
            return
        try:
            upward = await asyncio.open_connection(*self._upstream(), limit=_CHUNK)
        except OSError:  # the coordinator is down: a device would see a reset too
            writer.transport.abort()
            return
        connection = _Connection(writers=(writer, upward[1]))
        self._open.add(connection)
        self.counts.connections += 1
        ways = [
            asyncio.create_task(self._carry(connection, reader, upward[1], connection.record)),
            asyncio.create_task(self._carry(connection, upward[0], writer, None)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            connection.abort()
            self._open.discard(connection)
            self._records = [*self._records, bytes(connection.record)][-_KEPT:]

    async def _carry(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        record: bytearray | None,
    ) -> None:
        """Carry one direction of a connection; bytes wait in a queue until they are due."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE)
        arrive = asyncio.create_task(self._arrive(under_way, writer))
        try:
            due = 0.0
            while chunk := await reader.read(_CHUNK):
                if record is not None and len(record) < _RECORDED:
                    record += chunk
                weather = self.weather
                if self._dice.random() < weather.cut:
                    self.counts.cuts += 1
                    return
                if self._dice.random() < weather.corrupt:
                    chunk = self._flip(chunk)
                late = weather.latency + weather.jitter * self._dice.random()
                due = max(due, self._loop.time() + late)
                await under_way.put((due, chunk))
            await under_way.put((due, b""))
            await arrive
        except OSError:
            return
        finally:
            arrive.cancel()

    async def _arrive(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            due, chunk = await under_way.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            if not chunk:
                return
            try:
                writer.write(chunk)
                await writer.drain()
            except OSError:
                return
            rate = self.weather.rate
            if rate is not None:
                await asyncio.sleep(len(chunk) / rate)

    def _flip(self, chunk: bytes) -> bytes:
        changed = bytearray(chunk)
        changed[self._dice.randrange(len(changed))] ^= 1 << self._dice.randrange(8)
        self.counts.flipped += 1
        return bytes(changed)
