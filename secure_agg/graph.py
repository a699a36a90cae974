"""Who masks with whom: a random k-regular graph that no member and no server can choose.

The slots 0..n-1 are put in an order drawn from the revealed nonces; a slot's neighbours are the
k/2 before it and the k/2 after it in that circle (a Harary graph under a random permutation, Bell
et al., CCS 2020, section 3). The members that advertised take the first slots by increasing id;
empty slots stand for those that never answered, so that the hypergeometric bounds hold for n
itself however many that are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from secure_agg.prg import stream

__all__ = ["Graph"]


class Graph:
    """Neighbours of every member.

    Args:
        slots: n of the parameters.
        degree: k; even, or n - 1 for the complete graph.
        members: How many slots are taken.
        seed: 32 bytes that all nonces went into.

    Attributes:
        neighbours: For each member, the increasing indices of its neighbours.
        places: ``places[u][j]`` is u's own place among the neighbours of its j-th neighbour.
    """

    __slots__ = ("neighbours", "places")

    def __init__(self, *, slots: int, degree: int, members: int, seed: bytes) -> None:
        if degree == slots - 1:
            every = np.arange(members)
            rows = [np.delete(every, u) for u in range(members)]
        else:
            rows = _harary(slots, degree, members, seed)
        self.neighbours: list[list[int]] = [row.tolist() for row in rows]
        self.places: list[list[int]] = _places(rows)


def _harary(slots: int, degree: int, members: int, seed: bytes) -> list[npt.NDArray[Any]]:
    keys = np.frombuffer(stream(seed, 8 * slots), "<u8")
    order = np.argsort(keys, kind="stable")
    steps = np.arange(1, degree // 2 + 1)
    offsets = np.concatenate((-steps, steps))
    table = np.empty((slots, degree), np.int64)
    table[order] = order[(np.arange(slots)[:, None] + offsets) % slots]
    table.sort(axis=1)
    return [row[row < members] for row in table[:members]]


def _places(rows: list[npt.NDArray[Any]]) -> list[list[int]]:
    """Find edge (v, u) for each edge (u, v) in the list of all edges, which is sorted."""
    counts = np.array([len(row) for row in rows])
    starts = np.concatenate(([0], np.cumsum(counts)))
    tails = np.repeat(np.arange(len(rows)), counts)
    heads = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    at = np.searchsorted(tails * len(rows) + heads, heads * len(rows) + tails) - starts[heads]
    flat = at.tolist()
    return [flat[a:b] for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
