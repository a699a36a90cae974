"""Calls to a running coordinator through the socket in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc

from fedsys.errors import ConfigError
from fedsys.wire import fleet_pb2
from fedsys.wire.services import OPERATOR, OPERATOR_SOCKET, method

__all__ = ["Calls", "NoCoordinator", "operator"]

_SECONDS = 30.0
R = TypeVar("R")


class NoCoordinator(ConfigError):
    """No coordinator is running on that folder."""

    @classmethod
    def of(cls, folder: Path) -> NoCoordinator:
        """The error, with its remedy."""
        return cls(
            f"{folder}: no coordinator answers; start it with `fedsys coordinator run {folder}`"
        )


class Calls:
    """The operator's API."""

    def __init__(self, channel: grpc.Channel, folder: Path) -> None:
        self._channel = channel
        self._folder = folder

    def submit(self, config: str, *, start: str = "") -> fleet_pb2.JobStatus:
        """Queue a job, that starts from another one's model if that is named."""
        request = fleet_pb2.SubmitRequest(config=config, start=start)
        return self._unary("Submit", request, fleet_pb2.JobStatus)

    def list(self) -> list[fleet_pb2.JobStatus]:
        """All jobs."""
        return list(self._unary("List", fleet_pb2.Nothing(), fleet_pb2.JobList).jobs)

    def show(self, id: str) -> fleet_pb2.JobStatus:
        """One job."""
        return self._unary("Show", fleet_pb2.JobName(id=id), fleet_pb2.JobStatus)

    def cancel(self, id: str) -> fleet_pb2.JobStatus:
        """Stop a job after the current round."""
        return self._unary("Cancel", fleet_pb2.JobName(id=id), fleet_pb2.JobStatus)

    def resume(self, id: str) -> fleet_pb2.JobStatus:
        """Have a paused job go on."""
        return self._unary("Resume", fleet_pb2.JobName(id=id), fleet_pb2.JobStatus)

    def fleet(self) -> fleet_pb2.FleetStatus:
        """Nodes, roster, budget."""
        return self._unary("Fleet", fleet_pb2.Nothing(), fleet_pb2.FleetStatus)

    def watch(self, id: str) -> Iterator[fleet_pb2.JobStatus]:
        """Every status change of a job, until it ends."""
        stub = self._channel.unary_stream(
            method(OPERATOR, "Watch"),
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=fleet_pb2.JobStatus.FromString,
        )
        try:
            yield from stub(fleet_pb2.JobName(id=id))
        except grpc.RpcError as error:
            raise self._explain(error) from None

    def _unary(self, name: str, request: Any, reply: type[R]) -> R:
        stub = self._channel.unary_unary(
            method(OPERATOR, name),
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=reply.FromString,  # type: ignore[attr-defined]
        )
        try:
            answer: R = stub(request, timeout=_SECONDS)
            return answer
        except grpc.RpcError as error:
            raise self._explain(error) from None

    def _explain(self, error: Any) -> ConfigError:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return NoCoordinator.of(self._folder)
        return ConfigError(error.details() or error.code().name.lower())


@contextmanager
def operator(folder: Path) -> Iterator[Calls]:
    """Connect to the coordinator of that folder.

    Raises:
        NoCoordinator: it is not running.
        ConfigError: this is not its folder.
    """
    if not (folder / "coordinator.toml").is_file():
        raise ConfigError(
            f"{folder}: no coordinator here; create one with `fedsys coordinator init {folder}`"
        )
    socket = (folder / OPERATOR_SOCKET).resolve()
    if not socket.exists():
        raise NoCoordinator.of(folder)
    with grpc.insecure_channel(
        f"unix:{socket}", options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        yield Calls(channel, folder)
