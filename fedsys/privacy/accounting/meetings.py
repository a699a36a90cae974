"""How often curious clients were in the same cohort as their target."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXACT_POPULATION", "Meetings"]

EXACT_POPULATION = 4096
"""The largest population whose pairs are counted one by one: in 32 MiB, or 64 MiB for a job of
65,536 rounds or more."""

_SMALL = 512
"""Pairs of cohorts up to this size are counted all at once, those of larger ones row by row."""


@lru_cache(maxsize=64)
def _pairs_of(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The indices (size (size - 1) / 2,) of the smaller and the larger member of each pair."""
    return np.triu_indices(size, k=1)


class Meetings:
    """A bound on the rounds that any client shared with at least one of any c other clients.

    Exact for c = 1 in populations up to ``EXACT_POPULATION``. With more colluders, the sum over the
    c most frequent companions bounds the union of their rounds. In larger populations the bound is
    the number of the client's own rounds, which it never exceeds in any case.

    Args:
        population: N.
        colluders: c, at least 1.

    >>> meetings = Meetings(population=10, colluders=1)
    >>> for cohort in ([0, 1, 2], [0, 1], [1, 2]):
    ...     meetings.add(np.array(cohort))
    >>> meetings.most
    2
    """

    def __init__(self, *, population: int, colluders: int) -> None:
        self._colluders = colluders
        self._own = np.zeros(population, dtype=np.int64)
        self.exact = population <= EXACT_POPULATION
        """Whether pairs are counted one by one."""
        # More of a narrow table fits into a cache; it is widened before a count could wrap.
        self._pairs = np.zeros((population, population) if self.exact else (0, 0), dtype=np.uint16)
        self._added = 0
        self.most = 0
        """The bound for the worst client so far."""

    def add(self, cohort: NDArray[np.int64]) -> None:
        """Counts one cohort (k,) of distinct clients."""
        self._own[cohort] += 1
        if cohort.size < 2:
            return
        if not self.exact:
            self.most = max(self.most, int(self._own[cohort].max()))
            return
        self._added += 1
        if self._added > np.iinfo(self._pairs.dtype).max:
            self._pairs = self._pairs.astype(np.uint32)
        if self._colluders == 1:
            self.most = max(self.most, self._count(np.sort(cohort)))
            return
        block = np.ix_(cohort, cohort)
        met = self._pairs[block] + self._pairs.dtype.type(1)
        np.fill_diagonal(met, 0)
        self._pairs[block] = met
        rows = self._pairs[cohort]
        count = min(self._colluders, rows.shape[1])
        top = np.partition(rows, rows.shape[1] - count, axis=1)[:, -count:].sum(axis=1)
        self.most = max(self.most, int(np.minimum(top, self._own[cohort]).max()))

    def _count(self, cohort: NDArray[np.int64]) -> int:
        """Counts each pair of an increasing cohort (k,), in one triangle of the table only; returns
        the largest count."""
        one = self._pairs.dtype.type(1)
        if cohort.size > _SMALL:
            most = 0
            for at, client in enumerate(cohort[:-1].tolist()):
                later, row = cohort[at + 1 :], self._pairs[client]
                met = row.take(later)
                met += one
                row[later] = met
                most = max(most, int(met.max()))
            return most
        low, high = _pairs_of(cohort.size)
        places = (cohort * len(self._own)).take(low)
        places += cohort.take(high)
        flat = self._pairs.reshape(-1)
        counts = flat.take(places)
        counts += one
        flat[places] = counts
        return int(counts.max())
