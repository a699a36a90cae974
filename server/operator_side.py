"""What an operator sees and can do while a host runs, whichever it is: status, commands, metrics,
the page, and when each device was last there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from server.deployed.fleet import Fleet
from server.deployed.presence import Presence
from server.deployed.queue import Deployment
from server.grpc_operator import OperatorSocket
from server.home.folder import Home
from server.home.state import State
from server.metrics import Metrics

if TYPE_CHECKING:
    from fedsys.web.serving import PageServer

__all__ = ["operator_side"]

_log = logging.getLogger(__name__)


@asynccontextmanager
async def operator_side(
    *, home: Home, state: State, fleet: Fleet, deployment: Deployment, metrics: Metrics
) -> AsyncIterator[asyncio.Task[None]]:
    """Serve the operator until the block ends.

    Args:
        home: The coordinator's folder.
        state: Its database.
        fleet: The devices' open sessions.
        deployment: The jobs.
        metrics: Served where ``coordinator.toml`` says; closed at the end.

    Yields:
        The task that writes down when devices were last seen. It ends only by an error.

    Raises:
        ConfigError: The socket, the metrics or the page cannot be served there.
    """
    operator = OperatorSocket(home=home, state=state, fleet=fleet, deployment=deployment)
    metrics.watch(state, fleet)
    page: PageServer | None = None
    try:
        await operator.start()
        settings = home.settings()
        if settings.metrics:
            _log.info("metrics at port %d", metrics.serve(settings.metrics))
        if settings.web:
            page = _page(home, state, fleet, metrics)
        attendance = Presence(state, fleet)
        presence = asyncio.create_task(attendance.follow())
        try:
            yield presence
        finally:
            presence.cancel()
            await asyncio.gather(presence, return_exceptions=True)
            await asyncio.to_thread(attendance.note, last=True)
    finally:
        if page is not None:
            await page.stop()
        await operator.stop()
        metrics.close()


def _page(home: Home, state: State, fleet: Fleet, metrics: Metrics) -> PageServer:
    """The operator's page, started; its packages are loaded only where it is wanted."""
    from server.web.service import operator_page

    page = operator_page(home, state, fleet, healthy=metrics.why_unhealthy)
    page.start()
    where = f"port {page.port}" if page.port else home.settings().web
    _log.info("page at %s; fedsys coordinator web %s prints its address", where, home.path)
    return page
