"""Cost of our transport: an empty stage, large models, a thousand agents on one coordinator.

One process is the coordinator's devices' port, with real mutual TLS, registry and sessions. Another
holds all agents, each with its own certificate and connection; they answer but compute nothing. So
the figures are those of the transport; on one machine they include the work of both ends.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.grpc_channel import CHANNEL_OPTIONS
from client.identity import pem_of
from fedsys.wire import fleet_pb2
from fedsys.wire.frames import Assembler, split
from fedsys.wire.services import FLEET, MAX_PARCEL, PROTOCOL, method
from server.deployed.fleet import Fleet, Said
from server.grpc_host import DevicePort
from server.home.folder import Home
from server.home.state import State
from simulations.testbed.joining import join

__all__ = ["measure"]

_JOB = b"b" * 32
Agent = tuple[int, bytes, bytes]


def measure(agents: int, *, stages: int, megabytes: list[int]) -> dict[str, Any]:
    """Figures with this many agents.

    Args:
        agents: Number of sessions held at once.
        stages: Empty stages to time, after a warm-up.
        megabytes: Sizes of models to send down to, and up from, the first agent.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        home = Home.create(
            Path(folder) / "c",
            hosts=["127.0.0.1"],
            roster_key=Ed25519PrivateKey.generate().public_key().public_bytes_raw(),
        )
        devices = _enroll(home, agents)
        ours, theirs = context.Pipe()
        coordinator = context.Process(target=_coordinator, args=(home.path, theirs), daemon=True)
        coordinator.start()
        port = ours.recv()
        fleet = context.Process(
            target=_agents, args=(port, home.authority.der, devices), daemon=True
        )
        fleet.start()
        try:
            ours.send((agents, stages, megabytes))
            found: dict[str, Any] = ours.recv()
        finally:
            fleet.kill()
            coordinator.kill()
            fleet.join()
            coordinator.join()
    return found


def _enroll(home: Home, agents: int) -> list[Agent]:
    state = State.open(home.path)
    registry = home.registry(state)
    joined = [join(registry, f"n{number}") for number in range(agents)]
    found = [
        (each.enrolled.node, each.key.pem, pem_of(each.enrolled.certificate)) for each in joined
    ]
    state.close()
    return found


# -- the coordinator's process -------------------------------------------------------------------


def _coordinator(path: Path, pipe: Connection) -> None:
    asyncio.run(_measure(Home.open(path), pipe))


async def _measure(home: Home, pipe: Connection) -> None:
    state, fleet = State.open(home.path), Fleet()
    port = DevicePort(
        identity=home.server_identity(),
        authority=home.authority,
        registry=home.registry(state),
        fleet=fleet,
        signer_key=bytes(32),
    )
    pipe.send(await port.start("127.0.0.1:0"))
    agents, stages, megabytes = await asyncio.to_thread(pipe.recv)
    started = time.monotonic()
    while len(fleet.links) < agents:
        await asyncio.sleep(0.01)
    found: dict[str, Any] = {
        "agents": agents,
        "connect_seconds": round(time.monotonic() - started, 2),
    }
    nodes = sorted(fleet.links)
    times = [await _stage(fleet, nodes, b"x" * 64) for _ in range(stages + 3)][3:]
    found["empty_stage_ms"] = round(1000 * statistics.median(times), 2)
    found["empty_stage_worst_ms"] = round(1000 * max(times), 2)
    fleet.allow(1 << 31, nodes)
    for size in megabytes:
        bytes_ = b"\0" * (size * 1_000_000)
        down = min([await _stage(fleet, nodes[:1], bytes_) for _ in range(3)])
        both = min([await _stage(fleet, nodes[:1], bytes_, echo=True) for _ in range(3)])
        found[f"{size}_mb_down_s"] = round(down, 3)
        found[f"{size}_mb_down_and_up_s"] = round(both, 3)
    process = psutil.Process()
    before, start = process.cpu_times(), time.monotonic()
    await asyncio.sleep(3)
    after, seconds = process.cpu_times(), time.monotonic() - start
    busy = after.user + after.system - before.user - before.system
    found["idle_cpu_percent"] = round(max(0.0, 100 * busy / seconds), 1)
    found["rss_mb"] = round(process.memory_info().rss / 1e6, 1)
    found["descriptors"] = process.num_fds()
    pipe.send(found)
    await asyncio.sleep(60)


async def _stage(fleet: Fleet, nodes: list[int], message: bytes, *, echo: bool = False) -> float:
    """Seconds until all these nodes have answered; `echo` has them send the message back."""
    while not fleet.events.empty():
        fleet.events.get_nowait()
    stage = fleet_pb2.Stage(job=_JOB, round=1, step=int(echo), message=message)
    data = fleet_pb2.Down(stage=stage).SerializeToString()
    started, waiting = time.monotonic(), set(nodes)
    for node in nodes:
        fleet.send_bytes(node, data)
    while waiting:
        event = await fleet.events.get()
        if isinstance(event, Said):
            waiting.discard(event.node)
    return time.monotonic() - started


# -- the agents' process -------------------------------------------------------------------------


def _agents(port: int, ca: bytes, devices: list[Agent]) -> None:
    asyncio.run(_hold(port, ca, devices))


async def _hold(port: int, ca: bytes, devices: list[Agent]) -> None:
    gate = asyncio.Semaphore(32)
    root = pem_of(ca)
    await asyncio.gather(*(_answer(port, root, device, gate) for device in devices))


async def _answer(port: int, ca: bytes, device: Agent, gate: asyncio.Semaphore) -> None:
    node, key, certificate = device
    outgoing: asyncio.Queue[bytes] = asyncio.Queue()
    hello = fleet_pb2.Hello(protocol_min=PROTOCOL, protocol_max=PROTOCOL, node=node)
    outgoing.put_nowait(fleet_pb2.Up(hello=hello).SerializeToString())

    async def frames() -> AsyncIterator[bytes]:
        parcel = 0
        while True:
            for frame in split(parcel, await outgoing.get()):
                yield frame
            parcel += 1

    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    async with grpc.aio.secure_channel(
        f"127.0.0.1:{port}", credentials, options=CHANNEL_OPTIONS
    ) as channel:
        stub = channel.stream_stream(method(FLEET, "Session"))
        await gate.acquire()
        held, assembler = True, Assembler(limit=MAX_PARCEL)
        async for frame in stub(frames()):
            if held:
                gate.release()
                held = False
            whole = assembler.add(frame)
            if whole is None:
                continue
            down = fleet_pb2.Down.FromString(whole)
            if down.HasField("stage"):
                reply = down.stage.message if down.stage.step else b"y" * 64
                answer = fleet_pb2.Answer(job=_JOB, round=1, step=0, message=reply)
                outgoing.put_nowait(fleet_pb2.Up(answer=answer).SerializeToString())
