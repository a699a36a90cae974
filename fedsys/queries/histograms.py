"""Questions that count rows or devices by bin.

A device's counts h are non-negative and add up to at most R (its rows' weights do), so their L2
norm is at most R, reached where all rows are in one bin; with ``l2`` they are scaled to that norm
at most. Where a device is in one bin as a whole, the norm is at most 1. A calibration's row adds
(1, 2 c - 1, v) to its bin, each at most 1, so R sqrt(3).
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedsys.queries.answers import (
    Answer,
    Estimate,
    Measured,
    answer_to,
    ends,
    fieller,
    listed,
    normal_quantile,
)
from fedsys.queries.axes import Axis
from fedsys.queries.questions import (
    Calibration,
    Confusion,
    Crosstab,
    Devices,
    Examples,
    Histogram,
    Labels,
    Top,
)
from fedsys.queries.rows import Rows

__all__ = ["CalibrationBlock", "DevicesBlock", "HistogramBlock", "bins_of", "quantile_ends"]

Floats = NDArray[np.float64]


def bins_of(rows: Rows, axis: Axis) -> NDArray[np.int64]:
    """(M,) each row's bin; -1 where it has no value, or one that is not declared.

    Raises:
        DataError: there is no such column.
    """
    column = rows.column(axis.column)
    values, there = column.values, ~np.isnan(column.values)
    found = np.full(len(values), -1, dtype=np.int64)
    if axis.edges is not None:
        if column.texts is not None:
            return found  # texts have no place between edges
        edges = np.asarray(axis.edges)
        place = np.searchsorted(edges, values[there], side="right") - 1
        found[there] = np.clip(place, 0, axis.bins - 1)
        return found
    wanted = axis.values or ()
    if column.texts is not None:
        at = {str(each): number for number, each in enumerate(wanted)}
        codes = np.array([at.get(text, -1) for text in column.texts] or [-1], dtype=np.int64)
        found[there] = codes[values[there].astype(np.int64)]
        return found
    for number, each in enumerate(wanted):
        if not isinstance(each, str):
            found[values == each] = number
    return found


def _labels(
    question: Histogram | Labels | Top | Crosstab | Confusion | Examples,
) -> tuple[str, ...]:
    if isinstance(question, Crosstab | Confusion):
        first, second = question.axes
        return tuple(f"{a}, {b}" for a in first.labels for b in second.labels)
    if isinstance(question, Examples):
        return Axis(column="rows", edges=question.edges).labels
    return question.axis.labels


class HistogramBlock:
    """Rows by bin of one or two columns, devices by their number of rows, or the top of a
    vocabulary."""

    def __init__(
        self, question: Histogram | Labels | Top | Crosstab | Confusion | Examples
    ) -> None:
        self._question = question
        self._names = _labels(question)
        self.size = len(self._names)
        self._most = 1 if isinstance(question, Examples) else question.rows
        norm = getattr(question, "l2", None)
        self.sensitivity = float(self._most if norm is None else min(norm, self._most))

    def contribute(self, rows: Rows) -> Floats:
        """(K, bins)"""
        question = self._question
        if isinstance(question, Examples):
            edges = np.asarray(question.edges)
            place = np.searchsorted(edges, rows.per_device, side="right") - 1
            found = np.zeros((rows.devices, self.size))
            found[np.arange(rows.devices), np.clip(place, 0, self.size - 1)] = 1.0
            return found
        if isinstance(question, Crosstab | Confusion):
            first, second = (bins_of(rows, axis) for axis in question.axes)
            width = question.axes[1].bins
            bins = np.where((first >= 0) & (second >= 0), first * width + second, -1)
        else:
            bins = bins_of(rows, question.axis)
        counts = rows.counts(bins, self.size, rows.weights(self._most))
        norms = np.sqrt(np.square(counts).sum(axis=1, keepdims=True))
        scaled: Floats = counts * (self.sensitivity / np.maximum(norms, self.sensitivity))
        return scaled

    def interval(self, measured: Measured, comparisons: int = 1) -> tuple[Floats, Floats, Floats]:
        """value, low, high of sums (..., bins); values are not negative."""
        value = measured.sums
        sampling = measured.unseen * self.sensitivity * measured.mass(value)
        deviation = np.sqrt(measured.deviation**2 + sampling)
        low, high = ends(value, deviation, normal_quantile(comparisons))
        return np.maximum(value, 0.0), np.maximum(low, 0.0), np.maximum(high, 0.0)

    def answer(self, measured: Measured) -> Answer:
        """See `Block`."""
        question = self._question
        if isinstance(question, Top):
            value, low, high = self.interval(measured, self.size)
            order = np.argsort(-value, kind="stable")[: question.most]
            names = tuple(self._names[at] for at in order)
            return answer_to(
                question,
                listed(names, value[order], low[order], high[order]),
                "conservative",
                notes=("the intervals hold for all values at once, as the largest were chosen",),
            )
        value, low, high = self.interval(measured)
        shape: tuple[int, ...] = ()
        notes: tuple[str, ...] = ()
        if isinstance(question, Crosstab | Confusion):
            first, second = question.axes
            shape = (first.bins, second.bins)
            notes = (f"each cell is named by {first.column}, then {second.column}",)
        return answer_to(
            question,
            listed(self._names, value, low, high),
            measured.kind(),
            shape=shape,
            notes=notes,
        )


def quantile_ends(below: Floats, deviation: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """The interval of a quantile x from tests at every edge.

    `below[e]` estimates (number of values below edge e) - p (number of values), which at the edge
    above x is not below 0. The lower end is the edge before the first that is not significantly
    below 0, so it is above x only if the edge above x is significantly below 0 though its mean is
    not: with probability 2.5 % at most. The upper end likewise.

    Args:
        below: (..., bins - 1) at the inner edges.
        deviation: (..., bins - 1) its standard deviation.
        edges: (bins + 1,).

    Returns:
        (...) lower and upper ends.
    """
    z = normal_quantile()
    always = np.ones((*below.shape[:-1], 1), dtype=bool)
    fits_low = np.concatenate([below + z * deviation >= 0, always], axis=-1)  # edges 1 ... bins
    fits_high = np.concatenate([always, below - z * deviation <= 0], axis=-1)  # edges 0 ...
    first = np.argmax(fits_low, axis=-1) + 1
    last = fits_high.shape[-1] - 1 - np.argmax(fits_high[..., ::-1], axis=-1)
    return edges[first - 1], edges[last + 1]


class DevicesBlock:
    """See `fedsys.queries.questions.Devices`."""

    sensitivity = 1.0

    def __init__(self, question: Devices) -> None:
        self._question = question
        self.size = question.bins
        self._edges = np.linspace(question.low, question.high, question.bins + 1)

    def contribute(self, rows: Rows) -> Floats:
        """(K, bins): 1 in the bin of the device's own mean; zeros for a device without rows."""
        asked = self._question
        scaled, there = rows.scaled(asked.column, asked.low, asked.high)
        held = rows.sums(there)
        mean = (rows.sums(scaled * there) / np.maximum(held, 1) + 1) / 2
        # The last bin holds its right end; a mean a rounding error below an edge is on it.
        place = np.clip(np.floor(mean * self.size + 1e-9), 0, self.size - 1).astype(np.int64)
        found = np.zeros((rows.devices, self.size))
        found[np.arange(rows.devices), place] = held > 0
        return found

    def interval(self, measured: Measured) -> tuple[Floats, Floats, Floats]:
        """value, low, high of sums (..., bins); values are not negative."""
        sums = measured.sums
        sampling = measured.unseen * measured.mass(sums)
        low, high = ends(sums, np.sqrt(measured.deviation**2 + sampling))
        return np.maximum(sums, 0.0), np.maximum(low, 0.0), np.maximum(high, 0.0)

    def quantile_interval(self, measured: Measured, share: float) -> tuple[Floats, Floats]:
        """(...) the ends of a quantile over devices, from sums (..., bins)."""
        sums = measured.sums
        below, total = np.cumsum(sums, axis=-1)[..., :-1], sums.sum(axis=-1, keepdims=True)
        inner = np.arange(1, self.size)
        noise = measured.deviation**2 * (inner * (1 - share) ** 2 + (self.size - inner) * share**2)
        spread = measured.mass(below) * (1 - share) ** 2 + measured.mass(total) * share**2
        deviation = np.sqrt(noise + measured.unseen * spread)
        return quantile_ends(below - share * total, deviation, self._edges)

    def answer(self, measured: Measured) -> Answer:
        """See `Block`: devices by bin, and quantiles over devices."""
        asked = self._question
        value, low, high = self.interval(measured)
        names = Axis(column=asked.column, edges=tuple(self._edges.tolist())).labels
        estimates = listed(names, value, low, high)
        for share in asked.quantiles:
            first, last = (float(each) for each in self.quantile_interval(measured, share))
            estimates.append(
                Estimate(
                    label=f"quantile {share:g}",
                    value=min(max(_quantile(value, share, self._edges), first), last),
                    low=first,
                    high=last,
                )
            )
        return answer_to(
            asked,
            estimates,
            measured.kind(),
            notes=("quantiles are over devices; their intervals are conservative, whole bins",),
        )


def _quantile(counts: Floats, share: float, edges: Floats) -> float:
    """A quantile of a histogram without negative counts, linear within its bin."""
    total = counts.sum()
    if total <= 0:
        return float(edges[0] + edges[-1]) / 2
    reached = np.concatenate([[0.0], np.cumsum(counts)]) / total
    at = int(np.searchsorted(reached[1:], share, side="left"))
    at = min(at, len(counts) - 1)
    inside = (share - reached[at]) / max(reached[at + 1] - reached[at], 1e-300)
    return float(edges[at] + min(max(inside, 0.0), 1.0) * (edges[at + 1] - edges[at]))


class CalibrationBlock:
    """See `fedsys.queries.questions.Calibration`."""

    def __init__(self, question: Calibration) -> None:
        self._question = question
        self.size = 3 * question.bins
        self.sensitivity = question.rows * math.sqrt(3)

    def contribute(self, rows: Rows) -> Floats:
        """(K, 3 bins): the count, right minus wrong, and where in its bin the confidence lies."""
        many = self._question.bins
        confidence, there = rows.scaled("confidence", 0.0, 1.0)
        right, known = rows.scaled("accuracy", 0.0, 1.0)
        unit = (confidence + 1) / 2 * many
        bins = np.clip(np.floor(unit), 0, many - 1).astype(np.int64)
        place = np.clip(2 * (unit - bins) - 1, -1.0, 1.0)
        weights = rows.weights(self._question.rows) * there * known
        parts = [rows.counts(bins, many, weights * each) for each in (1.0, right, place)]
        return np.concatenate(parts, axis=1)

    def interval(self, measured: Measured) -> tuple[Floats, Floats, Floats]:
        """value, low, high (..., bins, 3) of sums (..., 3 bins): each bin's rows, accuracy and mean
        confidence."""
        many = self._question.bins
        count, right, place = np.split(measured.sums, 3, axis=-1)
        sampling = (
            measured.unseen * self._question.rows * measured.mass(count) * float(measured.sampled)
        )
        low, high = ends(count, np.sqrt(measured.deviation**2 + sampling))
        rows = [np.maximum(each, 0.0) for each in (count, low, high)]
        accuracy = fieller(right, count, measured.deviation**2, sampling)
        inside = fieller(place, count, measured.deviation**2, sampling)
        start = np.linspace(0, 1, many + 1)[:-1]
        found = [
            np.stack([a, (b + 1) / 2, start + (c + 1) / 2 / many], axis=-1)
            for a, b, c in zip(rows, accuracy, inside, strict=True)
        ]
        return found[0], found[1], found[2]

    def answer(self, measured: Measured) -> Answer:
        """See `Block`: rows, accuracy and mean confidence of each bin, and their difference."""
        many = self._question.bins
        count, right, place = np.split(measured.sums, 3)
        edges, width = np.linspace(0, 1, many + 1), 1 / many
        names = [f"{a:g} to {b:g}" for a, b in pairwise(edges)]
        labels = [f"{each}: {of}" for each in names for of in ("rows", "accuracy", "confidence")]
        found = (each.reshape(-1) for each in self.interval(measured))
        estimates = listed(tuple(labels), *found)
        correct = (right + count) / 2
        stated = edges[:-1] * count + width * (place + count) / 2
        total = max(float(np.maximum(count, 0.0).sum()), 1e-9)
        error = min(float(np.abs(correct - stated).sum()) / total, 1.0)
        estimates.append(
            Estimate(label="expected calibration error", value=error, low=None, high=None)
        )
        return answer_to(
            self._question,
            estimates,
            measured.kind(),
            notes=("noise biases the expected calibration error upwards; it has no interval",),
        )
