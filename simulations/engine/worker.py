"""A worker process of the engine: trains the chunks it receives into its row of the shared sums.

Run as ``python -m simulations.engine.worker SOCKET MEMORY`` by `simulations.engine.processes`,
never by hand. It ends when the other side of the socket does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from client.training import LocalConfig, Trainer, keep_freed_memory
from fedsys import tasks
from fedsys.errors import FedsysError
from simulations.engine.arena import Arena, Place
from simulations.engine.chunk import ChunkTrainer, RoundWork
from simulations.engine.pool import SharedPool
from simulations.population import Population
from simulations.randomness import Randomness

__all__ = ["PopulationSpec", "WorkerSpec", "pool_arrays"]


@dataclass(frozen=True, kw_only=True)
class PopulationSpec:
    """Everything needed to rebuild a population in another process, except its arrays.

    Attributes:
        task: How to build the task.
        local: Hyperparameters of local training, by field name.
        device: Training device.
        path: Path of local training, already chosen.
        chunk: Clients trained at once.
        seed: The job's seed.
        randomness: Source of noise; a seeded one in tests only.
        threads: Threads of each process.
    """

    task: tasks.Recipe
    local: dict[str, Any]
    device: str
    path: str
    chunk: int
    seed: int
    randomness: Randomness
    threads: int

    def build(
        self,
        pool: tasks.Examples,
        partition: tasks.Partition,
        by_client: tasks.ByClient | None = None,
    ) -> Population:
        """The population over a pool of examples, or over those that are read client by client."""
        trainer = Trainer(
            self.task.build(),
            LocalConfig(**self.local),
            device=self.device,
            path=self.path,
            chunk=self.chunk,
            seed=self.seed,
            sample=pool,
            checked=True,  # when the path was chosen, in float64: more memory than training
        )
        return Population(
            train_set=pool,
            partition=partition,
            trainer=trainer,
            seed=self.seed,
            by_client=by_client,
        )


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """The first message to a worker.

    Attributes:
        population: How to build the population.
        pool: Pickle of the examples and the partition without their arrays.
        buffers: Names of those arrays in the arena.
        places: Places of all arrays in the arena.
        row: This worker's row of the shared sums.
    """

    population: PopulationSpec
    pool: bytes
    buffers: tuple[str, ...]
    places: dict[str, Place]
    row: int


def pool_arrays(population: Population) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """A population's pool and partition as a pickle, and the arrays left out of it."""
    found: list[pickle.PickleBuffer] = []
    held = (SharedPool.of(population.train_set), population.partition, population.by_client)
    pickled = pickle.dumps(held, protocol=5, buffer_callback=found.append)
    return pickled, found


class _Worker:
    def __init__(self, spec: WorkerSpec, arena: Arena) -> None:
        buffers = [arena.array(name) for name in spec.buffers]
        held = pickle.loads(spec.pool, buffers=buffers)  # noqa: S301 - from the parent
        population = spec.population.build(held[0].examples(), *held[1:])
        self._trainer = ChunkTrainer(population, spec.population.randomness)
        self._weights = arena.array("weights")
        self._total = arena.array("totals")[spec.row]
        self._cleared = False
        self._vectors = arena.array("vectors")[spec.row]
        self._noise = arena.array("noise")
        self._drawn = 0

    def begin(self, work: RoundWork) -> None:
        self._cleared = False
        self._trainer.begin(replace(work, weights=self._weights.copy()))

    def draw(self, round: int, key: bytes) -> None:
        self._noise[:] = self._trainer.top_up(key)
        self._drawn = round

    def add(self, clients: tuple[int, ...]) -> tuple[Any, ...]:
        if not self._cleared:  # a round of single vectors never touches this memory
            self._total[:] = 0
            self._cleared = True
        tally = self._trainer.add(clients, self._total)
        return ("added", self._told(), tally)

    def vectors(self, clients: tuple[int, ...]) -> tuple[Any, ...]:
        found = self._trainer.vectors(clients)
        self._vectors[: len(clients)] = found.values
        return ("vectors", self._told(), found.clipped, found.unusable, found.norms)

    def _told(self) -> int:
        """The round whose noise was drawn since the last reply, or 0."""
        drawn, self._drawn = self._drawn, 0
        return drawn


def serve(link: Connection, arena_descriptor: int) -> None:
    """Reply to messages until the other side closes the socket."""
    spec: WorkerSpec = link.recv()
    torch.set_num_threads(spec.population.threads)
    keep_freed_memory()
    try:
        worker = _Worker(spec, Arena.attached(arena_descriptor, spec.places))
    except (Exception, SystemExit) as error:
        link.send(("failed", f"a worker process could not start: {_said(error)}"))
        return
    link.send(("ready",))
    while True:
        verb, clients, brief = link.recv()
        if verb == "draw":  # has no reply of its own: the next chunk's reply states the round
            worker.draw(*clients)
            continue
        try:
            if brief is not None:
                worker.begin(pickle.loads(brief))  # noqa: S301 - from the parent
            reply = worker.add(clients) if verb == "add" else worker.vectors(clients)
        except (Exception, SystemExit) as error:
            reply = ("failed", _of_clients(error, clients))
        link.send(reply)


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, FedsysError) else f"{type(error).__name__}: {text}"


def _of_clients(error: BaseException, clients: tuple[int, ...]) -> str:
    if isinstance(error, FedsysError):
        return str(error)
    return (
        f"clients {clients[0]} to {clients[-1]} ({len(clients)} at once): {_said(error)}; a "
        f"smaller engine.chunk needs less memory"
    )


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when a run is interrupted
    if sys.platform == "linux":
        # Otherwise a worker that wakes up preempts the parent, which has others to wake.
        with contextlib.suppress(OSError):  # a container may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    link, arena = Connection(int(sys.argv[1])), int(sys.argv[2])
    try:
        serve(link, arena)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main()
