"""Where virtual clients train: in this process, in several, or on a Ray cluster, to one sum.

An engine takes a round's clients in chunks and gives back their sum. What a chunk is and what it
adds does not depend on the engine, so for the same chunks all of them give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from fedsys.privacy import Encoded
from simulations.engine.chunk import ChunkTrainer, RoundWork, Tally
from simulations.population import Population
from simulations.randomness import Randomness

__all__ = ["Chunk", "Engine", "InProcess", "using_threads"]

Chunk = tuple[int, ...]


class Engine(Protocol):
    """Trains the chunks of one round after the other."""

    @property
    def processes(self) -> int:
        """How many train side by side."""
        ...

    def total(
        self, work: RoundWork, chunks: Sequence[Chunk], length: int
    ) -> tuple[NDArray[np.int64], Tally]:
        """The flat sum (length,) of all chunks, and what it saw.

        Raises:
            TrainingError: names client, cause and remedy.
        """
        ...

    def vectors(self, work: RoundWork, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Encoded]]:
        """Each client's own privatized vector, chunk by chunk, in any order of the chunks."""
        ...

    def draw_ahead(self, round: int) -> bool:
        """Starts to draw the coordinator's noise of a round to come, where a process has nothing to
        do meanwhile; whether there is one."""
        return False

    def take_drawn(self, round: int) -> NDArray[np.int64] | None:
        """That noise (length,), handed out once; None where it did not come about."""
        return None

    def close(self) -> None:
        """Lets go of processes and memory; once closed it stays closed."""
        ...

    def __enter__(self) -> Self:
        """Closed by `__exit__`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Lets go, whatever happened inside."""
        self.close()


class InProcess(Engine):
    """This process, one chunk after the other.

    Args:
        population: the virtual clients.
        randomness: of their noise.
        threads: of torch until `close`; 0 leaves them as they are.
    """

    def __init__(self, population: Population, randomness: Randomness, *, threads: int = 0) -> None:
        self._trainer = ChunkTrainer(population, randomness)
        self._threads_before = torch.get_num_threads()
        if threads:
            torch.set_num_threads(threads)

    @property
    def processes(self) -> int:
        """One."""
        return 1

    def total(
        self, work: RoundWork, chunks: Sequence[Chunk], length: int
    ) -> tuple[NDArray[np.int64], Tally]:
        """See `Engine`."""
        self._trainer.begin(work)
        total, tally = np.zeros(length, dtype=np.int64), Tally()
        for chunk in chunks:
            tally = tally + self._trainer.add(chunk, total)
        return total, tally

    def vectors(self, work: RoundWork, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Encoded]]:
        """See `Engine`."""
        self._trainer.begin(work)
        for chunk in chunks:
            yield chunk, self._trainer.vectors(chunk)

    def close(self) -> None:
        """See `Engine`."""
        torch.set_num_threads(self._threads_before)


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Torch computes with so many threads inside; 0 changes nothing."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
