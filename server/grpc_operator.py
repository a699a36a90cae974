"""The operator's commands: gRPC on a Unix socket in the coordinator's folder, mode 0600.

Anyone who can open the socket is the operator; the devices' port serves none of these calls.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from sqlalchemy.exc import DBAPIError

from fedsys.errors import ConfigError, FedsysError
from fedsys.run_folder import RunFolder
from fedsys.wire import fleet_pb2
from fedsys.wire.services import OPERATOR
from server.deployed.fleet import Fleet
from server.deployed.queue import Deployment
from server.home.folder import Home
from server.home.state import ACTIVE_JOB, CertificateRow, JobRow, State

__all__ = ["OperatorSocket", "job_status"]

_POLL = 0.3
_MOST_REFUSALS = 20


class OperatorSocket:
    """The operator's server.

    Args:
        home: The coordinator's folder, which holds the socket.
        state: The coordinator's database.
        fleet: The devices' open sessions.
        deployment: Woken when a job is submitted.
    """

    def __init__(self, *, home: Home, state: State, fleet: Fleet, deployment: Deployment) -> None:
        self._home = home
        self._state = state
        self._fleet = fleet
        self._deployment = deployment
        self._server: Any = None

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: The folder's path is too long for a socket.
        """
        path = self._home.socket.resolve()
        if len(os.fsencode(path)) > 100:
            raise ConfigError(f"{path}: too long for a socket's name; use a shorter folder")
        path.unlink(missing_ok=True)
        server = grpc.aio.server()
        handlers = {
            "Submit": _unary(self._submit, fleet_pb2.SubmitRequest.FromString),
            "List": _unary(self._list, fleet_pb2.Nothing.FromString),
            "Show": _unary(self._show, fleet_pb2.JobName.FromString),
            "Cancel": _unary(self._cancel, fleet_pb2.JobName.FromString),
            "Resume": _unary(self._resume, fleet_pb2.JobName.FromString),
            "Fleet": _unary(self._nodes, fleet_pb2.Nothing.FromString),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._watch,
                request_deserializer=fleet_pb2.JobName.FromString,
                response_serializer=lambda reply: reply.SerializeToString(),
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(OPERATOR, handlers),))
        before = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{path}")
            await server.start()
        finally:
            os.umask(before)
        path.chmod(0o600)
        self._server = server

    async def stop(self) -> None:
        """Close and remove the socket."""
        if self._server is not None:
            await self._server.stop(0.5)
            self._home.socket.unlink(missing_ok=True)

    async def _submit(self, request: fleet_pb2.SubmitRequest) -> fleet_pb2.JobStatus:
        row = await self._deployment.submit(request.config, start=request.start)
        self._deployment.wake.set()
        return job_status(self._home, self._state, row)

    async def _list(self, _request: fleet_pb2.Nothing) -> fleet_pb2.JobList:
        jobs = [job_status(self._home, self._state, row) for row in self._state.jobs()]
        return fleet_pb2.JobList(jobs=jobs)

    async def _show(self, request: fleet_pb2.JobName) -> fleet_pb2.JobStatus:
        return job_status(self._home, self._state, self._state.job(request.id))

    async def _cancel(self, request: fleet_pb2.JobName) -> fleet_pb2.JobStatus:
        return job_status(self._home, self._state, self._state.cancel_job(request.id))

    async def _resume(self, request: fleet_pb2.JobName) -> fleet_pb2.JobStatus:
        row = self._state.resume_job(request.id)
        self._deployment.wake.set()
        return job_status(self._home, self._state, row)

    async def _watch(
        self, request: fleet_pb2.JobName, context: Any
    ) -> AsyncIterator[fleet_pb2.JobStatus]:
        last = None
        while True:
            try:
                row = self._state.job(request.id)
            except FedsysError as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
            status = job_status(self._home, self._state, row)
            if status != last:
                last = status
                yield status
            if row.status not in ACTIVE_JOB:
                return
            await asyncio.sleep(_POLL)

    async def _nodes(self, _request: fleet_pb2.Nothing) -> fleet_pb2.FleetStatus:
        expiry: dict[int, float] = {}
        with self._state.transaction() as session:
            for certificate in session.query(CertificateRow):
                latest = expiry.get(certificate.node, 0.0)
                expiry[certificate.node] = max(latest, certificate.expires_at)
        nodes = [
            fleet_pb2.NodeStatus(
                id=row.id,
                name=row.name,
                status=row.status,
                connected=row.id in self._fleet.links,
                version=self._fleet.links[row.id].version if row.id in self._fleet.links else "",
                expires=int(expiry.get(row.id, 0.0)),
                warning=self._fleet.copies.get(row.id, ""),
                labels=row.labels.split(),
            )
            for row in self._state.nodes()
        ]
        spent = [row.spent for row in self._state.jobs() if row.started_at is not None]
        return fleet_pb2.FleetStatus(
            nodes=nodes,
            roster_version=self._state.roster_version(),
            budget=self._home.settings().epsilon,
            spent=sum(float("inf") if value is None else value for value in spent),
            held=[row.text for row in self._deployment.continuity.holds()],
        )


def job_status(home: Home, state: State, row: JobRow) -> fleet_pb2.JobStatus:
    """A job as the operator sees it."""
    folder = RunFolder(home.jobs / row.id)
    refusals = []
    for name, refusal in state.newest_refusals(row.id, _MOST_REFUSALS):
        where = f"round {refusal.round}" if refusal.round else "the job"
        often = f", {refusal.count} times" if refusal.count > 1 else ""
        refusals.append(f"{name} ({where}{often}): {refusal.reason}")
    return fleet_pb2.JobStatus(
        id=row.id,
        name=row.name,
        status=row.status,
        reason=row.reason,
        round=row.round,
        rounds=row.rounds,
        stage=row.stage,
        epsilon=row.spent,
        budget=row.promised,
        metrics=folder.last_metrics(),
        refusals=refusals,
    )


def _unary(function: Callable[[Any], Awaitable[Any]], request: Callable[[bytes], Any]) -> Any:
    async def handle(message: Any, context: Any) -> Any:
        try:
            return await function(message)
        except FedsysError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except DBAPIError as error:
            text = f"the coordinator's database cannot be used: {error.orig}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=request,
        response_serializer=lambda reply: reply.SerializeToString(),
    )
