"""The engine over a Ray cluster: chunks go to any free actor, partial sums are added in a tree.

For populations that have outgrown one machine. Every actor does what a process of
`simulations.engine.processes` does, so for the same chunks the sum is the same to the bit. A lost
actor takes its partial sum with it; what it had added in the round is done again.
"""

# mypy: disable-error-code="import-not-found, import-untyped, unused-ignore"

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from client.training import keep_freed_memory
from fedsys.errors import ConfigError, FedsysError, TrainingError
from fedsys.privacy import Encoded
from fedsys.tasks import ByClient, Partition
from simulations.engine.base import Chunk, Engine
from simulations.engine.chunk import ChunkTrainer, RoundWork, Tally
from simulations.engine.pool import SharedPool
from simulations.engine.worker import PopulationSpec
from simulations.population import Population

__all__ = ["RayEngine"]

_DEATHS = 3
_log = logging.getLogger(__name__)


class _Actor:
    """One worker on the cluster."""

    def __init__(
        self, spec: PopulationSpec, held: tuple[SharedPool, Partition, ByClient | None]
    ) -> None:
        torch.set_num_threads(spec.threads)
        keep_freed_memory()
        pool, partition, by_client = held
        population = spec.build(pool.examples(), partition, by_client)
        self._trainer = ChunkTrainer(population, spec.randomness)
        self._total: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def begin(self, work: RoundWork) -> bool:
        self._trainer.begin(work)
        self._total = np.zeros(self._trainer.length, dtype=np.int64)
        return True

    def add(self, clients: Chunk) -> tuple[Tally, list[str]]:
        with _heard() as warnings:
            return self._trainer.add(clients, self._total), warnings

    def total(self) -> NDArray[np.int64]:
        return self._total

    def plus(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
        return left + right

    def vectors(self, clients: Chunk) -> tuple[Encoded, list[str]]:
        with _heard() as warnings:
            return self._trainer.vectors(clients), warnings


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collects training's warnings in the block, because an actor's log is on another machine."""
    lines: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    ear, training = Ear(logging.WARNING), logging.getLogger("client.training")
    training.addHandler(ear)
    try:
        yield lines
    finally:
        training.removeHandler(ear)


@dataclass(eq=False)
class _Member:
    """An actor and what it is doing."""

    actor: Any
    chunk: int | None = None
    since: float = 0.0
    done: list[int] = field(default_factory=list)


class RayEngine(Engine):
    """An engine over Ray; see `simulations.engine.base.Engine`.

    Args:
        population: The virtual clients.
        spec: How an actor rebuilds them.
        address: A cluster's address (``auto``, ``ray://host:port``); empty starts one on this
            machine.
        actors: Number of actors; 0 takes as many as the cluster has CPUs.
        deadline: Seconds that a chunk may take.

    Raises:
        ConfigError: There is no cluster at that address.
        TrainingError: Ray does not start on this machine.
    """

    def __init__(
        self,
        population: Population,
        spec: PopulationSpec,
        *,
        address: str = "",
        actors: int = 0,
        deadline: float = 900.0,
    ) -> None:
        self._owner = not ray.is_initialized()
        if self._owner:
            _connect(address, actors)
        shared = SharedPool.of(population.train_set)
        self._pool = ray.put((shared, population.partition, population.by_client))
        self._spec, self._deadline = spec, deadline
        self._make = ray.remote(num_cpus=1, max_restarts=0)(_Actor)
        count = actors or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._members = [_Member(actor=self._hire()) for _ in range(count)]

    @property
    def processes(self) -> int:
        """Number of actors."""
        return len(self._members)

    @property
    def actors(self) -> tuple[Any, ...]:
        """Handles of the actors."""
        return tuple(member.actor for member in self._members)

    def total(
        self, work: RoundWork, chunks: Sequence[Chunk], length: int
    ) -> tuple[NDArray[np.int64], Tally]:
        """See `Engine`."""
        waiting, deaths = deque(range(len(chunks))), Counter[int]()
        tallies: dict[int, Tally] = {}
        while True:
            replies = self._run(work, chunks, "add", waiting, deaths)
            tallies |= {at: tally for at, tally, _ in replies}
            parts = [member for member in self._members if member.done]
            found = self._tree(parts)
            if found is not None:
                return found, sum(tallies.values(), start=Tally())
            # An actor died after its last chunk: asking each one finds all sums that are lost.
            waiting.extend(self._redo(work, chunks, deaths))

    def vectors(self, work: RoundWork, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Encoded]]:
        """See `Engine`."""
        waiting = deque(range(len(chunks)))
        for at, privatized, _ in self._run(work, chunks, "vectors", waiting, Counter()):
            yield chunks[at], privatized

    def close(self) -> None:
        """See `Engine`."""
        for member in self._members:
            ray.kill(member.actor)
        self._members = []
        if self._owner and ray.is_initialized():
            ray.shutdown()

    def _hire(self) -> Any:
        return self._make.remote(self._spec, self._pool)

    def _run(
        self,
        work: RoundWork,
        chunks: Sequence[Chunk],
        verb: str,
        waiting: deque[int],
        deaths: Counter[int],
    ) -> Iterator[tuple[int, Any, _Member]]:
        shared = ray.put(work)
        if len(waiting) == len(chunks):
            for member in self._members:
                member.done.clear()
                member.chunk = None
                member.actor.begin.remote(shared)
        busy: dict[Any, _Member] = {}
        while waiting or busy:
            for member in self._members:
                if waiting and member.chunk is None:
                    member.chunk, member.since = waiting.popleft(), time.monotonic()
                    call = getattr(member.actor, verb).remote(chunks[member.chunk])
                    busy[call] = member
            first = min(busy.values(), key=lambda each: each.since)
            left = max(first.since + self._deadline - time.monotonic(), 0.0)
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=left)
            if not ready:
                raise TrainingError(
                    f"{_named(chunks, first.chunk)}: a Ray actor gave no answer for "
                    f"{self._deadline:g} s; raise engine.deadline, or lower engine.chunk"
                )
            member = busy.pop(ready[0])
            done, member.chunk = member.chunk, None
            if done is None:
                continue
            try:
                reply, warnings = ray.get(ready[0])
            except RayTaskError as error:
                raise _explained(error, chunks, done) from None
            except RayError as lost:  # whatever the cause, the actor's sum cannot be trusted
                self._count(chunks, done, deaths, lost)
                waiting.appendleft(done)  # first, so that a chunk that kills actors is found soon
                if verb == "add":
                    waiting.extend(member.done)
                self._replace(member, shared)
                continue
            for line in warnings:
                _log.warning("%s", line)
            member.done.append(done)
            yield done, reply, member

    def _count(
        self, chunks: Sequence[Chunk], done: int, deaths: Counter[int], lost: RayError
    ) -> None:
        if "creation task" in str(lost):
            said = [line.strip() for line in str(lost).splitlines() if line.strip()]
            raise TrainingError(
                f"a Ray actor could not start: {said[-1]}; every machine of the cluster needs "
                f"fedsys and the task's module, in the same versions"
            ) from None
        deaths[done] += 1
        if deaths[done] >= _DEATHS:
            raise TrainingError(
                f"{_named(chunks, done)}: {_DEATHS} Ray actors died, the last with "
                f"{type(lost).__name__}; lower engine.chunk if memory ran out"
            ) from None

    def _replace(self, member: _Member, shared: Any) -> None:
        ray.kill(member.actor)
        member.actor = self._hire()
        member.done.clear()
        member.actor.begin.remote(shared)

    def _redo(self, work: RoundWork, chunks: Sequence[Chunk], deaths: Counter[int]) -> list[int]:
        """Chunks whose sums were lost with their actors."""
        shared, lost = ray.put(work), []
        for member in self._members:
            if not member.done:
                continue
            try:
                ray.get(member.actor.total.remote(), timeout=self._deadline)
            except GetTimeoutError:
                raise self._late() from None
            except RayError as error:
                self._count(chunks, member.done[-1], deaths, error)
                lost.extend(member.done)
                self._replace(member, shared)
        return lost

    def _tree(self, members: Sequence[_Member]) -> NDArray[np.int64] | None:
        """The sum of partial sums, added in pairs on the cluster; None if an actor is lost.

        The actors add: tasks of their own would start further processes, each with all that this
        module imports in memory.
        """
        parts = [(member.actor, member.actor.total.remote()) for member in members]
        while len(parts) > 1:
            pairs = [
                (actor, actor.plus.remote(left, right))
                for (actor, left), (_, right) in zip(parts[::2], parts[1::2], strict=False)
            ]
            parts = pairs + ([parts[-1]] if len(parts) % 2 else [])
        try:
            total: NDArray[np.int64] = np.array(ray.get(parts[0][1], timeout=self._deadline))
        except GetTimeoutError:
            raise self._late() from None
        except RayError:
            return None
        return total

    def _late(self) -> TrainingError:
        return TrainingError(
            f"the partial sums were not added within {self._deadline:g} s; raise engine.deadline"
        )


def _connect(address: str, actors: int) -> None:
    options: dict[str, Any] = {
        # Without an address Ray joins whatever cluster ran on this machine last, dead or alive.
        "address": address or "local",
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": False,
    }
    if not address and actors:
        options["num_cpus"] = actors
    if address.startswith("ray://"):
        options = {"address": address}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises many types here, a bare Exception among them
        said = " ".join(str(error).split())[:300]
        if not address:
            raise TrainingError(
                f"engine.backend = 'ray': Ray did not start on this machine: {said}; free memory "
                f"or processors, or use --backend local"
            ) from None
        raise ConfigError(
            f"engine.address = '{address}': no Ray cluster answers there ({said}); give "
            f"ray://HOST:10001, or leave it out for one on this machine"
        ) from None


def _named(chunks: Sequence[Chunk], at: int | None) -> str:
    if at is None:
        return "no clients"
    shown = ", ".join(map(str, chunks[at][:8]))
    return f"clients {shown}{', ...' if len(chunks[at]) > 8 else ''} ({len(chunks[at])} at once)"


def _explained(error: RayTaskError, chunks: Sequence[Chunk], at: int) -> TrainingError:
    cause = error.cause if isinstance(error.cause, Exception) else error
    if isinstance(cause, FedsysError):
        return TrainingError(str(cause))
    text = " ".join(str(cause).split())[-500:]
    return TrainingError(f"{_named(chunks, at)}: {type(cause).__name__}: {text}")
