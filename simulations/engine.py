"""Where virtual clients train: in this process, in several, or on a Ray cluster, to one sum.

An engine takes a round's clients in chunks and gives back their sum. What a chunk is and what it
adds does not depend on the engine, so for the same chunks all of them give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.privatize import Privatized
from simulations.chunk import ChunkTrainer, RoundWork, Tally
from simulations.population import Population
from simulations.randomness import Randomness

__all__ = ["Chunk", "Engine", "InProcess"]

Chunk = tuple[int, ...]


class Engine(Protocol):
    """Trains the chunks of one round after the other."""

    def total(
        self, work: RoundWork, chunks: Sequence[Chunk], length: int
    ) -> tuple[NDArray[np.int64], Tally]:
        """The flat sum (length,) of all chunks, and what it saw.

        Raises:
            TrainingError: names client, cause and remedy.
        """
        ...

    def vectors(
        self, work: RoundWork, chunks: Sequence[Chunk]
    ) -> Iterator[tuple[Chunk, Privatized]]:
        """Each client's own privatized vector, chunk by chunk, in any order of the chunks."""
        ...

    def close(self) -> None:
        """Lets go of processes and memory; once closed it stays closed."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class InProcess:
    """One process, one chunk after the other."""

    def __init__(self, population: Population, randomness: Randomness) -> None:
        self._trainer = ChunkTrainer(population, randomness)

    def total(
        self, work: RoundWork, chunks: Sequence[Chunk], length: int
    ) -> tuple[NDArray[np.int64], Tally]:
        """See `Engine`."""
        self._trainer.begin(work)
        total, tally = np.zeros(length, dtype=np.int64), Tally()
        for chunk in chunks:
            tally = tally + self._trainer.add(chunk, total)
        return total, tally

    def vectors(
        self, work: RoundWork, chunks: Sequence[Chunk]
    ) -> Iterator[tuple[Chunk, Privatized]]:
        """See `Engine`."""
        self._trainer.begin(work)
        for chunk in chunks:
            yield chunk, self._trainer.vectors(chunk)

    def close(self) -> None:
        """See `Engine`."""

    def __enter__(self) -> InProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
