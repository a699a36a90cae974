"""The routes of a page: its files, which hold nothing, and its sections as a stream of events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import fedsys.report
from fedsys.errors import FedsysError
from fedsys.run_folder import plain_json
from fedsys.web.board import Board
from fedsys.web.guard import Guard

__all__ = ["MOST_STREAMS", "application"]

MOST_STREAMS = 16
"""Pages that may be open at a time."""
_STATIC = Path(__file__).parent / "static"
_REPORT_STYLE = Path(fedsys.report.__file__).parent / "templates" / "report.css"
_FILES = {
    "report.css": (_REPORT_STYLE, "text/css"),
    "page.css": (_STATIC / "page.css", "text/css"),
    "icon.svg": (_STATIC / "icon.svg", "image/svg+xml"),
    **{
        name: (_STATIC / name, "text/javascript")
        for name in ("live.js", "elements.js", "chart.js", "operator.js", "runs.js")
    },
}
_HEARTBEAT = b": still here\n\n"

Ask = Callable[[Mapping[str, list[str]]], Any]


def application(
    board: Board,
    *,
    shell: str,
    token: Callable[[], str],
    healthy: Callable[[], str] = lambda: "",
    questions: Mapping[str, Ask] | None = None,
) -> Starlette:
    """An application that shows a board.

    Args:
        board: the sections; somebody else has it follow.
        shell: the file in ``static`` that is the page.
        token: the token that requests must bring.
        healthy: what is wrong, in a few words; empty if nothing is.
        questions: by name, functions of a request's query whose JSON value is served under
            ``/api/NAME``; they are called in a thread, and a `FedsysError` is shown as it is.
    """
    questions = questions or {}

    def page(_request: Request) -> Response:
        return _file(_STATIC / shell, "text/html")

    def static(request: Request) -> Response:
        found = _FILES.get(request.path_params["name"])
        if found is None:
            return PlainTextResponse("no such file\n", status_code=404)
        return _file(*found)

    def health(_request: Request) -> Response:
        wrong = healthy()
        return JSONResponse(
            {"status": wrong or "serving"},
            status_code=503 if wrong else 200,
        )

    async def events(_request: Request) -> Response:
        if board.watchers >= MOST_STREAMS:
            return PlainTextResponse(
                f"{MOST_STREAMS} pages are open already; close one\n", status_code=503
            )
        return StreamingResponse(_events(board), media_type="text/event-stream")

    async def question(request: Request) -> Response:
        ask = questions.get(request.path_params["name"])
        if ask is None:
            return PlainTextResponse("no such question\n", status_code=404)
        query = {key: request.query_params.getlist(key) for key in request.query_params}
        try:
            return JSONResponse(plain_json(await run_in_threadpool(ask, query)))
        except FedsysError as error:
            return PlainTextResponse(f"{error}\n", status_code=400)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/static/{name}", static),
            Route("/events", events),
            Route("/api/{name}", question),
        ],
        middleware=[Middleware(Guard, token=token, is_open=_is_open)],
    )


def _is_open(path: str) -> bool:
    return path in ("/", "/health") or path.startswith("/static/")


def _file(path: Path, kind: str) -> Response:
    return Response(path.read_bytes(), media_type=f"{kind}; charset=utf-8")


async def _events(board: Board) -> AsyncIterator[bytes]:
    """An event with all sections that changed, so that a page never shows half of a change; the
    first one has them all."""
    with board:
        version = 0
        yield _HEARTBEAT
        while True:
            if not await board.changed(version):
                yield _HEARTBEAT  # finds out whether anybody is there
                continue
            if board.closed:
                return
            version, sections = board.since(version)
            pairs = ",".join(f"{json.dumps(name)}:{text}" for name, text in sections.items())
            yield f"data: {{{pairs}}}\n\n".encode()
