"""Serves a page within an event loop that is somebody else's, or of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from fedsys.web.board import Board

__all__ = ["PageServer"]

_CONNECTIONS = 64
_HEADER_BYTES = 16 << 10
_STOP_SECONDS = 2


class _Server(uvicorn.Server):
    """Leaves signals to the process that it is in."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class PageServer:
    """A page that is being served.

    Args:
        app: the application.
        board: what it shows.
        listener: a listening socket, closed at the end.
    """

    def __init__(self, app: Starlette, board: Board, listener: socket.socket) -> None:
        self._board = board
        self._listener = listener
        self._server = _Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_CONNECTIONS,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=_STOP_SECONDS,
                h11_max_incomplete_event_size=_HEADER_BYTES,
            )
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        """The port; 0 for a Unix socket."""
        name = self._listener.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def start(self) -> None:
        """Serve from now on; the socket takes connections already."""
        self._tasks = [
            asyncio.create_task(self._server.serve(sockets=[self._listener])),
            asyncio.create_task(self._board.follow()),
        ]

    async def stop(self) -> None:
        """End streams and connections."""
        self._board.close()
        self._server.should_exit = True
        if self._tasks:
            serving, following = self._tasks
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            await serving
        self._listener.close()
