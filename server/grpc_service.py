"""The coordinator's process: devices' port, operator's socket and page, jobs and metrics."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

from server.deployed.fleet import Fleet
from server.deployed.job_model import ModelSource
from server.deployed.queue import Deployment
from server.deployed.round import Randomness
from server.grpc_host import DevicePort
from server.home.folder import Home
from server.home.state import State
from server.metrics import Metrics
from server.operator_side import operator_side

__all__ = ["run_coordinator"]

_log = logging.getLogger(__name__)
_REVOCATION_SECONDS = 2.0
_ENDING_SECONDS = 5.0


async def run_coordinator(
    home: Home,
    *,
    listen: str,
    models: ModelSource,
    ready: Callable[[int], None],
    stop: asyncio.Event | None = None,
    randomness: Randomness | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or `stop`; running jobs are resumed at the next start.

    Args:
        home: The coordinator's folder.
        listen: ``HOST:PORT`` of the devices' port.
        models: Builds the model of a configuration.
        ready: Called with the port once everything listens.
        stop: Ends the service when set; signals are then not handled.
        randomness: Replaces the OS's randomness in tests.

    Raises:
        ConfigError: Another coordinator runs on this folder.
    """
    with home.alone():
        await _serve(home, listen, models, ready, stop, randomness)


async def _serve(
    home: Home,
    listen: str,
    models: ModelSource,
    ready: Callable[[int], None],
    stop: asyncio.Event | None,
    randomness: Randomness | None,
) -> None:
    if stop is None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    before = asyncio.all_tasks()
    state, metrics = State.open(home.path), Metrics()
    fleet = Fleet(counted=metrics.passed)
    registry = home.registry(state)
    deployment = Deployment(
        home=home,
        state=state,
        registry=registry,
        fleet=fleet,
        models=models,
        metrics=metrics,
        randomness=randomness,
    )
    devices = DevicePort(
        identity=home.server_identity(),
        authority=home.authority,
        registry=registry,
        fleet=fleet,
        signer_key=bytes.fromhex(home.signer.public_hex),
    )
    operator = operator_side(
        home=home, state=state, fleet=fleet, deployment=deployment, metrics=metrics
    )
    tasks: list[asyncio.Task[None]] = []
    try:
        port = await devices.start(listen)
        async with operator as presence:
            try:
                tasks = [
                    asyncio.create_task(deployment.serve()),
                    asyncio.create_task(_follow_registry(devices)),
                ]
                ready(port)
                waiter = asyncio.create_task(stop.wait())
                ends = {waiter, presence, *tasks}
                done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                waiter.cancel()
                for task in done - {waiter}:
                    task.result()
            finally:
                _log.info("shutting down")
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await devices.stop()
        await _ended(asyncio.all_tasks() - before)
        state.close()


async def _follow_registry(devices: DevicePort) -> None:
    """Revocations and rosters may be written by another process; act on them soon."""
    while True:
        await asyncio.sleep(_REVOCATION_SECONDS)
        await devices.evict()
        devices.announce_roster()


async def _ended(tasks: set[asyncio.Task[Any]]) -> None:
    """Let calls end by themselves: gRPC reports that it has stopped once nothing is left to send,
    and prints a traceback for each call whose task is then cancelled with the event loop."""
    if tasks:
        await asyncio.wait(tasks, timeout=_ENDING_SECONDS)
