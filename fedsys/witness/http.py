"""The witness's HTTP interface, on Starlette and uvicorn."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fedsys.errors import ConfigError
from fedsys.transparency.submission import MAX_SUBMISSION_BYTES
from fedsys.wire.address import host_and_port
from fedsys.witness.cosigning import Reply, Witness
from fedsys.witness.folder import WitnessFolder

__all__ = ["application", "serve"]

_BODY_SECONDS = 10.0
_CONNECTIONS = 256
_HEADER_BYTES = 16 << 10


def application(witness: Witness) -> Starlette:
    """The routes of a witness; submission and monitoring prefix are the same.

    Args:
        witness: answers the requests.
    """

    async def add_checkpoint(request: Request) -> Response:
        body = await _body(request)
        if isinstance(body, Reply):
            return _response(body, close=True)
        return _response(await run_in_threadpool(witness.add_checkpoint, body))

    async def checkpoint(request: Request) -> Response:
        return _response(await run_in_threadpool(witness.checkpoint, request.path_params["log"]))

    return Starlette(
        routes=[
            Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
            Route("/{log}/checkpoint", checkpoint, methods=["GET"]),
        ]
    )


async def _body(request: Request) -> bytes | Reply:
    """The whole body, or the response that says why it was not read to its end."""
    too_long = Reply(status=413, body=f"at most {MAX_SUBMISSION_BYTES} bytes\n".encode())
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or len(stated) > 12 or int(stated) > MAX_SUBMISSION_BYTES:
        return too_long
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_SUBMISSION_BYTES:
                    return too_long
    except TimeoutError:
        return Reply(status=408, body=b"the request did not come in time\n")
    except ClientDisconnect:
        return Reply(status=400, body=b"the request was cut off\n")
    return bytes(body)


def _response(reply: Reply, *, close: bool = False) -> Response:
    headers = {"content-type": reply.content_type, "x-content-type-options": "nosniff"}
    if close:
        headers["connection"] = "close"
    return Response(reply.body, status_code=reply.status, headers=headers)


def serve(folder: WitnessFolder, *, listen: str, ready: Callable[[int], None]) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        folder: the witness's folder.
        listen: ``HOST:PORT``; port 0 picks one.
        ready: called with the port once the server listens.

    Raises:
        ConfigError: the folder or the address cannot be used.
    """
    host, port = host_and_port(listen, "--listen", least=0)
    with folder.alone():
        witness = Witness(folder)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family, backlog=_CONNECTIONS)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"--listen {listen}: {reason}; give another address") from None
        with listener:
            server = uvicorn.Server(
                uvicorn.Config(
                    application(witness),
                    http="h11",
                    ws="none",
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    proxy_headers=False,
                    limit_concurrency=_CONNECTIONS,
                    timeout_keep_alive=30,
                    timeout_graceful_shutdown=5,
                    h11_max_incomplete_event_size=_HEADER_BYTES,
                )
            )
            # uvicorn re-raises the signal that ended it for the handlers installed before it.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: setattr(server, "should_exit", True))
            ready(listener.getsockname()[1])
            server.run(sockets=[listener])
