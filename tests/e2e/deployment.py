"""A coordinator's devices' port in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from client.enrollment import join
from client.identity import Credentials
from server.deployed.fleet import Fleet
from server.grpc_host import DevicePort
from server.home.enrollment import Registry
from server.home.folder import Home
from server.home.state import State

T = TypeVar("T")


@dataclass
class Port:
    """A running devices' port.

    Attributes:
        address: to dial.
    """

    home: Home
    state: State
    registry: Registry
    fleet: Fleet
    address: str = ""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    host: DevicePort | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the port's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def enroll(self, name: str, folder: Path) -> Credentials:
        """Let a device join."""
        return join(self.address, self.registry.issue_token(name), folder)


@contextmanager
def running_port(folder: Path, *, roster_key: bytes | None = None) -> Iterator[Port]:
    """A coordinator that listens on a free port of the loopback."""
    home = Home.create(folder, hosts=["localhost", "127.0.0.1"], roster_key=roster_key)
    state = State.open(folder)
    registry = home.registry(state)
    port = Port(home=home, state=state, registry=registry, fleet=Fleet())
    thread = threading.Thread(target=port.loop.run_forever, daemon=True)
    thread.start()

    async def start() -> None:
        port.host = DevicePort(
            identity=home.server_identity(),
            authority=home.authority,
            registry=registry,
            fleet=port.fleet,
            signer_key=bytes.fromhex(home.signer.public_hex),
        )
        port.address = f"127.0.0.1:{await port.host.start('127.0.0.1:0')}"

    async def stop() -> None:
        if port.host is not None:
            await port.host.stop(0.2)

    try:
        port.run(start())
        yield port
    finally:
        port.run(stop())
        port.loop.call_soon_threadsafe(port.loop.stop)
        thread.join(10)
        port.loop.close()
        state.close()
