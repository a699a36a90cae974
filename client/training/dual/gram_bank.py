"""Gram matrices of clients' data, cached for later rounds with the same clients."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["GramBank"]

_LIMIT = 32 << 20
"""Bytes per process: enough for some 3,000 clients of 50 examples."""

_ENTRY = 256
"""Bytes per client besides its matrix and its rows; they matter where clients are tiny."""


class GramBank:
    """Caches X X^T of each client; when it is full, it is emptied.

    A matrix is computed from a copy of one client's examples in their own order. So its bits depend
    neither on who else trains nor on whether it was cached, nor on where in a chunk the client was
    first seen: a BLAS chooses its kernels by where in memory an operand begins as well.

    Args:
        limit: bytes to hold at most, or what one chunk takes if that is more.
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
        """Write each client's X X^T into `out`, with rows and columns in the order of visits.

        With P the permutation matrix of a client's visits, out = (P X)(P X)^T = P (X X^T) P^T:
        reordering the cached matrix gives the round's matrix without a product.

        Args:
            data: (K, T, n) the clients' data, on the CPU.
            pool: the examples that `data` was computed from, always in the same way; recognised by
                identity, so it must not be changed in place.
            rows: (K, T) each client's rows of the pool, in the same order each time.
            visits: (K, T) the t-th visit of client k is of its row ``visits[k, t]`` of `data`.
            out: (K, T, T), overwritten.
        """
        total = rows.shape[1]
        keys = [row.tobytes() for row in rows]
        kept = self._with_room(data, pool, total, keys)
        for client, key in enumerate(keys):
            if key not in self._slots:
                slot = len(self._slots)
                own = data[client].clone()
                torch.mm(own, own.T, out=kept[slot])
                self._slots[key] = slot  # only now: memory may run out in the product
        slots = np.array([self._slots[key] for key in keys])
        lines = torch.from_numpy((slots[:, None] * total + visits).reshape(-1))
        found = kept.view(-1, total).index_select(0, lines).view(out.shape)
        columns = torch.from_numpy(visits)[:, None, :].expand(out.shape)
        torch.gather(found, 2, columns, out=out)

    def _with_room(self, data: Tensor, pool: Tensor, total: int, keys: list[bytes]) -> Tensor:
        """The cached matrices (C, T, T), with room for those of `keys` that are missing."""
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
