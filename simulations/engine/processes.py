"""Several processes with shared data, each of which adds into a flat sum of its own.

A chunk goes to any process that is free. A process that dies takes its sum with it: what it had
added in this round is done again by the others and by its successor, so the result is the same to
the bit. Every wait has a deadline, and every error names the clients that it concerns.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import TrainingError
from fedsys.privacy import Encoded, Mechanism, ring_dtype
from simulations.engine.arena import Arena, anonymous_file
from simulations.engine.base import Chunk, Engine
from simulations.engine.chunk import RoundWork, Tally
from simulations.engine.worker import PopulationSpec, WorkerSpec, pool_arrays
from simulations.population import Population

__all__ = ["Processes", "Recruits"]

_DEATHS = 3
"""A chunk that kills this many processes ends the run."""

_FAREWELL = 2.0

_LARGE_PAGES = "glibc.malloc.hugetlb=1"
"""Asks for large pages where the C library and kernel have them; saves 2 to 5% of training time."""


@dataclass(eq=False)
class _Member:
    """One worker process and what it is doing."""

    process: subprocess.Popen[bytes]
    link: Connection
    row: int
    ready: bool = False
    briefed: bool = False
    chunk: int | None = None
    drawn: int = 0
    since: float = 0.0
    done: list[int] = field(default_factory=list)

    def send(self, message: tuple[Any, ...]) -> None:
        # As `Connection.send` does, but that makes a pickler of its own for each message.
        raw = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        with contextlib.suppress(OSError):  # the process is dead; the next wait finds out
            self.link.send_bytes(raw)

    def stop(self) -> None:
        self.link.close()
        if self.chunk is not None:
            self.process.kill()
        try:
            self.process.wait(_FAREWELL)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Recruits:
    """Worker processes that start, and import what they need, before their work is known.

    Args:
        count: Number of processes.
        threads: Torch threads of each.

    Attributes:
        descriptor: Descriptor of the empty file that will be their shared memory.

    Raises:
        TrainingError: The operating system starts no more processes.
    """

    def __init__(self, count: int, *, threads: int) -> None:
        self.descriptor = anonymous_file()
        self._threads = threads
        self._waiting: deque[tuple[subprocess.Popen[bytes], Connection]] = deque()
        try:
            for _ in range(count):
                self._waiting.append(self._started())
        except OSError as error:
            self.close()
            raise TrainingError(
                f"engine.processes = {count}: a worker could not be started: {error}; set it to 1"
            ) from None

    def next(self) -> tuple[subprocess.Popen[bytes], Connection]:
        """A process that is waiting for work, or a new one."""
        return self._waiting.popleft() if self._waiting else self._started()

    def close(self) -> None:
        """End the processes that got no work, and close the file."""
        for process, link in self._waiting:
            link.close()
            process.kill()
            process.wait()
        self._waiting.clear()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _started(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = (theirs.fileno(), self.descriptor)
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "simulations.engine.worker", *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a user's code prints must not mix with what the command prints
                pass_fds=descriptors,
                env=_environment(self._threads),
            )
        return process, Connection(ours.detach())


class Processes(Engine):
    """An engine of `processes` workers; see `simulations.engine.base.Engine`.

    Args:
        population: The virtual clients.
        spec: How a worker rebuilds them.
        mechanism: The job's mechanism, for the sizes of its vectors.
        processes: Number of workers.
        chunk: Number of clients in the largest chunk.
        singly: Whether single clients' vectors will be needed, which takes shared memory.
        deadline: Seconds that a chunk, or a worker's start, may take.
        recruits: Processes that were started beforehand; this engine closes them.
    """

    def __init__(
        self,
        population: Population,
        spec: PopulationSpec,
        *,
        mechanism: Mechanism,
        processes: int,
        chunk: int,
        singly: bool,
        deadline: float,
        recruits: Recruits | None = None,
    ) -> None:
        self._deadline = deadline
        self._recruits = recruits or Recruits(processes, threads=spec.threads)
        pickled, buffers = pool_arrays(population)
        raws = [buffer.raw() for buffer in buffers]
        names = tuple(f"pool {at}" for at in range(len(raws)))
        width = mechanism.length
        dtype = ring_dtype(mechanism.modulus_bits).name
        self._arena = Arena.of(
            {
                "weights": ((population.trainer.dimension,), "float32"),
                "totals": ((processes, width), "int64"),
                "noise": ((width,), "int64"),
                "vectors": ((processes, chunk if singly else 0, width), dtype),
                **{name: ((raw.nbytes,), "uint8") for name, raw in zip(names, raws, strict=True)},
            },
            os.dup(self._recruits.descriptor),
        )
        for name, raw in zip(names, raws, strict=True):
            self._arena.array(name)[:] = np.frombuffer(raw, dtype=np.uint8)
        self._spec = WorkerSpec(
            population=spec, pool=pickled, buffers=names, places=self._arena.places, row=0
        )
        self._members: list[_Member] = []
        try:
            for row in range(processes):
                self._members.append(self._hire(row))
        except OSError as error:
            self.close()
            raise TrainingError(
                f"engine.processes = {processes}: a worker could not be started: {error}; set it "
                f"to 1"
            ) from None

    @property
    def processes(self) -> int:
        """Number of workers."""
        return len(self._members)

    @property
    def pids(self) -> tuple[int, ...]:
        """The workers' process ids."""
        return tuple(member.process.pid for member in self._members)

    def total(
        self, work: RoundWork, chunks: Sequence[Chunk], length: int
    ) -> tuple[NDArray[np.int64], Tally]:
        """See `Engine`."""
        tallies: dict[int, Tally] = {}
        for at, reply, _member in self._run(work, chunks, "add"):
            tallies[at] = reply[2]
        totals = self._arena.array("totals")
        total = np.zeros(length, dtype=np.int64)
        for member in self._members:
            if member.done:
                total += totals[member.row]
        return total, sum(tallies.values(), start=Tally())

    def vectors(self, work: RoundWork, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Encoded]]:
        """See `Engine`."""
        slots = self._arena.array("vectors")
        for at, reply, member in self._run(work, chunks, "vectors"):
            vectors = slots[member.row, : len(chunks[at])]
            clipped, unusable, norms = reply[2:]
            yield (
                chunks[at],
                Encoded(values=vectors, clipped=clipped, unusable=unusable, norms=norms),
            )

    def draw_ahead(self, round: int, key: bytes) -> bool:
        """See `Engine`; the first process draws, as it knows the mechanism from its last chunk."""
        able = bool(self._members) and self._members[0].briefed and self._members[0].chunk is None
        if able:
            self._members[0].send(("draw", (round, key), None))
        return able

    def take_drawn(self, round: int) -> NDArray[np.int64] | None:
        """See `Engine`; ready once the process that drew it has also replied to a chunk."""
        if not self._members or self._members[0].drawn != round:
            return None
        self._members[0].drawn = 0
        drawn: NDArray[np.int64] = self._arena.array("noise").copy()
        return drawn

    def close(self) -> None:
        """See `Engine`."""
        for member in self._members:
            member.stop()
        self._members = []
        self._recruits.close()
        self._arena.close()

    def _run(
        self, work: RoundWork, chunks: Sequence[Chunk], verb: str
    ) -> Iterator[tuple[int, tuple[Any, ...], _Member]]:
        """Each chunk's number and reply; a number comes twice if its sum was lost."""
        if not self._members:
            raise TrainingError("the engine's processes have ended; start the run again")
        self._arena.array("weights")[:] = work.weights
        brief = pickle.dumps(replace(work, weights=np.zeros(0, dtype=np.float32)))
        waiting, deaths = deque(range(len(chunks))), Counter[object]()
        for member in list(self._members):
            if member.chunk is not None:  # it still works for an earlier round that was aborted
                member.stop()
                member = self._members[member.row] = self._hire(member.row)
            member.done.clear()
            member.briefed = False
        while waiting or any(member.chunk is not None for member in self._members):
            for member in self._members:
                if waiting and member.ready and member.chunk is None:
                    member.chunk, member.since = waiting.popleft(), time.monotonic()
                    # The round's brief goes with its first chunk, so that a worker wakes only once.
                    member.send((verb, chunks[member.chunk], None if member.briefed else brief))
                    member.briefed = True
            for member in self._heard_of(chunks):
                try:
                    reply = member.link.recv()
                except (EOFError, OSError):
                    self._mourn(member, chunks, deaths)
                    lost = [] if member.chunk is None else [member.chunk]
                    waiting.extendleft(lost + (member.done if verb == "add" else []))
                    self._members[member.row] = self._hire(member.row)
                    continue
                if reply[0] == "failed":
                    self.close()
                    raise TrainingError(reply[1])
                if reply[0] == "ready":
                    member.ready = True
                    continue
                done, member.chunk = member.chunk, None
                member.drawn = reply[1] or member.drawn
                if done is not None:
                    member.done.append(done)
                    yield done, reply, member

    def _heard_of(self, chunks: Sequence[Chunk]) -> list[_Member]:
        """Workers with a reply, or dead; waits for at least one, until the first deadline."""
        awaited = [m for m in self._members if m.chunk is not None or not m.ready]
        first = min(awaited, key=lambda member: member.since)
        left = first.since + self._deadline - time.monotonic()
        links = {member.link: member for member in awaited}
        found = [links[link] for link in wait(list(links), max(left, 0.0))]  # type: ignore[index]
        if found or left > 0:
            return found
        doing = "starting" if first.chunk is None else _named(chunks[first.chunk])
        self.close()
        raise TrainingError(
            f"{doing}: a worker process gave no answer for {self._deadline:g} s; raise "
            f"engine.deadline, or lower engine.chunk"
        )

    def _mourn(self, member: _Member, chunks: Sequence[Chunk], deaths: Counter[object]) -> None:
        """Count a death; too many on one chunk end the run."""
        member.stop()
        deaths[member.chunk] += 1
        if deaths[member.chunk] < _DEATHS:
            return
        self.close()
        doing = "starting" if member.chunk is None else _named(chunks[member.chunk])
        raise TrainingError(
            f"{doing}: {_DEATHS} worker processes died, the last {_cause(member.process)}; lower "
            f"engine.processes or engine.chunk if memory ran out"
        )

    def _hire(self, row: int) -> _Member:
        process, link = self._recruits.next()
        member = _Member(process=process, link=link, row=row, since=time.monotonic())
        link.send(replace(self._spec, row=row))
        return member


def _environment(threads: int) -> dict[str, str]:
    """This process's environment with its import path, and with this many threads."""
    paths = [path or os.getcwd() for path in sys.path]
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _LARGE_PAGES.partition("=")[0] not in tunables:
        tunables = f"{tunables}:{_LARGE_PAGES}".lstrip(":")
    return {
        **os.environ,
        "GLIBC_TUNABLES": tunables,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def _named(chunk: Chunk) -> str:
    shown = ", ".join(map(str, chunk[:8]))
    return f"clients {shown}{', ...' if len(chunk) > 8 else ''} ({len(chunk)} at once)"


def _cause(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    if code is not None and code < 0:
        try:
            return f"by {signal.Signals(-code).name}"
        except ValueError:
            return f"by signal {-code}"
    return f"with status {code}"
