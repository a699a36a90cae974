"""Which rows a client visits in which step: a pure function of its seed.

Clients of one chunk are sorted by their number of steps, longest first, so that those still
training at a step are the first ones of the chunk: nothing has to be masked for finished clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.training.local import LocalConfig
from client.training.splitmix import state_of, words

__all__ = ["Schedule", "Step", "batches", "build"]

Indices = NDArray[np.int64]
_MASK = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the clients that still train.

    Attributes:
        rows: (A, B) rows of the examples; padding repeats a row of the same client.
        counts: (A,) how many of the B rows are real; those come first.
    """

    rows: Indices
    counts: Indices

    @property
    def full(self) -> bool:
        """Whether no row is padding."""
        return bool((self.counts == self.rows.shape[1]).all())

    def weights(self) -> NDArray[np.float64]:
        """(A, B) each example's weight in its client's mean loss: 1 / count, or 0 for padding."""
        real = np.arange(self.rows.shape[1]) < self.counts[:, None]
        return real / self.counts[:, None]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of one chunk of clients.

    Attributes:
        steps: The steps in order; the number of clients never grows.
        lengths: (K,) the number of steps of each client, not increasing.
    """

    steps: tuple[Step, ...]
    lengths: Indices

    @property
    def clients(self) -> int:
        """K, including clients without any example."""
        return len(self.lengths)

    @property
    def ragged(self) -> bool:
        """Whether some clients finish before the last step."""
        return any(len(step.counts) < self.clients for step in self.steps)

    def rows(self) -> Indices:
        """(K, total) the rows of all steps, side by side; 0 where a client takes no step."""
        rows = np.zeros((self.clients, sum(s.rows.shape[1] for s in self.steps)), dtype=np.int64)
        at = 0
        for step in self.steps:
            active, width = step.rows.shape
            rows[:active, at : at + width] = step.rows
            at += width
        return rows


def build(rows: Sequence[Indices], seeds: Sequence[int], local: LocalConfig) -> Schedule:
    """The schedule of clients that are already sorted by number of steps, longest first."""
    sizes = np.array([len(each) for each in rows], dtype=np.int64)
    a_pass = -(-sizes // local.batch_size)
    lengths = a_pass * local.epochs
    if not len(sizes) or not sizes.max():
        return Schedule(steps=(), lengths=lengths)
    width = int(sizes.max())
    if int(sizes.min()) == width:
        return _even(np.stack(rows), seeds, local, lengths)
    held = np.zeros((len(rows), width), dtype=np.int64)
    for row, each in zip(held, rows, strict=True):
        row[: len(each)] = each
        if len(each):
            row[len(each) :] = each[0]
    steps: list[Step] = []
    orders: dict[int, Indices] = {}
    for number in range(int(lengths.max())):
        active = int(np.count_nonzero(lengths > number))
        epoch, batch = np.divmod(number, a_pass[:active])
        start = batch * local.batch_size
        counts = np.minimum(sizes[:active] - start, local.batch_size)
        columns = np.minimum(start[:, None] + np.arange(int(counts.max())), width - 1)
        visited = np.empty_like(columns)
        for each in np.unique(epoch).tolist():
            if each not in orders:
                orders[each] = _orders(seeds, each, sizes, width)
            here = epoch == each
            visited[here] = np.take_along_axis(orders[each][:active][here], columns[here], axis=1)
        for done in [each for each in orders if each < int(epoch.min())]:
            del orders[done]
        taken = np.take_along_axis(held[:active], visited, axis=1)
        steps.append(Step(rows=taken, counts=counts))
    return Schedule(steps=tuple(steps), lengths=lengths)


def _even(held: Indices, seeds: Sequence[int], local: LocalConfig, lengths: Indices) -> Schedule:
    """The schedule of clients that have the same number of examples (K, size): no padding."""
    clients, size = held.shape
    sizes = np.full(clients, size, dtype=np.int64)
    steps: list[Step] = []
    for epoch in range(local.epochs):
        visited = held[np.arange(clients)[:, None], _orders(seeds, epoch, sizes, size)]
        for start in range(0, size, local.batch_size):
            rows = visited[:, start : start + local.batch_size]
            steps.append(Step(rows=rows, counts=np.full(clients, rows.shape[1], dtype=np.int64)))
    return Schedule(steps=tuple(steps), lengths=lengths)


def batches(rows: Indices, seed: int, local: LocalConfig) -> list[Indices]:
    """One client's batches in order, as a plain loop over its data visits them."""
    schedule = build([rows], [seed], local)
    return [step.rows[0, : step.counts[0]] for step in schedule.steps]


def _orders(seeds: Sequence[int], epoch: int, sizes: Indices, width: int) -> Indices:
    """(K, width) each client's order of its own examples in `epoch`, padding last.

    A permutation is the order that sorts the keys of the SplitMix64 stream of (seed, epoch). It is
    computed for all clients at once, with the same result as for each client alone.
    """
    own = np.array([seed & _MASK for seed in seeds], dtype=np.uint64)
    keys = words(state_of(own, epoch + 1), width)
    keys >>= np.uint64(1)
    if int(sizes.min()) < width:
        keys[np.arange(width) >= sizes[:, None]] = np.uint64(_MASK)
    return np.argsort(keys, axis=1, kind="stable").astype(np.int64, copy=False)
