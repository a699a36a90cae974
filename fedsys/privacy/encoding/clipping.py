"""Clipping in the integers: the bound that accounting needs holds exactly, not up to rounding.

The wide encoding scales an update by s = 64 sqrt(d) / C and rounds it to integers r with
sum r^2 <= (s C)^2 = 4096 d, an integer, regardless of rounding errors on the way. So the l2
sensitivity of the sum is D2 = s C, and the l1 sensitivity is D1 = sqrt(d) D2.

>>> clipped = clip_to_integers(np.array([[3.0, 4.0], [0.03, 0.04], [np.nan, 1.0]]), clip=1.0)
>>> clipped.values
array([[54, 72],
       [ 3,  4],
       [ 0,  0]], dtype=int32)
>>> clipped.clipped, clipped.unusable
(array([ True, False, False]), array([False, False,  True]))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.encoding.encoded import Encoded

__all__ = [
    "INTEGERS_PER_COORDINATE",
    "SURELY_WITHIN",
    "check_updates",
    "clip_to_integers",
    "clipping_factors",
    "finite_norms",
    "round_norms",
    "squared_norm_limit",
    "wide_scale",
]

INTEGERS_PER_COORDINATE = 64
"""s C = 64 sqrt(d): the root mean square of a clipped update's integers is 64."""

SURELY_WITHIN = 0.99
"""Rounding lengthens a row by at most sqrt(d) / 2, a norm of C / 128, so a row of this norm in C or
less stays within the limit: 0.99 + 1/128 < 1."""

_PASSES = 4
_DOT = 1 << 13  # OpenBLAS uses threads from 10,000 elements on
_BLOCK = 1 << 15  # coordinates at once: 256 KiB of float64 stay in the second-level cache


def wide_scale(dimension: int, clip: float) -> float:
    """s = 64 sqrt(d) / C, integers per unit of the update; C > 0."""
    return INTEGERS_PER_COORDINATE * math.sqrt(dimension) / clip


def squared_norm_limit(dimension: int) -> int:
    """(s C)^2 = 4096 d, exactly."""
    return INTEGERS_PER_COORDINATE**2 * dimension


def check_updates(updates: NDArray[Any], dimension: int) -> None:
    """Refuses anything but a (K, d) array of float32 or float64.

    Raises:
        MechanismError: the array has another shape or dtype.
    """
    if updates.ndim != 2 or updates.shape[1] != dimension:
        raise MechanismError(f"updates must have shape (K, {dimension}), got {updates.shape}")
    if updates.dtype not in (np.float32, np.float64):
        raise MechanismError(f"updates must be float32 or float64, got {updates.dtype}")


def finite_norms(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """l2 norms of finite rows, rounded to 24 bits, and which rows are finite.

    Because of the rounding, the norm, and so every integer that follows from it, does not depend on
    the order in which a backend (numpy, torch on a CPU or a GPU) sums the squares.

    Returns:
        norms (K,), 0 for a row with a NaN or an infinity; finite (K,).
    """
    squares = np.einsum("kd,kd->k", rows, rows)
    peaks: NDArray[np.float64] | None = None
    if len(rows) == 1 or not np.isfinite(squares).all():  # one row: data-independent time
        peaks = np.abs(rows).max(axis=1)
    return _norms_of(squares, peaks, rows.shape[1])


def _norms_of(
    squares: NDArray[np.float64], peaks: NDArray[np.float64] | None, dimension: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """As `finite_norms`, from sums of squares (K,) and largest absolute values (K,); the latter are
    needed only if a sum of squares is not finite."""
    finite = np.isfinite(squares)
    norms = np.sqrt(squares, where=finite, out=np.zeros_like(squares))
    if peaks is not None:
        huge = np.isfinite(peaks) & ~finite  # finite, but its square overflows
        finite |= huge
        norms[huge] = peaks[huge] * math.sqrt(dimension)  # an upper bound; C / norm is tiny
    return round_norms(norms), finite


def round_norms(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounds finite norms (K,) to 24 bits, in place, and returns them."""
    in_float32 = (norms < 3e38) & (norms > 1e-37)
    norms[in_float32] = norms[in_float32].astype(np.float32)
    others = ~in_float32 & (norms > 0)
    if others.any():
        mantissas, exponents = np.frexp(norms[others])
        norms[others] = np.ldexp(np.rint(mantissas * 2**24) / 2**24, exponents)
    return norms


def clipping_factors(
    norms: NDArray[np.float64], *, clip: float, scale: float
) -> NDArray[np.float64]:
    """s min(1, C / norm) for each norm (K,)."""
    return scale * (clip / np.maximum(norms, clip))


def clip_to_integers(updates: NDArray[Any], *, clip: float) -> Encoded:
    """Scales, clips and rounds K updates so that the integers obey the norm bound.

    r = rint(f x) with f = s min(1, C / |x|). Rounding can raise the norm above s C. Then f is
    multiplied by s C / |r| and a margin, at most four times; as a last resort the row is truncated
    towards zero, which cannot raise the norm. A row with a NaN or an infinity becomes zeros,
    because a refusal would leak information.

    A device clips a single row, and others could observe how long that takes, so a single row goes
    through all passes regardless of its values. Many rows come from a simulation, where speed
    matters and nobody is protected from their own machine. Both give the same integers, bit for
    bit.

    Args:
        updates: (K, d) float32 or float64.
        clip: C > 0, the l2 norm above which an update is scaled down.

    Raises:
        MechanismError: the array has another shape or dtype or no coordinates, or ``clip`` is not a
            positive number.
    """
    validation.positive("clip", clip)
    check_updates(updates, updates.shape[-1] if updates.ndim else 0)
    count, dimension = updates.shape
    if not dimension:
        raise MechanismError("updates must have at least one coordinate, got shape (K, 0)")
    scale = wide_scale(dimension, clip)
    limit = squared_norm_limit(dimension)
    if count == 1:
        with np.errstate(over="ignore", invalid="ignore"):
            return _clip_one(updates[0], clip=clip, scale=scale, limit=limit)
    values = np.empty((count, dimension), dtype=np.int32)
    finite = np.empty(count, dtype=np.bool_)
    norms = np.empty(count, dtype=np.float64)
    if dimension > _BLOCK:
        with np.errstate(over="ignore", invalid="ignore"):
            for row, update in enumerate(updates):
                norms[row], finite[row] = _clip_into(values[row], update, clip, scale, limit)
        return Encoded(values=values, clipped=norms > clip, unusable=~finite, norms=norms)
    rows_at_once = max(1, _BLOCK // dimension)
    for start in range(0, count, rows_at_once):
        part = slice(start, start + rows_at_once)
        with np.errstate(over="ignore", invalid="ignore"):
            rows = updates[part].astype(np.float64)
            norms[part], finite[part] = finite_norms(rows)
        factors = clipping_factors(norms[part], clip=clip, scale=scale)
        if not finite[part].all():
            rows[~finite[part]] = 0.0
        values[part] = _round_within(rows, factors, limit)
    return Encoded(values=values, clipped=norms > clip, unusable=~finite, norms=norms)


def _round_within(
    rows: NDArray[np.float64], factors: NDArray[np.float64], limit: int
) -> NDArray[np.float64]:
    """Integers (K, d), exact in float64, near ``factors * rows`` with sum of squares <= limit.

    Every square and partial sum of squares is an integer below 2^53, so the float64 sums are exact
    and their order does not matter.
    """
    rounded = rows * factors[:, None]
    np.rint(rounded, out=rounded)
    squares = np.einsum("kd,kd->k", rounded, rounded)
    for row in np.flatnonzero(squares > limit):
        rounded[row] = _shrink(rows[row], float(factors[row]), float(squares[row]), limit)
    return rounded


def _clip_into(
    out: NDArray[np.int32], row: NDArray[Any], clip: float, scale: float, limit: int
) -> tuple[float, bool]:
    """`clip_to_integers` for one long row (d,) of many, block by block in the cache; it stops as
    soon as the row fits. Returns its norm, and whether it is finite."""
    parts = [slice(start, start + _BLOCK) for start in range(0, len(row), _BLOCK)]
    wide = np.empty(min(_BLOCK, len(row)))

    def scaled(part: slice, factor: float) -> NDArray[np.float64]:
        block = wide[: len(row[part])]
        np.copyto(block, row[part])
        return np.multiply(block, factor, out=block)

    square = sum(_square(scaled(part, 1.0)) for part in parts)
    peaks = None if math.isfinite(square) else np.abs(row).max(keepdims=True).astype(np.float64)
    found, finite = _norms_of(np.array([square]), peaks, len(row))
    norm = float(found[0])
    if not finite[0]:
        out[:] = 0
        return norm, False
    factor = float(clipping_factors(found, clip=clip, scale=scale)[0])
    sure = norm <= SURELY_WITHIN * clip
    for attempt in range(_PASSES + 1):
        square = 0.0
        for part in parts:
            block = scaled(part, factor)
            np.rint(block, out=block)
            square += 0.0 if sure else _square(block)
            out[part] = block
        if square <= limit:
            return norm, True
        if attempt < _PASSES:
            factor *= math.sqrt(limit / square) * (1 - 2.0 ** (attempt - 9))
    square = 0.0
    for part in parts:
        block = scaled(part, factor * (1 - 2.0**-20))
        np.trunc(block, out=block)
        square += _square(block)
        out[part] = block
    out *= square <= limit  # see the end of `_shrink`
    return norm, True


def _clip_one(row: NDArray[Any], *, clip: float, scale: float, limit: int) -> Encoded:
    """`clip_to_integers` for one row (d,), with operations that do not depend on its values.

    Once the factor is small enough, the remaining passes leave it unchanged. Each pass works block
    by block, in the cache; there is never a copy of the whole row.
    """
    blocks = [row[start : start + _BLOCK] for start in range(0, len(row), _BLOCK)]
    squares, peaks = np.zeros(1), np.zeros(1)
    for block in blocks:
        wide = block.astype(np.float64)
        squares += _square(wide)
        np.maximum(peaks, np.abs(wide, out=wide).max(), out=peaks)  # keeps a NaN
    norms, finite = _norms_of(squares, peaks, len(row))
    factor = float(clipping_factors(norms, clip=clip, scale=scale)[0])
    rows = _Zeroed(blocks, keep=bool(finite[0]))
    over = False
    for attempt in range(_PASSES + 1):
        square = 0.0
        for scaled in rows.times(factor):
            np.rint(scaled, out=scaled)
            square += _square(scaled)
        over = square > limit
        if attempt < _PASSES and over:
            factor *= math.sqrt(limit / square) * (1 - 2.0 ** (attempt - 9))
    values = np.empty((1, len(row)), dtype=np.int32)
    square, start = 0.0, 0
    for rounded, cut in zip(rows.times(factor), rows.times(factor * (1 - 2.0**-20)), strict=True):
        np.rint(rounded, out=rounded)
        np.trunc(cut, out=cut)
        chosen = cut if over else rounded
        square += _square(chosen)
        values[0, start : start + len(chosen)] = chosen
        start += len(chosen)
    values *= square <= limit  # see the end of `_shrink`
    return Encoded(values=values, clipped=norms > clip, unusable=~finite, norms=norms)


class _Zeroed:
    """The blocks of one row, or zeros in their place, in the same time.

    Args:
        blocks: float32 or float64.
        keep: whether to yield the blocks rather than zeros.
    """

    def __init__(self, blocks: Sequence[NDArray[Any]], *, keep: bool) -> None:
        word = np.dtype(f"u{blocks[0].dtype.itemsize}")
        self._words = [block.view(word) for block in blocks]
        self._float = blocks[0].dtype
        self._mask = word.type(np.iinfo(word).max if keep else 0)

    def times(self, factor: float) -> Iterator[NDArray[np.float64]]:
        """Yields each block times a factor, float64, in a buffer that the next one overwrites."""
        kept = np.empty_like(self._words[0])
        product = np.empty(len(kept), dtype=np.float64)
        for words in self._words:
            some, out = kept[: len(words)], product[: len(words)]
            np.bitwise_and(words, self._mask, out=some)
            np.copyto(out, some.view(self._float))
            yield np.multiply(out, factor, out=out)


def _square(values: NDArray[np.float64]) -> float:
    """The sum of squares of (n,) values, in pieces too short for BLAS to use threads: waking them
    would cost more than they save, and they would keep spinning afterwards."""
    pieces = (values[start : start + _DOT] for start in range(0, len(values), _DOT))
    return sum(float(np.dot(piece, piece)) for piece in pieces)


def _shrink(
    row: NDArray[np.float64], factor: float, square: float, limit: int
) -> NDArray[np.float64]:
    """Integers (d,) near ``factor * row`` with sum of squares <= limit, by a smaller factor.

    Args:
        row: (d,) float64.
        factor: the factor whose rounded product exceeds the limit.
        square: the sum of squares of that product.
        limit: (s C)^2.
    """
    for attempt in range(_PASSES):
        factor *= math.sqrt(limit / square) * (1 - 2.0 ** (attempt - 9))
        rounded = np.rint(factor * row)
        square = _square(rounded)
        if square <= limit:
            return rounded
    truncated: NDArray[np.float64] = np.trunc(factor * (1 - 2.0**-20) * row)
    if _square(truncated) <= limit:
        return truncated
    return np.zeros_like(row)  # unreachable in exact arithmetic; the bound must not rest on that
