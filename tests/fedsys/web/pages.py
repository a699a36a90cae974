"""Serves a page in a thread, and speaks HTTP to it as a browser would, or would not."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsys.web.application import application
from fedsys.web.board import Board
from fedsys.web.serving import PageServer

TOKEN = "5a" * 32
HOST = {"host": "localhost"}
KNOWN = {**HOST, "authorization": f"Bearer {TOKEN}"}


@contextmanager
def loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


@contextmanager
def served(read: Callable[[], Mapping[str, Any]], **options: Any) -> Iterator[Page]:
    """A page of these sections, brought up to date every few milliseconds."""
    with loop_in_thread() as loop:

        async def begin() -> PageServer:
            board = Board(read, seconds=0.01)
            app = application(board, shell="runs.html", token=lambda: TOKEN, **options)
            server = PageServer(app, board, socket.create_server(("127.0.0.1", 0)))
            server.start()
            return server

        server = asyncio.run_coroutine_threadsafe(begin(), loop).result(60)
        try:
            yield Page(server.port)
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)


class Page:
    """What is served at a port, or at a Unix socket."""

    def __init__(self, port: int = 0, path: Path | None = None) -> None:
        self._port, self._path = port, path

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        found = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        if self._path is not None:
            found.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            found.sock.settimeout(60)
            found.sock.connect(str(self._path))
        return found

    def get(
        self, path: str, headers: Mapping[str, str] = KNOWN, *, method: str = "GET"
    ) -> tuple[int, str, dict[str, str]]:
        """Status, body and headers of an answer."""
        connection = self.connect()
        try:
            connection.putrequest(method, path, skip_host=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            body = answer.read().decode()
            return answer.status, body, {key.lower(): value for key, value in answer.getheaders()}
        finally:
            connection.close()

    @contextmanager
    def stream(self, token: str = TOKEN) -> Iterator[Iterator[tuple[str, Any]]]:
        """The events of ``/events``: names and contents of sections."""
        connection = self.connect()
        try:
            connection.putrequest("GET", "/events", skip_host=True)
            for name, value in {**HOST, "authorization": f"Bearer {token}"}.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            yield _events(answer)
        finally:
            connection.close()


def _events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    while line := answer.readline():
        if line.startswith(b"data: "):
            yield from json.loads(line[6:]).items()
