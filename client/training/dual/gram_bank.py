"""Gram matrices of clients' data, kept for the rounds in which the same clients come back."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["GramBank"]

_LIMIT = 32 << 20
"""Bytes a process: enough for some 3,000 clients of 50 examples."""

_ENTRY = 256
"""Bytes that a client costs beside its matrix and its rows: those count where clients are tiny."""


class GramBank:
    """Keeps X X^T of each client until there is no more room; then it begins anew.

    A matrix is computed from its client's examples in their own order, alone: it has the same bits
    whoever else trains, and whether it was kept.

    Args:
        limit: bytes, at most, or what one chunk takes if that is more.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._pool: Tensor | None = None
        self._kept: Tensor | None = None
        self._slots: dict[bytes, int] = {}

    def take(
        self,
        data: Tensor,
        pool: Tensor,
        rows: NDArray[np.int64],
        visits: NDArray[np.int64],
        out: Tensor,
    ) -> None:
        """Each client's X X^T into `out` (K, T, T), its rows and columns in the order of visits.

        Args:
            data: (K, T, n) the clients' data, on the CPU.
            pool: of which they were made, always in the same way; known by its identity, and not
                changed.
            rows: (K, T) rows of the pool, those of a client in the same order each time.
            visits: (K, T) row t of a client's result is of its row ``visits[k, t]`` of the data.
            out: written.
        """
        total = rows.shape[1]
        keys = [row.tobytes() for row in rows]
        kept = self._with_room(data, pool, total, keys)
        for client, key in enumerate(keys):
            if key not in self._slots:
                slot = len(self._slots)
                torch.mm(data[client], data[client].T, out=kept[slot])
                self._slots[key] = slot  # only now: memory may run out in the product
        slots = np.array([self._slots[key] for key in keys])
        lines = torch.from_numpy((slots[:, None] * total + visits).reshape(-1))
        found = kept.view(-1, total).index_select(0, lines).view(out.shape)
        columns = torch.from_numpy(visits)[:, None, :].expand(out.shape)
        torch.gather(found, 2, columns, out=out)

    def _with_room(self, data: Tensor, pool: Tensor, total: int, keys: list[bytes]) -> Tensor:
        """The matrices (C, T, T), with room for those of `keys` that are not among them."""
        kept = self._kept
        fits = kept is not None and kept.shape[1] == total and kept.dtype == data.dtype
        if kept is None or not fits or len(kept) < len(keys):
            each = total * total * data.element_size() + total * 8 + _ENTRY
            kept = data.new_empty((max(self._limit // each, len(keys)), total, total))
            self._pool, self._kept = None, kept
        more = sum(key not in self._slots for key in keys)
        if pool is not self._pool or len(self._slots) + more > len(kept):
            self._slots.clear()
            self._pool = pool
        return kept
