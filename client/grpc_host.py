"""A device's connection: dials out, holds one stream open, reconnects forever.

The stream is read in the calling thread, which also trains; gRPC's own threads keep the connection
alive meanwhile.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import logging
import os
import queue
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from client.background import Background
from client.buffered import Work
from client.enrollment import renew
from client.grpc_channel import open_channel
from client.reachability import fault
from client.session import Dismissed, Session
from client.stop import Stop
from fedsys.errors import FedsysError, ProtocolError
from fedsys.secret_files import write_secret
from fedsys.wire import fleet_pb2
from fedsys.wire.frames import MAX_CHUNK, Assembler, split
from fedsys.wire.limits import check_down, kind_of_down
from fedsys.wire.services import FLEET, MAX_PARCEL, method

__all__ = ["Backoff", "ConnectionHost"]

_log = logging.getLogger(__name__)
_DAY = 86_400.0
_FINAL_SECONDS = 3600.0
_EXPLAIN_SECONDS = 300.0


class Backoff:
    """Waiting times that double up to a limit, with jitter, so that a fleet does not reconnect all
    at once.

    Args:
        first: upper bound of the first wait, in seconds.
        most: upper bound of any wait, in seconds.
        draw: returns a number in [0, 1); by default from the operating system's entropy.
    """

    def __init__(
        self,
        *,
        first: float = 0.5,
        most: float = 60.0,
        draw: Callable[[], float] | None = None,
    ) -> None:
        self._first, self._most = first, most
        self._draw = draw or secrets.SystemRandom().random
        self._tries = 0

    def reset(self) -> None:
        """Start over, after a session was opened."""
        self._tries = 0

    def next(self) -> float:
        """Seconds to wait now."""
        bound = min(self._most, self._first * float(1 << min(self._tries, 30)))
        self._tries += 1
        return bound * (0.1 + 0.9 * self._draw())


class ConnectionHost:
    """Keeps a `Session` connected until told to stop.

    Args:
        session: answers the coordinator's messages.
        backoff: waiting times between attempts.
        stop: ends `run`, even if it was set before.
    """

    def __init__(
        self, session: Session, *, backoff: Backoff | None = None, stop: Stop | None = None
    ) -> None:
        self._session = session
        self._backoff = backoff or Backoff()
        self._stop = Stop() if stop is None else stop
        self._stream: Any = None
        self._background = Background()
        self._outgoing: queue.SimpleQueue[bytes | None] | None = None
        self._renewed = 0.0
        self._explained = float("-inf")
        self._shown = ("", "", "")
        self._stop.call(self._hang_up)

    def stop(self) -> None:
        """End `run` soon; may be called from another thread or a signal handler."""
        self._stop.set()

    def _hang_up(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def run(self) -> None:
        """Connect, serve, reconnect; returns after `stop`."""
        while not self._stop.wanted:
            wait = self._attempt()
            if wait > 0 and not self._stop.wanted:
                self._status("disconnected")
                self._stop.wait(wait)
        self._status("stopped")

    def _attempt(self) -> float:
        """One session, from dialling to its end; returns the seconds to wait before the next."""
        credentials = self._session.credentials
        self._status("connecting")
        key, certificate = credentials.tls()
        try:
            with open_channel(
                credentials.coordinator, ca=credentials.ca, key=key, certificate=certificate
            ) as channel:
                if self._renew(channel):
                    return 0.0
                self._serve(channel)
        except Dismissed as farewell:
            _log.warning("the coordinator ended the session: %s", farewell)
            if farewell.final:
                return _FINAL_SECONDS
        except grpc.RpcError as error:
            if not self._stop.wanted:
                code = error.code().name.lower()
                _log.warning("no session: %s: %s%s", code, error.details(), self._why(error))
                if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                    return self._backoff.next() + 30.0
        except (ProtocolError, DecodeError, OSError) as error:
            _log.error("the session is given up: %s", error)
        return self._backoff.next()

    def _why(self, error: Any) -> str:
        """What is wrong with the way to the coordinator, looked into now and then."""
        due = time.monotonic() - self._explained > _EXPLAIN_SECONDS
        if error.code() is not grpc.StatusCode.UNAVAILABLE or not due:
            return ""
        self._explained = time.monotonic()
        credentials = self._session.credentials
        try:
            why = fault(
                credentials.coordinator, ca=credentials.ca, certificate=credentials.tls()[1]
            )
        except FedsysError as problem:
            why = str(problem)
        return f": {why}" if why else ""

    def _renew(self, channel: grpc.Channel) -> bool:
        """Renew the certificate if that is due; retry at most once a day if it fails."""
        credentials = self._session.credentials
        due = credentials.renewal_due(dt.datetime.now(dt.UTC))
        if not due or (self._renewed and time.monotonic() - self._renewed < _DAY):
            return False
        self._renewed = time.monotonic()
        try:
            renew(credentials, channel)
        except FedsysError as error:
            _log.warning("the certificate was not renewed: %s", error)
            return False
        _log.info("the certificate was renewed")
        return True

    def _serve(self, channel: grpc.Channel) -> None:
        outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        outgoing.put(self._session.hello().SerializeToString())
        self._outgoing = outgoing
        stub = channel.stream_stream(method(FLEET, "Session"))
        self._stream = stream = stub(_frames(outgoing))
        if self._stop.wanted:  # set before there was a stream that it could cancel
            stream.cancel()
        assembler = Assembler(limit=self._limit, passed=_passed)
        try:
            for frame in stream:
                whole = assembler.add(frame)
                del frame
                if whole is not None:
                    check_down(whole, self._session.limits)
                    message = fleet_pb2.Down.FromString(whole)
                    del whole
                    self._take(message, outgoing)
                    del message  # it may hold a model, and the next message may be long in coming
        finally:
            self._stream = self._outgoing = None
            outgoing.put(None)
            stream.cancel()

    def _limit(self, begins: bytes) -> int:
        return self._session.limits.get(kind_of_down(begins), 0)

    def _take(self, message: fleet_pb2.Down, outgoing: queue.SimpleQueue[bytes | None]) -> None:
        if message.WhichOneof("content") == "welcome":
            self._backoff.reset()
            self._explained = float("-inf")
            _log.info("connected to %s", self._session.credentials.coordinator)
        reply = self._session.handle(message)
        self._status("connected")
        if reply is not None:
            outgoing.put(reply.SerializeToString())
        work = self._session.take_work()
        if work is not None:
            self._background.run(functools.partial(self._train, work))

    def _train(self, work: Work) -> None:
        """Run training in its own thread. If the connection is lost meanwhile, the session reports
        what was trained once it is connected again."""
        try:
            reply = work()
        except Exception:  # nothing else would report it
            _log.exception("training failed")
            return
        outgoing = self._outgoing
        if reply is not None and outgoing is not None:
            outgoing.put(reply.SerializeToString())

    def _status(self, connection: str) -> None:
        """Write what ``fedsys agent status`` reads, if it changed."""
        shown = (connection, self._session.activity, self._session.warning)
        if shown == self._shown:
            return
        body = {
            "pid": os.getpid(),
            "connection": connection,
            "activity": self._session.activity,
            "roster_version": self._session.chain.version,
            "warning": self._session.warning,
            "at": time.time(),
        }
        try:
            path = self._session.credentials.folder / "status.json"
            write_secret(path, json.dumps(body).encode(), durable=False)
            self._shown = shown
        except OSError as error:
            _log.warning("status.json: %s", error.strerror)


def _passed(begins: bytes) -> int:
    """The bytes of an unwanted message to skip: a model that was not agreed to is received but not
    kept, and its invitation will be refused."""
    return MAX_PARCEL if kind_of_down(begins) == "model" else 0


def _frames(outgoing: queue.SimpleQueue[bytes | None]) -> Iterator[bytes]:
    parcel = 0
    while True:
        message = outgoing.get()
        if message is None:
            return
        yield from split(parcel, message, chunk=MAX_CHUNK)
        del message  # it may hold an upload, and the next message may be long in coming
        parcel += 1
