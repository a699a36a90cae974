"""The devices' port: mutual TLS, one long-lived stream for each agent, enrolment, health.

TLS checks certificates against our authority, and every call checks them against the registry.
`DevicePort.evict`, called every few seconds, ends the open sessions of nodes revoked meanwhile.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy.exc import DBAPIError

from fedsys.errors import ConfigError, EnrollmentError, FedsysError, ProtocolError
from fedsys.printable import printable
from fedsys.wire import fleet_pb2
from fedsys.wire.address import host_and_port
from fedsys.wire.frames import MAX_FRAME, Assembler, split
from fedsys.wire.services import ENROLLMENT, FLEET, PROTOCOL, PROTOCOL_MIN
from server.deployed.fleet import Fleet, Link
from server.deployed.lost_rosters import compare_greeting, take_back
from server.deployed.roster_news import roster_news
from server.home.enrollment import Registry
from server.home.pki import Authority, Peer, ServerIdentity, pem
from server.ingress import Ingress
from server.pace import Pace

__all__ = ["SERVER_OPTIONS", "DevicePort"]

_log = logging.getLogger(__name__)
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_FRAME),
    ("grpc.max_send_message_length", MAX_FRAME),
    # A device whose machine lost power comes back as another process, and waits until its old
    # connection is known to be dead. gRPC's own threads answer while a device trains.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 8_000),
    ("grpc.http2.ping_timeout_ms", 8_000),
    ("grpc.http2.max_pings_without_data", 0),  # as many as there are quiet hours
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
)
_HELLO_SECONDS = 20.0
_PARTING_SECONDS = 5.0
"""How long a device may take to read why its session ends."""
_RIVAL_SECONDS = 20.0
"""Longer than a dead connection is taken for a live one."""
_MOST_AT_ENROLMENT = MAX_FRAME // 2
"""Bytes of rosters in the answer to a device that joins."""
_PENDING = 4
_CALLS = 60
_CALLS_A_SECOND = 1.0
"""Calls and sessions of one certificate; an agent backs off after every failed attempt."""
_MOST_PACES = 10_000


class DevicePort:
    """The gRPC server that agents dial.

    Args:
        identity: Key and certificate that the server presents.
        authority: Issuer of the client certificates that it accepts.
        registry: Decides which nodes are admitted.
        fleet: Where sessions are registered.
        signer_key: Ed25519 public key under which ledgers are signed.
    """

    def __init__(
        self,
        *,
        identity: ServerIdentity,
        authority: Authority,
        registry: Registry,
        fleet: Fleet,
        signer_key: bytes,
    ) -> None:
        self._identity = identity
        self._authority = authority
        self._registry = registry
        self._fleet = fleet
        self._signer_key = signer_key
        self._paces: dict[str, Pace] = {}
        self._server: Any = None
        self._health: Any = None

    async def start(self, address: str) -> int:
        """Listen; returns the port, which the OS chooses where `address` ends in ``:0``.

        Raises:
            ConfigError: The address cannot be listened on; the message says why.
        """
        _check_free(address)
        credentials = grpc.ssl_server_credentials(
            [(self._identity.private_key, self._identity.certificate)],
            root_certificates=pem(self._authority.certificate),
            require_client_auth=True,
        )
        server = grpc.aio.server(options=SERVER_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        server.add_generic_rpc_handlers((self._enrollment(), self._sessions()))
        try:
            port = int(server.add_secure_port(address, credentials))
        except RuntimeError:
            port = 0
        if port == 0:
            raise ConfigError(f"--listen {address}: cannot listen there; give another port")
        await server.start()
        for name in ("", FLEET, ENROLLMENT):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        return port

    async def stop(self, grace: float = 2.0) -> None:
        """Say goodbye to every agent, then close."""
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        for link in list(self._fleet.links.values()):
            link.close(fleet_pb2.Goodbye.SHUTTING_DOWN, "the coordinator is shutting down")
        await self._server.stop(grace)

    async def evict(self) -> None:
        """End the sessions of nodes that were revoked or whose certificate expired meanwhile."""
        shut_out, now = self._registry.shut_out(), dt.datetime.now(dt.UTC)
        for link in list(self._fleet.links.values()):
            if link.peer is None:
                continue
            if link.peer.serial in shut_out:
                link.close(fleet_pb2.Goodbye.REVOKED, "this node was revoked")
            elif link.peer.expires < now:
                link.close(fleet_pb2.Goodbye.REVOKED, "the certificate has expired")

    # -- enrolment --------------------------------------------------------------------------------

    def _enrollment(self) -> Any:
        return grpc.method_handlers_generic_handler(
            ENROLLMENT,
            {"Enroll": self._unary(self._enroll, fleet_pb2.EnrollRequest.FromString)},
        )

    async def _enroll(self, request: fleet_pb2.EnrollRequest, context: Any) -> Any:
        peer = await _peer(context)
        enrolled = self._registry.enroll(
            peer, csr=request.csr, identity=request.identity, proof=request.proof
        )
        _log.info("node %d (%s) enrolled", enrolled.node, enrolled.name)
        self.announce_roster()
        roster = roster_news(self._registry, enrolled.node, 0, most=_MOST_AT_ENROLMENT)[0]
        if sum(each.ByteSize() for each in roster) > _MOST_AT_ENROLMENT:
            roster = []  # a list of very many comes with the welcome, cut into frames
        return fleet_pb2.EnrollReply(
            node=enrolled.node,
            name=enrolled.name,
            certificate=enrolled.certificate,
            roster=roster,
            signer=self._signer_key,
        )

    def announce_roster(self) -> None:
        """Send every connected agent the roster versions that it has not seen."""
        newest = self._registry.roster_version()
        for link in self._fleet.links.values():
            if link.roster < newest:
                for part in roster_news(self._registry, link.node, link.roster):
                    link.send(fleet_pb2.Down(roster=fleet_pb2.RosterNews(roster=part)))
                link.roster = newest

    def _unary(
        self, function: Callable[[Any, Any], Awaitable[Any]], request: Callable[[bytes], Any]
    ) -> Any:
        """A handler that limits the rate of calls and turns our errors into a one-line status."""

        async def handle(message: Any, context: Any) -> Any:
            try:
                await self._within_pace(context)
                return await function(message, context)
            except EnrollmentError as error:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            except FedsysError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except DBAPIError as error:
                _log.error("a call failed: the database cannot be used: %s", error.orig)
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the coordinator cannot write")

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=request,
            response_serializer=lambda reply: reply.SerializeToString(),
        )

    async def _within_pace(self, context: Any) -> None:
        """Abort a call whose certificate calls too often, before the database is queried."""
        serial = (await _peer(context)).serial
        if serial not in self._paces:
            rested = [each for each, pace in self._paces.items() if pace.rested]
            for each in rested if len(self._paces) >= _MOST_PACES else ():
                del self._paces[each]
            self._paces[serial] = Pace(
                burst=_CALLS, a_second=_CALLS_A_SECOND, clock=self._fleet.clock
            )
        if not self._paces[serial].try_take():
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "this device calls too often; wait a minute"
            )

    # -- sessions ---------------------------------------------------------------------------------

    def _sessions(self) -> Any:
        handlers = {
            "Session": grpc.stream_stream_rpc_method_handler(
                self.session,
                request_deserializer=_as_it_is,
                response_serializer=_as_it_is,
            ),
            "Renew": self._unary(self._renew, fleet_pb2.RenewRequest.FromString),
            "Leave": self._unary(self._leave, fleet_pb2.Nothing.FromString),
            "Check": self._unary(self._check, fleet_pb2.Nothing.FromString),
        }
        return grpc.method_handlers_generic_handler(FLEET, handlers)

    async def _renew(self, request: fleet_pb2.RenewRequest, context: Any) -> Any:
        peer = await _peer(context)
        certificate = self._registry.renew(peer, csr=request.csr, proof=request.proof)
        return fleet_pb2.RenewReply(certificate=certificate)

    async def _check(self, _request: fleet_pb2.Nothing, context: Any) -> Any:
        self._registry.admit(await _peer(context))
        return fleet_pb2.CheckReply(now=time.time(), roster_version=self._registry.roster_version())

    async def _leave(self, _request: fleet_pb2.Nothing, context: Any) -> Any:
        node = self._registry.admit(await _peer(context))
        self._registry.revoke(node.name)
        _log.info("node %d (%s) left", node.id, node.name)
        self.announce_roster()
        return fleet_pb2.Nothing()

    async def session(self, frames: AsyncIterator[bytes], context: Any) -> None:
        """One agent's stream, from its greeting to its end.

        Args:
            frames: what the agent sends, serialised.
            context: of the call; its peer's certificate is in it, and it takes what is sent back.
        """
        try:
            await self._within_pace(context)
            peer = await _peer(context)
            self._registry.admit(peer)
        except FedsysError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        link = Link(
            node=peer.node, counted=self._fleet.counted, address=printable(context.peer(), 100)
        )
        writer = asyncio.create_task(_write(link, context))
        reader = asyncio.create_task(self._read(link, peer, frames))
        overrun = asyncio.create_task(link.overrun.wait())
        try:
            await asyncio.wait({writer, reader, overrun}, return_when=asyncio.FIRST_COMPLETED)
            if overrun.done():
                _log.warning("node %d: session ended: it does not read", link.node)
            elif reader.done() and not writer.done():
                link.outgoing.put_nowait(None)
                await asyncio.wait(
                    {writer, overrun},
                    timeout=_PARTING_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            self._fleet.closed(link)
            for task in (writer, reader, overrun):
                task.cancel()
            await asyncio.gather(writer, reader, overrun, return_exceptions=True)

    async def _read(self, link: Link, peer: Peer, frames: AsyncIterator[bytes]) -> None:
        """Read one session to its end; any violation ends it with a reason."""
        ingress, stream = Ingress(link, self._fleet), aiter(frames)
        assembler = Assembler(limit=ingress.limit, passed=ingress.passed)
        try:
            while True:
                if ingress.greeted:
                    await self._fleet.room(peer.node)
                    frame = await anext(stream)
                else:
                    async with asyncio.timeout(_HELLO_SECONDS):
                        frame = await anext(stream)
                before = assembler.parcels
                whole = assembler.add(frame)
                if assembler.parcels == before:
                    continue
                wait = ingress.wait()
                if whole is not None:
                    message = ingress.take(whole)
                    kind = message.WhichOneof("content")
                    if kind == "hello" and not await self._may_greet(link, peer, message.hello):
                        return
                    if kind not in ("refusal", "answer", "roster"):
                        await asyncio.to_thread(self._registry.prekeys.keep, peer.node, message)
                    if kind == "hello":
                        self._greet(link, peer, message.hello)
                    elif kind == "roster":
                        take_back(self._registry, link, message.roster)
                    elif kind != "prekeys":
                        ingress.hand_on(message, len(whole))
                    del message
                del frame, whole  # free an upload's memory: its agent may now be silent for long
                while wait > 0 or link.pending >= _PENDING:  # flow control holds the agent back
                    await asyncio.sleep(max(0.01, wait))
                    wait = 0.0
        except StopAsyncIteration:
            return
        except TimeoutError:
            link.close(fleet_pb2.Goodbye.MISBEHAVED, "no greeting came")
        except DBAPIError as error:  # a full disk, for one
            _log.error(
                "node %d: session ended: the database cannot be used: %s", link.node, error.orig
            )
            link.close(fleet_pb2.Goodbye.SHUTTING_DOWN, "the coordinator cannot write")
        except ProtocolError as error:
            _log.warning("node %d: session ended: %s", link.node, error)
            link.close(fleet_pb2.Goodbye.MISBEHAVED, str(error))

    async def _may_greet(self, link: Link, peer: Peer, hello: fleet_pb2.Hello) -> bool:
        """Whether the session may go on; nothing that its agent sent is kept before."""
        if hello.node != peer.node:
            raise ProtocolError(
                f"the greeting is of node {hello.node}, the certificate of node {peer.node}"
            )
        protocol = min(PROTOCOL, hello.protocol_max)
        if protocol < max(PROTOCOL_MIN, hello.protocol_min):
            link.close(
                fleet_pb2.Goodbye.OUTDATED,
                f"this coordinator speaks protocol {PROTOCOL_MIN} to {PROTOCOL}, the agent "
                f"{hello.protocol_min} to {hello.protocol_max}: update the older one",
            )
            return False
        link.instance = hello.instance
        rival = self._fleet.rival_of(link)
        if rival is not None:
            await rival.ended(_RIVAL_SECONDS)
            rival = self._fleet.rival_of(link)
        if rival is not None:
            told = self._fleet.warn_of_copy(link, rival)
            link.close(fleet_pb2.Goodbye.DUPLICATE, told)
            return False
        return True

    def _greet(self, link: Link, peer: Peer, hello: fleet_pb2.Hello) -> None:
        protocol = min(PROTOCOL, hello.protocol_max)
        link.version = hello.version
        link.peer = peer
        newest = self._registry.roster_version()
        first, *more = roster_news(self._registry, link.node, min(hello.roster_version, newest))
        link.send(fleet_pb2.Down(welcome=fleet_pb2.Welcome(protocol=protocol, roster=first)))
        for part in more:
            link.send(fleet_pb2.Down(roster=fleet_pb2.RosterNews(roster=part)))
        link.roster = newest
        compare_greeting(self._registry, link, hello)
        self._fleet.open(link)


async def _write(link: Link, context: Any) -> None:
    """Send what is queued; flow control holds us back where the agent is slow."""
    parcel = 0
    while True:
        message = await link.outgoing.get()
        if message is None:
            return
        for frame in split(parcel, message):
            await context.write(frame)
            del frame
        del message  # free a model's memory: the next message may be a long time away
        parcel += 1


async def _peer(context: Any) -> Peer:
    certificates = context.auth_context().get("x509_pem_cert", ())
    if len(certificates) != 1:
        raise EnrollmentError("no client certificate")
    return Peer.of(certificates[0])


def _check_free(address: str) -> None:
    """Try to bind the address first, because gRPC reports that it failed but not why.

    Raises:
        ConfigError: The address cannot be bound; the message says why.
    """
    host, port = host_and_port(address, "--listen", least=0)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"--listen {address}: {reason}; give a name or address of this machine"
        ) from None
    reasons = []
    for family, kind, protocol, _, place in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
        except OSError as error:
            reasons.append((error.strerror or str(error)).lower())
    if len(reasons) == len(found):  # gRPC needs only one of several addresses
        raise ConfigError(
            f"--listen {address}: {reasons[-1]}; give another port, or an address of this machine"
        )


def _as_it_is(frame: bytes) -> bytes:
    return frame
