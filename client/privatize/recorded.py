"""A chunk's clipped sum as part of a recorded epoch, without synchronizing with the host.

`IntegerSum` is `client.privatize.integers` in a form that a CUDA graph can replay, with the same
result bit for bit; `FloatSum` is the sum of protocol ``float``. Both read the (K, d) updates where
training left them and write a (d,) sum of int64, so that only a flat sum leaves the device.

Tested in the plain form on a CPU; not measured on a GPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from client.privatize.floats import SMALLER, clip_factors
from client.privatize.integers import add_clipped_integers
from fedsys.privacy.encoding.clipping import squared_norm_limit, wide_scale
from fedsys.privacy.encoding.float_sums import FixedPoint

__all__ = ["FloatSum", "IntegerSum", "RecordedSum"]

_TILE = 1 << 24
"""Coordinates that are widened to float64 at once: 128 MiB."""


class RecordedSum(ABC):
    """The sum of one shape of chunk; calling it overwrites every output.

    Args:
        updates: (K, d) float32, read at every call.
        present: (K,) bool, the rows that count; read at every call.
        clip: C, the clipping norm.

    Attributes:
        total: (d,) int64, the sum.
        flags: (3, K) bool, the following three stacked.
        clipped: (K,) whether the norm exceeded C.
        unusable: (K,) whether the row was not finite and counted as zeros.
        left: (K,) whether the row is not in `total` yet; see `settle`.
    """

    def __init__(self, updates: Tensor, present: Tensor, clip: float) -> None:
        count, dimension = updates.shape
        self._updates, self._present, self._clip = updates, present, clip
        self._scale = wide_scale(dimension, clip)
        self.total = torch.zeros(dimension, dtype=torch.int64, device=updates.device)
        self.flags = torch.zeros((3, count), dtype=torch.bool, device=updates.device)
        self.clipped, self.unusable, self.left = self.flags.unbind(0)

    @abstractmethod
    def __call__(self) -> None:
        """Compute the sum; may be recorded."""

    @abstractmethod
    def settle(self) -> None:
        """Add the rows that are `left`; never recorded, and needed only if there are any."""


class IntegerSum:
    """Clips in the integers and sums. A `client.training.graph.path.Finish`.

    Args:
        clip: C, the clipping norm.
    """

    def __init__(self, clip: float) -> None:
        self._clip = clip

    def bind(self, updates: Tensor, present: Tensor) -> RecordedSum:
        """See `Finish`."""
        return _IntegerSum(updates, present, self._clip)


class FloatSum:
    """Clips updates and adds them in floating point, rounded to the units of
    `fedsys.privacy.encoding.float_sums.FixedPoint`. A `client.training.graph.path.Finish`.

    Args:
        clip: C, the clipping norm.
    """

    def __init__(self, clip: float) -> None:
        self._clip = clip

    def bind(self, updates: Tensor, present: Tensor) -> RecordedSum:
        """See `Finish`."""
        return _FloatSum(updates, present, self._clip)


class _IntegerSum(RecordedSum):
    """Rounding lifts nearly every clipped row above the norm, and shrinking it once nearly always
    corrects that: both are recorded. Rows that need more passes are left to `settle`."""

    def __call__(self) -> None:
        rows, limit = self._updates, float(squared_norm_limit(self._updates.shape[1]))
        squares = _squares(rows, None)
        finite = torch.isfinite(squares)
        norms = torch.where(finite, squares, 0.0).sqrt_()
        # To 24 bits, as `round_norms` does: times a power of two that brings every norm of float32
        # rows into the range of normal float32 numbers.
        scales = torch.full_like(norms, 2.0**-64).masked_fill_(norms < 1, 2.0**64)
        norms = (norms * scales).to(torch.float32).to(torch.float64) / scales
        counted = finite & self._present
        factors = self._scale * (self._clip / norms.clamp_min(self._clip))
        factors = torch.where(counted, factors, 0.0)
        squares = _squares(rows, factors)
        over = counted & (squares > limit)
        shrunk = factors * ((limit / squares).sqrt_() * (1 - 2.0**-9))
        factors = torch.where(over, shrunk, factors)
        squares = _squares(rows, factors)
        self.left.copy_(over & (squares > limit))
        self.clipped.copy_((norms > self._clip) & self._present)
        self.unusable.copy_(~finite & self._present)
        factors = torch.where(self.left, 0.0, factors)
        for columns in _tiles(rows):
            self.total[columns] = _integers(rows[:, columns], factors).sum(0).to(torch.int64)

    def settle(self) -> None:
        rows = self._updates[self.left]
        more = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        add_clipped_integers(more, rows, clip=self._clip)
        self.total += more.to(torch.int64)


class _FloatSum(RecordedSum):
    def __call__(self) -> None:
        rows = self._updates
        norms = torch.linalg.vector_norm(rows, dim=1)
        factors, _ = clip_factors(norms, self._clip)
        wide = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        found, exact = clip_factors(wide, self._clip)
        finite = torch.isfinite(exact)
        counted = finite & self._present
        # As in `clipped_sum_of`, but for all rows, because a recording has no branches.
        large = finite & ~torch.isfinite(norms)
        factors = torch.where(large, (found / SMALLER).to(factors.dtype), factors)
        factors = torch.where(counted, factors, 0.0)
        rows.mul_(torch.ones_like(norms).masked_fill_(large, SMALLER)[:, None])
        # Not a product with zero, which would keep NaN and infinity.
        rows.masked_fill_(~counted[:, None], 0.0)
        units = (factors @ rows).to(torch.float64).mul_(FixedPoint(self._scale).units)
        self.total.copy_(units.round_())
        self.clipped.copy_((torch.where(large, exact, norms) > self._clip) & counted)
        self.unusable.copy_(~finite & self._present)

    def settle(self) -> None:
        """Nothing: no row is ever left."""


def _tiles(rows: Tensor) -> list[slice]:
    count, dimension = rows.shape
    width = max(1, _TILE // count)
    return [slice(start, start + width) for start in range(0, dimension, width)]


def _integers(tile: Tensor, factors: Tensor) -> Tensor:
    """(K, w) float64, factor times row rounded to integers; zeros if the factor is zero."""
    wide = tile.to(torch.float64, copy=True).mul_(factors[:, None]).round_()
    return torch.where((factors != 0)[:, None], wide, 0.0)


def _squares(rows: Tensor, factors: Tensor | None) -> Tensor:
    """(K,) float64 sums of squares of the rows or, with `factors`, of their integers."""
    sums = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for columns in _tiles(rows):
        tile = rows[:, columns]
        wide = tile.to(torch.float64) if factors is None else _integers(tile, factors)
        sums += torch.linalg.vecdot(wide, wide)
    return sums
