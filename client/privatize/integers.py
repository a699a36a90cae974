"""Clips in the integers and sums, for a whole chunk, on the device that trained it.

The torch twin of `fedsys.privacy.encoding.clipping`, bit for bit: the same norms, factors and
rounding, but without a (K, d) copy in float64 and without (K, d) integers. Tiles of many rows and a
few columns are widened to float64, scaled, rounded and added while they are in a cache; every value
is an integer below 2^53, so sums in float64 are exact in any order.

An update is read twice (norm, sum), or three times if it is clipped: rounding lengthens a clipped
row beyond the norm nearly always, and shrinking it once nearly always corrects that, so the second
reading finds the factor and the third adds the row and checks it. A row that is still too long is
taken out again and shrunk further.

On a CPU, a row that fits into a cache when it is widened goes through all of that by itself: then
it is read once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsys.errors import MechanismError
from fedsys.privacy.encoding.clipping import (
    SURELY_WITHIN,
    clipping_factors,
    round_norms,
    squared_norm_limit,
    wide_scale,
)

__all__ = ["Clipped", "add_clipped_integers"]

_PASSES = 4  # as in fedsys.privacy.encoding.clipping
_HOST_TILE = 1 << 15  # coordinates: a tile of float64 is 256 KiB, part of a second-level cache
_DEVICE_TILE = 1 << 26
_HOST_ROW = 1 << 17  # coordinates: a row of float64 is 1 MiB, half of a second-level cache
_FEWEST_COLUMNS = 1 << 10

_LEAST, _MOST = 1e-37, 3e38
"""Between them, `round_norms` is a rounding to float32."""
_TRUNCATED = 1 - 2.0**-20
_LIKELY = 1 - 2e-5
"""Rounding adds about d / 12 to a square of up to 4096 d: above this norm, in C, a row is likely to
exceed the limit."""


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
    if updates.device.type == "cpu" and dimension <= _HOST_ROW:
        row = _Row(dimension, clip)
        results = [row.add_to(total, update) for update in updates]
        of_rows = np.array(results, dtype=np.bool_)
        return Clipped(clipped=of_rows[:, 0], unusable=~of_rows[:, 1])
    tile = _HOST_TILE if updates.device.type == "cpu" else _DEVICE_TILE
    at_once = min(count, max(1, tile // min(dimension, _FEWEST_COLUMNS)))
    width = min(dimension, max(1, tile // at_once))
    buffer = updates.new_empty(at_once * width, dtype=torch.float64)
    clipped = np.empty(count, dtype=np.bool_)
    finite = np.empty(count, dtype=np.bool_)
    for start in range(0, count, at_once):
        part = slice(start, start + at_once)
        group = _Rows(updates[part], width, buffer)
        clipped[part], finite[part] = group.add_to(total, clip)
    return Clipped(clipped=clipped, unusable=~finite)


class _Row:
    """One row after the other, each widened once.

    Args:
        dimension: d.
        clip: C, the clipping norm.
    """

    def __init__(self, dimension: int, clip: float) -> None:
        self._wide = torch.empty(dimension, dtype=torch.float64)
        self._rounded = torch.empty_like(self._wide)
        self._clip, self._scale = clip, wide_scale(dimension, clip)
        self._limit = squared_norm_limit(dimension)

    def add_to(self, total: Tensor, row: Tensor) -> tuple[bool, bool]:
        """Add the clipped integers of a row (d,); whether it was clipped, and is finite."""
        norm = float(torch.linalg.vector_norm(self._wide.copy_(row)))
        if not math.isfinite(norm):
            row.zero_()
            return False, False
        if _LEAST < norm < _MOST:
            norm = float(np.float32(norm))
        else:
            norm = float(round_norms(np.array([norm]))[0])
        factor = self._scale * (self._clip / max(norm, self._clip))
        if norm <= self._clip * SURELY_WITHIN:
            total += self._wide.mul_(factor).round_()
            return False, True
        square, attempt = self._rounding(factor), 0
        while square > self._limit and attempt < _PASSES:
            factor *= math.sqrt(self._limit / square) * _margin(attempt)
            square, attempt = self._rounding(factor), attempt + 1
        if square > self._limit:
            torch.mul(self._wide, factor * _TRUNCATED, out=self._rounded).trunc_()
        total += self._rounded
        return norm > self._clip, True

    def _rounding(self, factor: float) -> float:
        """Scale and round the row; its sum of squares, which is exact."""
        rounded = torch.mul(self._wide, factor, out=self._rounded).round_()
        return float(torch.linalg.vecdot(rounded, rounded))


class _Rows:
    """R rows, scaled and rounded in tiles of `width` columns, which overwrite each other."""

    def __init__(self, rows: Tensor, width: int, buffer: Tensor) -> None:
        self._rows, self._width, self._buffer = rows, width, buffer
        self._starts = range(0, rows.shape[1], width)

    def add_to(self, total: Tensor, clip: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Add the rows' clipped integers; returns (R,) which were clipped and which are finite."""
        norms, finite = self._norms()
        if not finite.all():
            self._rows[torch.from_numpy(~finite).to(self._rows.device)] = 0
        dimension = self._rows.shape[1]
        limit = squared_norm_limit(dimension)
        factors = clipping_factors(norms, clip=clip, scale=wide_scale(dimension, clip))
        passes = np.zeros(len(norms), dtype=np.int64)
        long = np.flatnonzero(norms > clip * _LIKELY)
        if long.size and _PASSES:
            some = self if long.size == len(norms) else self._only(long)
            squares = some._squares(factors[long])
            over = long[squares > limit]
            factors[over] *= _shrinking(squares[squares > limit], limit, 0)
            passes[over] = 1
        squares = self._add(total, factors, check=bool((norms > clip * SURELY_WITHIN).any()))
        for row in np.flatnonzero(squares > limit).tolist():
            self._only(np.array([row]))._shrink_further(
                total, factors[row : row + 1], squares[row : row + 1], limit, int(passes[row])
            )
        return norms > clip, finite

    def _shrink_further(
        self,
        total: Tensor,
        factor: NDArray[np.float64],
        square: NDArray[np.float64],
        limit: int,
        passes: int,
    ) -> None:
        """Replace the row, which is in `total` and too long, as the reference does: rescaled by
        limit / norm, a little more in each pass, and truncated towards zero if it is still too long
        after the last; that cannot lengthen it.

        Args:
            total: (d,) as in `add_clipped_integers`.
            factor: (1,) with which the row was added.
            square: (1,) its sum of squares.
            limit: the largest that is allowed.
            passes: passes that led to the factor.
        """
        self._add(total, factor, check=False, sign=-1)
        for attempt in range(passes, _PASSES):
            factor = factor * _shrinking(square, limit, attempt)
            square = self._squares(factor)
            if square[0] <= limit:
                self._add(total, factor, check=False)
                return
        factor = factor * _TRUNCATED
        for start in self._starts:
            total[start : start + self._width] += self._times(factor, start).trunc_()[0]

    def _norms(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(R,) norms, 0 if not finite; (R,) finiteness."""
        squares = self._rows.new_zeros(len(self._rows), dtype=torch.float64)
        for start in self._starts:
            squares += torch.linalg.vector_norm(self._widened(start), dim=1).square_()
        norms: NDArray[np.float64] = np.sqrt(squares.cpu().numpy())
        finite: NDArray[np.bool_] = np.isfinite(norms)
        norms[~finite] = 0.0
        return round_norms(norms), finite

    def _add(
        self, total: Tensor, factors: NDArray[np.float64], *, check: bool, sign: int = 1
    ) -> NDArray[np.float64]:
        """Add the rounded rows times `sign` to `total`; (R,) their sums of squares, or zeros if
        nothing is to be checked."""

        def added() -> Iterator[Tensor]:
            for start in self._starts:
                tile = self._times(factors, start).round_()
                into = total[start : start + self._width]
                into.add_(tile[0] if len(tile) == 1 else tile.sum(0), alpha=sign)
                yield tile

        if check:
            return self._sums(added())
        deque(added(), maxlen=0)
        return np.zeros(len(factors))

    def _squares(self, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R,) sums of squares of the rounded rows."""
        return self._sums(self._times(factors, start).round_() for start in self._starts)

    def _sums(self, tiles: Iterator[Tensor]) -> NDArray[np.float64]:
        """(R,) sums of squares over all tiles; exact for integers."""
        sums = self._rows.new_zeros(len(self._rows), dtype=torch.float64)
        for tile in tiles:
            sums += torch.linalg.vecdot(tile, tile)
        found: NDArray[np.float64] = sums.cpu().numpy()
        return found

    def _times(self, factors: NDArray[np.float64], start: int) -> Tensor:
        """The tile at `start` times each row's factor."""
        wide = self._widened(start)
        return wide.mul_(torch.from_numpy(factors).to(wide.device)[:, None])

    def _widened(self, start: int) -> Tensor:
        columns = self._rows[:, start : start + self._width]
        tile = self._buffer[: columns.numel()].view(columns.shape)
        return tile.copy_(columns)

    def _only(self, which: NDArray[np.intp]) -> _Rows:
        """Some of the rows, as copies."""
        rows = self._rows[torch.from_numpy(which).to(self._rows.device)]
        return _Rows(rows, self._width, self._buffer)


def _shrinking(squares: NDArray[np.float64], limit: int, attempt: int) -> NDArray[np.float64]:
    """What the factors of rows with these sums of squares (n,) are multiplied by."""
    shrunk: NDArray[np.float64] = np.sqrt(limit / squares) * _margin(attempt)
    return shrunk


def _margin(attempt: int) -> float:
    return 1 - 2.0 ** (attempt - 9)
