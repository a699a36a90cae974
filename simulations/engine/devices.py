"""The engine on GPUs: data stays resident, a chunk is one graph, only flat integer sums come back.

Chunks are dealt to the devices in turn and their int64 sums are added, so the result does not
depend on the number of devices. One host thread serves all devices: while they compute, it prepares
the next chunk's schedule and draws the clients' noise shares.

The same code runs on a CPU without graphs, which is how it is tested. It is unmeasured on a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from client.privatize.recorded import FloatSum, IntegerSum, RecordedSum
from client.training.graph.resident import Resident
from client.training.graph.staging import Fetched
from fedsys.errors import FedsysError, TrainingError
from fedsys.privacy import Encoded, event_from_json, mechanism_for
from fedsys.wire.assignment import batch_seed
from simulations.engine.base import Chunk, Engine
from simulations.engine.chunk import ChunkTrainer, RoundWork, Tally
from simulations.population import Population
from simulations.randomness import Randomness

__all__ = ["Devices", "device_names"]

_log = logging.getLogger(__name__)


def device_names(asked: torch.device) -> tuple[str, ...]:
    """Every GPU for plain ``cuda``, otherwise only the device asked for.

    >>> device_names(torch.device("cuda:1"))
    ('cuda:1',)
    """
    if asked.type == "cuda" and asked.index is None:
        return tuple(f"cuda:{index}" for index in range(max(torch.cuda.device_count(), 1)))
    return (str(asked),)


class Devices(Engine):
    """An engine over devices; see `simulations.engine.base.Engine`.

    Args:
        populations: The same virtual clients once for each device, with a trainer on that device.
        randomness: Source of their noise.
        path: Path of local training; with ``graph``, clipping and the sum are in the graph too.
        deadline: Seconds that a chunk may take.
    """

    def __init__(
        self,
        populations: Sequence[Population],
        randomness: Randomness,
        *,
        path: str,
        deadline: float,
    ) -> None:
        recorded = path == "graph"
        self._devices = [_Device(each, randomness, recorded, deadline) for each in populations]

    @property
    def processes(self) -> int:
        """Number of devices; the number of chunks is a multiple of it."""
        return len(self._devices)

    def total(
        self, work: RoundWork, chunks: Sequence[Chunk], length: int
    ) -> tuple[NDArray[np.int64], Tally]:
        """See `Engine`."""
        for device in self._devices:
            device.begin(work, length)
        for number, chunk in enumerate(chunks):
            self._devices[number % len(self._devices)].add(chunk)
        total, tally = np.zeros(length, dtype=np.int64), Tally()
        for device in self._devices:
            tally = tally + device.end(total)
        return total, tally

    def vectors(self, work: RoundWork, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Encoded]]:
        """See `Engine`."""
        for device in self._devices:
            device.chunks.begin(work)
        for number, chunk in enumerate(chunks):
            yield chunk, self._devices[number % len(self._devices)].chunks.vectors(chunk)

    def close(self) -> None:
        """See `Engine`."""
        for device in self._devices:
            device.release()


class _Device:
    """One device: its part of a round's sum stays there until the round ends."""

    def __init__(
        self, population: Population, randomness: Randomness, recorded: bool, deadline: float
    ) -> None:
        self.chunks = ChunkTrainer(population, randomness)
        self._recorded = recorded
        self._population, self._deadline = population, deadline
        self._resident: Resident | None = None
        self._finishes: dict[tuple[str, float], IntegerSum | FloatSum] = {}
        self._finish: IntegerSum | FloatSum | None = None
        self._most: int | None = None
        self._number = 0
        self._exhausted: frozenset[int] = frozenset()
        self._tally = Tally()
        self._host: NDArray[np.int64]
        self._total: torch.Tensor
        self._open: tuple[RecordedSum, Fetched, int] | None = None

    def begin(self, work: RoundWork, length: int) -> None:
        """Start a round: the chunks that follow belong to it, and any earlier state is dropped."""
        self.chunks.begin(work)
        self._number, self._tally, self._open = work.number, Tally(), None
        self._exhausted = work.exhausted
        self._host = np.zeros(length, dtype=np.int64)
        self._finish = self._finish_for(work)
        if self._finish is None:
            return
        if self._resident is None:
            self._resident = self._population.trainer.resident(self._population.train_set)
        self._resident.begin(work.weights)
        self._total = torch.zeros(length, dtype=torch.int64, device=self._population.trainer.device)

    def add(self, clients: Chunk) -> None:
        """Train clients and add what they contribute; the device may still be busy on return."""
        if self._finish is None or self._resident is None:
            self._tally = self._tally + self.chunks.add(clients, self._host)
            return
        training = [client for client in clients if client not in self._exhausted]
        self._train_in_parts(self._resident, self._finish, training)
        self.chunks.add_shares(clients, self._host)

    def end(self, total: NDArray[np.int64]) -> Tally:
        """Add this device's part of the round to `total`."""
        self._settle()
        total += self._host
        if self._finish is not None and self._resident is not None:
            total += self._resident.staging.fetch(self._total).wait(self._deadline)
        return self._tally

    def release(self) -> None:
        """Release the graphs and their memory."""
        self._open = None
        if self._resident is not None:
            self._resident.release()

    def _finish_for(self, work: RoundWork) -> IntegerSum | FloatSum | None:
        """The sum in the graph; None where clients train on another path, or contribute anything
        but clipped, wide-encoded updates. What else a round may bring (``shared``, ``states``) is
        for procedures, which do not train by graphs."""
        event = event_from_json(work.mechanism)
        if not self._recorded:
            return None
        if event.sampling.participation < 1 or work.clipping is not None or work.weight_cap:
            return None
        if work.factor != 1:
            return None
        if not mechanism_for(event).sums_integers:
            return None
        kind = FloatSum if work.protocol == "float" else IntegerSum
        # The same object for the same sum, because recorded graphs are keyed by it.
        return self._finishes.setdefault((kind.__name__, event.clip), kind(event.clip))

    def _train_in_parts(
        self, resident: Resident, finish: IntegerSum | FloatSum, clients: Sequence[int]
    ) -> None:
        """Train no more clients at once than memory holds, a limit that may fall on the way."""
        while clients:
            most = self._most or len(clients)
            part, clients = clients[:most], clients[most:]
            self._train(resident, finish, part)

    def _train(
        self, resident: Resident, finish: IntegerSum | FloatSum, clients: Sequence[int]
    ) -> None:
        population = self._population
        rows = [population.partition.indices_of(client) for client in clients]
        order = sorted(range(len(rows)), key=lambda at: -len(rows[at]))
        rows, clients = [rows[at] for at in order], [clients[at] for at in order]
        seeds = [batch_seed(population.seed, self._number, client) for client in clients]
        try:
            schedule = resident.plan(rows, seeds)
            self._settle()
            if not schedule.steps:
                self._tally = self._tally + Tally(trained=len(clients))
                return
            epoch = resident.train(schedule, seeds, finish)
            if isinstance(epoch.finished, RecordedSum):
                flags = resident.staging.fetch(epoch.finished.flags)
                self._open = (epoch.finished, flags, len(clients))
        except torch.OutOfMemoryError as error:
            self._halve(resident, finish, clients, error)
        except FedsysError:
            raise
        except (Exception, SystemExit) as error:
            raise self._explained(clients, error) from error

    def _halve(
        self,
        resident: Resident,
        finish: IntegerSum | FloatSum,
        clients: Sequence[int],
        error: torch.OutOfMemoryError,
    ) -> None:
        count = len(clients)
        if count == 1:
            raise TrainingError(
                f"client {clients[0]}: out of memory on {self._population.trainer.device} with "
                f"this client alone; use a smaller local.batch_size or model, or --device cpu"
            ) from error
        resident.release()
        self._most = count // 2
        _log.warning(
            "out of memory on %s with %d clients at once: going on with %d; set engine.chunk to "
            "at most %d",
            self._population.trainer.device,
            count,
            self._most,
            self._most,
        )
        self._train_in_parts(resident, finish, clients)

    def _explained(self, clients: Sequence[int], error: BaseException) -> TrainingError:
        """The error with the client that caused it, if training again outside the graph fails."""
        try:
            self.chunks.vectors(clients)
        except TrainingError as found:
            return found
        return TrainingError(
            f"clients {clients[0]} to {clients[-1]} ({len(clients)} at once): "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}; set engine.path = "
            f"'batched' or 'loop'"
        )

    def _settle(self) -> None:
        """Wait for the last chunk, and add its sum and counts."""
        if self._open is None:
            return
        summed, flags, count = self._open
        self._open = None
        clipped, unusable, left = flags.wait(self._deadline)
        if left.any():
            summed.settle()
        self._total += summed.total
        self._tally = self._tally + Tally(
            trained=count, clipped=int(clipped.sum()), unusable=int(unusable.sum())
        )
