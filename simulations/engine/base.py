"""The engines' interface, and the engine that trains in this process.

An engine takes a round's clients in chunks and returns their sum. What a chunk adds does not depend
on the engine, so all engines give the same bits for the same chunks.
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
    """Trains rounds one after the other, each in chunks of clients.

    Attributes:
        keeps_vectors: Whether the vectors of a chunk stay as they are when the next is asked for.
    """

    keeps_vectors: bool = False

    @property
    def processes(self) -> int:
        """Number of processes that train in parallel."""
        ...

    def total(
        self, work: RoundWork, chunks: Sequence[Chunk], length: int
    ) -> tuple[NDArray[np.int64], Tally]:
        """The flat sum (length,) of all chunks, and counts of its clients.

        Raises:
            TrainingError: A client could not train; names the client, the cause and the remedy.
        """
        ...

    def vectors(self, work: RoundWork, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Encoded]]:
        """Each client's own privatized vector, chunk by chunk; chunks may come in any order.

        The next chunk may overwrite the vectors of the one before, unless `keeps_vectors`.
        """
        ...

    def draw_ahead(self, round: int, key: bytes) -> bool:
        """Start drawing the coordinator's noise for a later round, from its stream's key, if a
        process is idle; returns whether one is."""
        return False

    def take_drawn(self, round: int) -> NDArray[np.int64] | None:
        """That noise (length,), returned once only; None where it was not drawn."""
        return None

    def close(self) -> None:
        """Release processes and memory; a closed engine cannot be used again."""
        ...

    def __enter__(self) -> Self:
        """Enter a block at whose end the engine is closed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the engine, whatever happened in the block."""
        self.close()


class InProcess(Engine):
    """Trains in this process, one chunk after the other.

    Args:
        population: The virtual clients.
        randomness: Source of their noise.
        threads: Number of torch threads until `close`; 0 leaves it as it is.
    """

    keeps_vectors = True

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
        for at, chunk in enumerate(chunks):
            self._trainer.expect(chunks[at + 1] if at + 1 < len(chunks) else ())
            tally = tally + self._trainer.add(chunk, total)
        return total, tally

    def vectors(self, work: RoundWork, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Encoded]]:
        """See `Engine`."""
        self._trainer.begin(work)
        for at, chunk in enumerate(chunks):
            self._trainer.expect(chunks[at + 1] if at + 1 < len(chunks) else ())
            yield chunk, self._trainer.vectors(chunk)

    def close(self) -> None:
        """See `Engine`."""
        torch.set_num_threads(self._threads_before)


@contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Have torch use this many threads inside the block; 0 changes nothing."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
