"""Clips in the integers and sums, for a whole chunk, on the device that trained it.

The torch twin of `fedsys.privacy.encoding.clipping`, bit for bit: the same norms, factors and
rounding, but without a (K, d) copy in float64 and without (K, d) integers. Tiles of rows and
columns are widened to float64, scaled, rounded and added; every value is an integer below 2^53, so
sums in float64 are exact in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsys.errors import MechanismError
from fedsys.privacy.encoding.clipping import clipping_factors, squared_norm_limit, wide_scale

__all__ = ["Clipped", "add_clipped_integers"]

_PASSES = 4  # as in fedsys.privacy.encoding.clipping
_HOST_TILE = 1 << 16  # coordinates: two tiles of float64 are 1 MiB, about a second-level cache
_DEVICE_TILE = 1 << 26


@dataclass(frozen=True, kw_only=True, repr=False)
class Clipped:
    """How clipping changed K updates; it never leaves the client.

    Attributes:
        clipped: (K,) whether the row's norm exceeded C.
        unusable: (K,) whether the row was not finite and counted as zeros.
    """

    clipped: NDArray[np.bool_]
    unusable: NDArray[np.bool_]


def add_clipped_integers(total: Tensor, updates: Tensor, *, clip: float) -> Clipped:
    """Add the clipped integers of K updates to `total`, in place.

    Args:
        total: (d,) float64 integers, on the updates' device.
        updates: (K, d) float32. Rows that are not finite are set to zero.
        clip: C, the clipping norm.

    Raises:
        MechanismError: shapes or dtypes do not fit.
    """
    if updates.dim() != 2 or updates.dtype != torch.float32:
        raise MechanismError(
            f"updates must be (K, d) float32, got {updates.dtype} {tuple(updates.shape)}"
        )
    if total.shape != updates.shape[1:] or total.dtype != torch.float64:
        raise MechanismError(
            f"total must be ({updates.shape[1]},) float64, got {total.dtype} {tuple(total.shape)}"
        )
    if not len(updates):
        return Clipped(clipped=np.zeros(0, dtype=np.bool_), unusable=np.zeros(0, dtype=np.bool_))
    count, dimension = updates.shape
    tile = _HOST_TILE if updates.device.type == "cpu" else _DEVICE_TILE
    at_once = min(count, max(1, tile // dimension))
    width = min(dimension, tile)
    tiles = updates.new_empty((2, at_once * width), dtype=torch.float64)
    clipped = np.empty(count, dtype=np.bool_)
    finite = np.empty(count, dtype=np.bool_)
    for start in range(0, count, at_once):
        part = slice(start, start + at_once)
        group = _Group(updates[part], width, tiles[0], tiles[1])
        clipped[part], finite[part] = group.add_to(total, clip)
    return Clipped(clipped=clipped, unusable=~finite)


class _Group:
    """R rows, scaled and rounded in tiles of `width` columns."""

    def __init__(self, rows: Tensor, width: int, wide: Tensor, scaled: Tensor) -> None:
        self._rows = rows
        self._count, self._dimension = rows.shape
        self._starts = range(0, self._dimension, width)
        self._width, self._wide, self._scaled = width, wide, scaled
        self._held = -1

    def add_to(self, total: Tensor, clip: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Add the rows' clipped integers; returns (R,) which were clipped and which are finite."""
        norms, finite = self._norms()
        if not finite.all():
            self._rows[torch.from_numpy(~finite).to(self._rows.device)] = 0
            self._held = -1
        scale = wide_scale(self._dimension, clip)
        factors = clipping_factors(norms, clip=clip, scale=scale)
        factors, truncated, rounded = self._shrunk(factors)
        for start in self._starts:
            into = total[start : start + self._width]
            tile = rounded
            if tile is None:
                tile = self._times(factors, start)
                if truncated.any():
                    cut = torch.from_numpy(truncated).to(tile.device)[:, None]
                    tile = torch.where(cut, tile.trunc(), tile.round())
                else:
                    tile.round_()
            into += tile[0] if self._count == 1 else tile.sum(0)
        return norms > clip, finite

    def _norms(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(R,) norms, rounded to float32 as by `finite_norms`, 0 if not finite; (R,) finiteness."""
        norms = np.sqrt(self._squares(self._widened))
        finite: NDArray[np.bool_] = np.isfinite(norms)
        norms[~finite] = 0.0
        in_float32 = (norms < 3e38) & (norms > 1e-37)
        norms[in_float32] = norms[in_float32].astype(np.float32)
        return norms, finite

    def _shrunk(
        self, factors: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], Tensor | None]:
        """Lower the factors of rows whose integers exceed the norm, as the reference does.

        Rounding to nearest can lengthen a vector. A row that is too long is rescaled by
        limit / norm, a little more in each pass; one that is still too long after the last is
        truncated towards zero, which cannot lengthen it.

        Returns:
            (R,) factors; (R,) which rows are to be truncated rather than rounded; the rounded rows,
            if one tile holds them, else None.
        """
        limit = squared_norm_limit(self._dimension)
        squares = self._squares(lambda start: self._times(factors, start).round_())
        over = squares > limit
        for attempt in range(_PASSES):
            if not over.any():
                break
            shrink = np.sqrt(limit / squares[over]) * (1 - 2.0 ** (attempt - 9))
            factors[over] *= shrink
            squares = self._squares(lambda start: self._times(factors, start).round_())
            over = squares > limit
        factors[over] *= 1 - 2.0**-20
        kept = len(self._starts) == 1 and not over.any()
        return factors, over, self._view(self._scaled, 0) if kept else None

    def _squares(self, tile_at: Callable[[int], Tensor]) -> NDArray[np.float64]:
        """(R,) sums of squares over all columns; exact for integers."""
        sums = self._rows.new_zeros(self._count, dtype=torch.float64)
        for start in self._starts:
            tile = tile_at(start)
            if self._count == 1:
                sums += torch.dot(tile[0], tile[0])
            else:
                sums += torch.linalg.vecdot(tile, tile)
        found: NDArray[np.float64] = sums.cpu().numpy()
        return found

    def _times(self, factors: NDArray[np.float64], start: int) -> Tensor:
        """The tile at `start` times each row's factor."""
        wide = self._widened(start)
        by = torch.from_numpy(factors).to(wide.device)[:, None]
        return torch.mul(wide, by, out=self._view(self._scaled, start))

    def _widened(self, start: int) -> Tensor:
        tile = self._view(self._wide, start)
        if self._held != start:
            tile.copy_(self._rows[:, start : start + self._width])
            self._held = start
        return tile

    def _view(self, tile: Tensor, start: int) -> Tensor:
        width = min(self._width, self._dimension - start)
        return tile[: self._count * width].view(self._count, width)
