"""Counts, sums, means, variances and correlations.

A column is clipped to [low, high] and mapped to u in [-1, 1]; a device with more than R rows counts
as R. With w_i the rows' weights (sum at most R), a vector sum_i w_i f(row_i) has norm at most
R max |f|, which gives each sensitivity below:

- count: f = 1; sum: f = x, so R max(|low|, |high|);
- mean: f = (u, 1), so R sqrt(2). Scaling the second coordinate by a would give the estimate of the
  mean m the variance (1 + a^2) (1 + m^2 / a^2) in units of R^2 z^2 / n^2, which is least at
  a^2 = |m|; a = 1 is best for the worst m;
- variance: f = (u, 2 u^2 - 1, 1), so R sqrt(3) (reached at u = -1 and 1);
- correlation of m columns: f = (1, u_i, u_i u_j for i <= j), so R sqrt(1 + m + m (m + 1) / 2).
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from fedsys.queries.answers import Answer, Estimate, Measured, answer_to, ends, fieller
from fedsys.queries.questions import Correlation, Count, Mean, Sum, Variance
from fedsys.queries.rows import Rows

__all__ = ["CorrelationBlock", "CountBlock", "MeanBlock", "SumBlock", "VarianceBlock"]

Floats = NDArray[np.float64]
_LEAST = 1e-9


def _one(value: float, low: float, high: float, label: str = "") -> Estimate:
    return Estimate(label=label, value=float(value), low=float(low), high=float(high))


class CountBlock:
    """See `fedsys.queries.questions.Count`."""

    size = 1

    def __init__(self, question: Count) -> None:
        self._question = question
        self.sensitivity = float(question.rows)

    def contribute(self, rows: Rows) -> Floats:
        """(K, 1)"""
        return rows.sums(rows.weights(self._question.rows))[:, None]

    def interval(self, measured: Measured) -> tuple[Floats, Floats, Floats]:
        """value, low, high of sums (..., 1), without the last axis."""
        value = measured.sums[..., 0]
        sampling = measured.unseen * self._question.rows * measured.mass(value)
        low, high = ends(value, np.sqrt(measured.deviation**2 + sampling))
        return np.maximum(value, 0.0), np.maximum(low, 0.0), np.maximum(high, 0.0)

    def answer(self, measured: Measured) -> Answer:
        """See `Block`."""
        value, low, high = self.interval(measured)
        return answer_to(
            self._question, [_one(float(value), float(low), float(high))], measured.kind()
        )


class SumBlock:
    """See `fedsys.queries.questions.Sum`."""

    size = 1

    def __init__(self, question: Sum) -> None:
        self._question = question
        self.sensitivity = question.rows * max(abs(question.low), abs(question.high))

    def contribute(self, rows: Rows) -> Floats:
        """(K, 1)"""
        asked = self._question
        scaled, there = rows.scaled(asked.column, asked.low, asked.high)
        middle, half = (asked.low + asked.high) / 2, (asked.high - asked.low) / 2
        values = np.clip(middle + half * scaled, asked.low, asked.high)
        return rows.sums(rows.weights(asked.rows) * values * there)[:, None]

    def interval(self, measured: Measured) -> tuple[Floats, Floats, Floats]:
        """value, low, high of sums (..., 1), without the last axis; with sampled cohorts every
        device counts with the largest square."""
        value = measured.sums[..., 0]
        sampling = measured.unseen * measured.population * self.sensitivity**2
        low, high = ends(value, math.sqrt(measured.deviation**2 + sampling))
        return value, low, high

    def answer(self, measured: Measured) -> Answer:
        """See `Block`."""
        value, low, high = (float(each) for each in self.interval(measured))
        return answer_to(self._question, [_one(value, low, high)], measured.kind())


class MeanBlock:
    """See `fedsys.queries.questions.Mean`."""

    size = 2

    def __init__(self, question: Mean) -> None:
        self._question = question
        self.sensitivity = question.rows * math.sqrt(2)

    def contribute(self, rows: Rows) -> Floats:
        """(K, 2)"""
        asked = self._question
        scaled, there = rows.scaled(asked.column, asked.low, asked.high)
        weights = rows.weights(asked.rows) * there
        return np.stack([rows.sums(weights * scaled), rows.sums(weights)], axis=1)

    def interval(self, measured: Measured) -> tuple[Floats, Floats, Floats]:
        """value, low, high of sums (..., 2), without the last axis."""
        asked = self._question
        top, bottom = measured.sums[..., 0], measured.sums[..., 1]
        sampling = measured.unseen * asked.rows * measured.mass(bottom) * float(measured.sampled)
        found = fieller(top, bottom, measured.deviation**2, sampling)
        middle, half = (asked.low + asked.high) / 2, (asked.high - asked.low) / 2
        value, low, high = (middle + half * each for each in found)
        return value, low, high

    def answer(self, measured: Measured) -> Answer:
        """See `Block`."""
        value, low, high = self.interval(measured)
        return answer_to(
            self._question, [_one(float(value), float(low), float(high))], measured.kind()
        )


class VarianceBlock:
    """See `fedsys.queries.questions.Variance`."""

    size = 3

    def __init__(self, question: Variance) -> None:
        self._question = question
        self.sensitivity = question.rows * math.sqrt(3)

    def contribute(self, rows: Rows) -> Floats:
        """(K, 3)"""
        asked = self._question
        scaled, there = rows.scaled(asked.column, asked.low, asked.high)
        weights = rows.weights(asked.rows) * there
        square = weights * (2 * scaled**2 - 1)
        return np.stack([rows.sums(weights * scaled), rows.sums(square), rows.sums(weights)], 1)

    def interval(self, measured: Measured) -> tuple[Floats, Floats, Floats]:
        """The variance and its interval from sums (..., 3), in units of half the range squared.

        V = (B + S2) / (2 B) - (S1 / B)^2; the delta method, with the deviation of the sums.
        """
        s1, s2, count = (measured.sums[..., at] for at in range(3))
        # A count within a few deviations of 0 says nothing: the interval is all there is.
        known = count > 4 * measured.deviation
        count = np.where(known, count, 1.0)
        mean, square = s1 / count, (1 + s2 / count) / 2
        noise = measured.deviation**2 / count**2
        raw = square - mean**2 + noise  # E (S1 / B)^2 is larger by the noise's variance
        slope = (2 * mean) ** 2 + 0.25 + (2 * mean**2 - s2 / (2 * count)) ** 2
        held = np.clip(raw, 0.0, 1.0)
        spread = np.maximum(held * (1 + np.abs(mean)) ** 2 - held**2, 0.0)
        sampling = measured.unseen * self._question.rows * spread / count
        # The second term is the variance of the noise's square, which the delta method leaves out.
        low, high = ends(raw, np.sqrt(slope * noise + 2 * noise**2 + sampling))
        ok = (np.where(known, each, end) for each, end in ((raw, 0.5), (low, 0.0), (high, 1.0)))
        value, low, high = (np.clip(each, 0.0, 1.0) for each in ok)
        return value, low, high

    def answer(self, measured: Measured) -> Answer:
        """See `Block`."""
        asked = self._question
        half = (asked.high - asked.low) / 2
        value, low, high = (float(each) * half**2 for each in self.interval(measured))
        plain = Mean.model_construct(
            ask="mean", name=asked.name, column=asked.column, low=asked.low, high=asked.high,
            rows=asked.rows,
        )  # fmt: skip
        sums = measured.sums[[0, 2]]
        mean = MeanBlock(plain).interval(
            Measured(
                sums=sums,
                deviation=measured.deviation,
                rate=measured.rate,
                population=measured.population,
            )
        )
        deviation = (math.sqrt(value), math.sqrt(low), math.sqrt(high))
        return answer_to(
            asked,
            [
                _one(float(mean[0]), float(mean[1]), float(mean[2]), "mean"),
                _one(value, low, high, "variance"),
                _one(*deviation, "standard deviation"),
            ],
            measured.kind("asymptotic"),
        )


class CorrelationBlock:
    """See `fedsys.queries.questions.Correlation`."""

    def __init__(self, question: Correlation) -> None:
        self._question = question
        self._columns = len(question.columns)
        self._pairs = list(combinations_with_replacement(range(self._columns), 2))
        self.size = 1 + self._columns + len(self._pairs)
        self.sensitivity = question.rows * math.sqrt(self.size)

    def contribute(self, rows: Rows) -> Floats:
        """(K, size): the count, the sums, the products; a row counts if all columns have values."""
        found = [rows.scaled(each.column, each.low, each.high) for each in self._question.columns]
        weights = rows.weights(self._question.rows)
        for _, there in found:
            weights = weights * there
        scaled = [each for each, _ in found]
        terms = [np.ones_like(weights), *scaled, *(scaled[i] * scaled[j] for i, j in self._pairs)]
        return np.stack([rows.sums(weights * each) for each in terms], axis=1)

    def interval(self, measured: Measured) -> tuple[Floats, Floats, Floats]:
        """(..., m, m) matrices from sums (..., size): raw correlations, and the ends by the delta
        method; all of [-1, 1] where the sums say nothing."""
        m, sums = self._columns, measured.sums
        count = np.maximum(sums[..., 0], _LEAST)
        mean = sums[..., 1 : 1 + m] / count[..., None]
        second = np.zeros((*count.shape, m, m))
        for at, (i, j) in enumerate(self._pairs):
            second[..., i, j] = second[..., j, i] = sums[..., 1 + m + at] / count
        covariance = second - mean[..., :, None] * mean[..., None, :]
        value = np.broadcast_to(np.eye(m), covariance.shape).copy()
        low, high = value.copy(), value.copy()
        for i, j in self._pairs:
            if i != j:
                found = self._pair(measured, (i, j), mean, second, covariance)
                for matrix, each in zip((value, low, high), found, strict=True):
                    matrix[..., i, j] = matrix[..., j, i] = each
        return value, low, high

    def _pair(
        self,
        measured: Measured,
        pair: tuple[int, int],
        mean: Floats,
        second: Floats,
        covariance: Floats,
    ) -> tuple[Floats, Floats, Floats]:
        """(...) value, low, high of one correlation."""
        i, j = pair
        count = np.maximum(measured.sums[..., 0], _LEAST)
        vi, vj = covariance[..., i, i], covariance[..., j, j]
        known = (measured.sums[..., 0] >= 4 * measured.deviation) & (np.minimum(vi, vj) > 0)
        vi, vj = np.where(known, vi, 1.0), np.where(known, vj, 1.0)
        mi, mj = mean[..., i], mean[..., j]
        scale = np.sqrt(vi * vj)
        r = covariance[..., i, j] / scale
        # Gradient by (count, S_i, S_j, S_ii, S_jj, S_ij), times count.
        a, b = r / (2 * vi), r / (2 * vj)
        slope = (
            (2 * mi * mj - second[..., i, j]) / scale
            - a * (2 * mi**2 - second[..., i, i])
            - b * (2 * mj**2 - second[..., j, j]),
            -mj / scale + 2 * a * mi,
            -mi / scale + 2 * b * mj,
            -a,
            -b,
            1 / scale,
        )
        steep: Floats = np.sum([each**2 for each in slope], axis=0)
        # A row moves r by z_i z_j - r (z_i^2 + z_j^2) / 2 over the count, z standardized.
        ri, rj = (1 + np.abs(mi)) / np.sqrt(vi), (1 + np.abs(mj)) / np.sqrt(vj)
        most = ri * rj + np.abs(r) * (ri**2 + rj**2) / 2
        sampling = measured.unseen * self._question.rows * most * (1 + np.abs(r)) / count
        width = np.sqrt((measured.deviation / count) ** 2 * steep + sampling)
        found = (r, *ends(r, width))
        value, low, high = (
            np.where(known, np.clip(each, -1.0, 1.0), other)
            for each, other in zip(found, (0.0, -1.0, 1.0), strict=True)
        )
        return value, low, high

    def answer(self, measured: Measured) -> Answer:
        """See `Block`."""
        raw, low, high = self.interval(measured)
        value = _nearest_correlation(raw)
        names = [each.column for each in self._question.columns]
        pairs = [(i, j) for i in range(len(names)) for j in range(len(names))]
        estimates = [
            _one(value[i, j], low[i, j], high[i, j], f"{names[i]}, {names[j]}") for i, j in pairs
        ]
        return answer_to(
            self._question, estimates, measured.kind("asymptotic"), shape=(len(names), len(names))
        )


def _nearest_correlation(matrix: Floats) -> Floats:
    """A correlation matrix near a symmetric one: negative eigenvalues become 0, and the diagonal is
    scaled back to 1 (Rebonato and Jäckel 2000, spectral decomposition)."""
    values, vectors = np.linalg.eigh(matrix)
    if values.min() >= 0:
        return matrix
    kept = (vectors * np.maximum(values, 0.0)) @ vectors.T
    scale = np.sqrt(np.maximum(np.diag(kept), _LEAST))
    found: Floats = np.clip(kept / np.outer(scale, scale), -1, 1)
    np.fill_diagonal(found, 1.0)
    return found
