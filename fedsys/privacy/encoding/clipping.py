"""Clipping in the integers: the bound that accounting needs holds exactly, not up to rounding.

The wide encoding scales an update by s = 64 sqrt(d) / C and rounds it to integers r with
sum r^2 <= (s C)^2 = 4096 d, an integer, whatever floating point did on the way. So the l2
sensitivity of the sum is D2 = s C and the l1 sensitivity D1 = sqrt(d) D2.

>>> clipped = clip_to_integers(np.array([[3.0, 4.0], [0.03, 0.04], [np.nan, 1.0]]), clip=1.0)
>>> clipped.values
array([[54, 72],
       [ 3,  4],
       [ 0,  0]], dtype=int32)
>>> clipped.clipped, clipped.finite
(array([ True, False, False]), array([ True,  True, False]))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy import validation

__all__ = [
    "INTEGERS_PER_COORDINATE",
    "IntegerUpdates",
    "check_updates",
    "clip_to_integers",
    "clipping_factors",
    "finite_norms",
    "squared_norm_limit",
    "wide_scale",
]

INTEGERS_PER_COORDINATE = 64
"""s C = 64 sqrt(d): the root mean square of a clipped update's integers is 64."""

_PASSES = 4
_BLOCK = 1 << 15  # coordinates at once: 256 KiB of float64 stay in the second-level cache


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class IntegerUpdates:
    """K updates as signed integers of bounded norm.

    Attributes:
        values: (K, d) int32, each row with sum of squares <= ``squared_norm_limit(d)``.
        clipped: (K,) whether the row's norm exceeded C. Never leaves the client.
        finite: (K,) whether the row was finite; one that was not is all zeros.
        norms: (K,) l2 norms before clipping, 0 where not finite.
    """

    values: NDArray[np.int32]
    clipped: NDArray[np.bool_]
    finite: NDArray[np.bool_]
    norms: NDArray[np.float64]


def wide_scale(dimension: int, clip: float) -> float:
    """s = 64 sqrt(d) / C: integers per unit of the update; C > 0."""
    return INTEGERS_PER_COORDINATE * math.sqrt(dimension) / clip


def squared_norm_limit(dimension: int) -> int:
    """(s C)^2 = 4096 d, exactly."""
    return INTEGERS_PER_COORDINATE**2 * dimension


def check_updates(updates: NDArray[Any], dimension: int) -> None:
    """Refuses anything but a (K, d) array of float32 or float64.

    Raises:
        MechanismError: the shape or dtype is another.
    """
    if updates.ndim != 2 or updates.shape[1] != dimension:
        raise MechanismError(f"updates must have shape (K, {dimension}), got {updates.shape}")
    if updates.dtype not in (np.float32, np.float64):
        raise MechanismError(f"updates must be float32 or float64, got {updates.dtype}")


def finite_norms(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """l2 norms of finite rows, rounded to 24 bits, and which rows are finite.

    The rounding makes the norm, and with it every integer that follows, the same whatever the
    order in which a backend sums the squares (numpy, torch on a CPU or a GPU).

    Returns:
        norms (K,), 0 for a row with a NaN or an infinity; finite (K,).
    """
    squares = np.einsum("kd,kd->k", rows, rows)
    finite = np.isfinite(squares)
    norms = np.sqrt(squares, where=finite, out=np.zeros_like(squares))
    if len(rows) == 1 or not finite.all():  # a device looks twice whatever it finds
        peaks = np.abs(rows).max(axis=1)
        huge = np.isfinite(peaks) & ~finite  # finite, but its square overflows
        finite |= huge
        norms[huge] = peaks[huge] * math.sqrt(rows.shape[1])  # an upper bound; C / norm is tiny
    in_float32 = (norms < 3e38) & (norms > 1e-37)
    norms[in_float32] = norms[in_float32].astype(np.float32)
    return norms, finite


def clipping_factors(
    norms: NDArray[np.float64], *, clip: float, scale: float
) -> NDArray[np.float64]:
    """s min(1, C / norm) for each norm (K,)."""
    return scale * (clip / np.maximum(norms, clip))


def clip_to_integers(updates: NDArray[Any], *, clip: float) -> IntegerUpdates:
    """Scales, clips and rounds K updates so that the integers obey the norm bound.

    r = rint(f x) with f = s min(1, C / |x|). Rounding can lift the norm over s C; then f shrinks
    by s C / |r| and a margin, at most four times, and as a last resort the row is truncated
    towards zero, which cannot lift it. A row with a NaN or an infinity becomes zeros: a refusal
    would leak information.

    One row is what a device clips, and how long it takes could be seen from outside: it goes
    through all passes whatever it is. Many rows are a simulation's, where speed counts and nobody
    is protected from their own machine. Both give the same integers, to the bit.

    Args:
        updates: (K, d) float32 or float64.
        clip: C > 0, the l2 norm above which an update is scaled down.

    Raises:
        MechanismError: the array has another shape or dtype, or no coordinate, or C is no norm.
    """
    validation.positive("clip", clip)
    check_updates(updates, updates.shape[-1] if updates.ndim else 0)
    count, dimension = updates.shape
    if not dimension:
        raise MechanismError("updates must have at least one coordinate, got shape (K, 0)")
    scale = wide_scale(dimension, clip)
    values = np.empty((count, dimension), dtype=np.int32)
    finite = np.empty(count, dtype=np.bool_)
    norms = np.empty(count, dtype=np.float64)
    rows_at_once = max(1, _BLOCK // dimension)
    for start in range(0, count, rows_at_once):
        part = slice(start, start + rows_at_once)
        with np.errstate(over="ignore", invalid="ignore"):
            rows = updates[part].astype(np.float64)
            norms[part], finite[part] = finite_norms(rows)
        factors = clipping_factors(norms[part], clip=clip, scale=scale)
        limit = squared_norm_limit(dimension)
        if count == 1:
            row = np.where(finite[0], rows[0], 0.0)
            values[0] = _round_in_constant_passes(row, float(factors[0]), limit)
            continue
        if not finite[part].all():
            rows[~finite[part]] = 0.0
        values[part] = _round_within(rows, factors, limit)
    return IntegerUpdates(values=values, clipped=norms > clip, finite=finite, norms=norms)


def _round_within(
    rows: NDArray[np.float64], factors: NDArray[np.float64], limit: int
) -> NDArray[np.float64]:
    """Integers (as float64, exact) near ``factors * rows`` with sum of squares <= limit.

    Every product and partial sum of squares is an integer below 2^53, so the float64 sums are
    exact and their order does not matter.
    """
    rounded = rows * factors[:, None]
    np.rint(rounded, out=rounded)
    squares = np.einsum("kd,kd->k", rounded, rounded)
    for row in np.flatnonzero(squares > limit):
        rounded[row] = _shrink(rows[row], float(factors[row]), float(squares[row]), limit)
    return rounded


def _round_in_constant_passes(
    row: NDArray[np.float64], factor: float, limit: int
) -> NDArray[np.float64]:
    """What `_round_within` gives for one row, by the same operations on every row.

    A factor that is small enough stays as it is for the passes that are left.
    """
    scaled = np.empty_like(row)
    for attempt in range(_PASSES + 1):
        np.multiply(row, factor, out=scaled)
        np.rint(scaled, out=scaled)
        square = float(scaled @ scaled)
        over = square > limit
        if attempt < _PASSES and over:
            factor *= math.sqrt(limit / square) * (1 - 2.0 ** (attempt - 9))
    truncated = np.trunc(factor * (1 - 2.0**-20) * row)
    chosen = np.where(over, truncated, scaled)
    fits = float(chosen @ chosen) <= limit
    result: NDArray[np.float64] = np.where(fits, chosen, 0.0)  # see the end of `_shrink`
    return result


def _shrink(
    row: NDArray[np.float64], factor: float, square: float, limit: int
) -> NDArray[np.float64]:
    for attempt in range(_PASSES):
        factor *= math.sqrt(limit / square) * (1 - 2.0 ** (attempt - 9))
        rounded = np.rint(factor * row)
        square = float(rounded @ rounded)
        if square <= limit:
            return rounded
    truncated: NDArray[np.float64] = np.trunc(factor * (1 - 2.0**-20) * row)
    if float(truncated @ truncated) <= limit:
        return truncated
    return np.zeros_like(row)  # unreachable in exact arithmetic; the bound must not rest on that
