"""Quantiles by a hierarchical histogram.

A row adds its weight to one node of each of L levels, so a device's norm is at most R sqrt(L).
The counts of the leaves are estimated from all nodes by least squares (Hay, Rastogi, Miklau and
Suciu 2010, "Boosting the accuracy of differentially private histograms through consistency"). As
all nodes have the same noise, that is the best linear unbiased estimate; its covariance gives the
deviation of every prefix. The distribution function is then made monotone by isotonic regression.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from fedsys.queries.answers import Answer, Estimate, Measured, answer_to, ends
from fedsys.queries.histograms import quantile_ends
from fedsys.queries.questions import Quantiles
from fedsys.queries.rows import Rows

__all__ = ["QuantilesBlock", "isotonic"]

Floats = NDArray[np.float64]
_SHOWN = 33
"""The most points of the distribution function that are reported."""


@functools.lru_cache(maxsize=8)
def _ladder(branching: int, levels: int) -> tuple[Floats, Floats]:
    """(leaves, nodes) the matrix of least squares; (edges, edges) the covariance of prefix sums at
    unit noise."""
    leaves = branching**levels
    parts = []
    for level in range(1, levels + 1):
        width = branching ** (levels - level)
        parts.append(np.kron(np.eye(branching**level), np.ones((1, width))))
    design = np.concatenate(parts)
    covariance = np.linalg.inv(design.T @ design)
    solved = covariance @ design.T
    prefix = np.tril(np.ones((leaves + 1, leaves)), -1)
    prefixes = prefix @ covariance @ prefix.T
    solved.setflags(write=False)
    prefixes.setflags(write=False)
    return solved, prefixes


class QuantilesBlock:
    """See `fedsys.queries.questions.Quantiles`."""

    def __init__(self, question: Quantiles) -> None:
        self._question = question
        self._bins = question.branching**question.levels
        self.size = sum(question.branching**level for level in range(1, question.levels + 1))
        self.sensitivity = question.rows * math.sqrt(question.levels)
        self.edges = np.linspace(question.low, question.high, self._bins + 1)

    def contribute(self, rows: Rows) -> Floats:
        """(K, nodes), level by level from the coarsest."""
        asked = self._question
        scaled, there = rows.scaled(asked.column, asked.low, asked.high)
        leaf = np.clip(np.floor((scaled + 1) / 2 * self._bins), 0, self._bins - 1).astype(np.int64)
        leaf[there == 0] = -1
        counts = rows.counts(leaf, self._bins, rows.weights(asked.rows))
        parts = [
            counts.reshape(rows.devices, asked.branching**level, -1).sum(axis=2)
            for level in range(1, asked.levels + 1)
        ]
        return np.concatenate(parts, axis=1)

    def below(self, sums: Floats) -> tuple[Floats, Floats]:
        """Numbers of values below each edge from sums (..., nodes).

        Returns:
            (..., bins + 1) estimates; (bins + 1, bins + 1) their covariance at unit noise.
        """
        solved, covariance = _ladder(self._question.branching, self._question.levels)
        leaves = sums @ solved.T
        zero = np.zeros((*leaves.shape[:-1], 1))
        return np.concatenate([zero, np.cumsum(leaves, axis=-1)], axis=-1), covariance

    def tests(self, measured: Measured, share: float) -> tuple[Floats, Floats]:
        """(..., bins - 1) values below minus `share` of all at the inner edges, and deviations."""
        below, covariance = self.below(measured.sums)
        total = below[..., -1:]
        variance = (
            np.diag(covariance) - 2 * share * covariance[:, -1] + share**2 * covariance[-1, -1]
        )
        spread = measured.mass(below) * (1 - share) ** 2 + measured.mass(total) * share**2
        sampling = measured.unseen * self._question.rows * spread
        deviation = np.sqrt(np.maximum(variance, 0.0) * measured.deviation**2 + sampling)
        return (below - share * total)[..., 1:-1], deviation[..., 1:-1]

    def quantile_interval(self, measured: Measured, share: float) -> tuple[Floats, Floats]:
        """(...) the ends of a quantile, from sums (..., nodes)."""
        return quantile_ends(*self.tests(measured, share), self.edges)

    def answer(self, measured: Measured) -> Answer:
        """See `Block`: quantiles, and the distribution function at some edges."""
        asked = self._question
        below, _ = self.below(measured.sums)
        total = float(below[-1])
        monotone = np.clip(isotonic(below / max(total, 1e-9)), 0.0, 1.0)
        monotone[0], monotone[-1] = 0.0, 1.0
        estimates = []
        for share in asked.quantiles:
            low, high = (float(each) for each in self.quantile_interval(measured, share))
            value = float(np.interp(share, monotone, self.edges)) if total > 0 else math.nan
            value = min(max(value, low), high) if total > 0 else (low + high) / 2
            estimates.append(Estimate(label=f"quantile {share:g}", value=value, low=low, high=high))
        step = max(1, self._bins // (_SHOWN - 1))
        for at in range(step, self._bins, step):
            low, high = (float(each) for each in self.share_interval(measured, at))
            estimates.append(
                Estimate(
                    label=f"below {self.edges[at]:g}",
                    value=float(monotone[at]),
                    low=low,
                    high=high,
                )
            )
        return answer_to(
            asked,
            estimates,
            "conservative",
            notes=(
                "quantiles' intervals are whole bins; each interval holds by itself, and those of "
                "the distribution function are not made monotone",
            ),
        )

    def share_interval(self, measured: Measured, at: int) -> tuple[Floats, Floats]:
        """(...) ends of the share of values below edge `at`, from sums (..., nodes): all p that a
        test does not refuse."""
        every, covariance = self.below(measured.sums)
        below, total = every[..., at, None], every[..., -1, None]
        shares = np.linspace(0, 1, 1001)
        variance = (
            covariance[at, at] - 2 * shares * covariance[at, -1] + shares**2 * covariance[-1, -1]
        )
        spread = measured.mass(below) * (1 - shares) ** 2 + measured.mass(total) * shares**2
        sampling = measured.unseen * self._question.rows * spread
        deviation = np.sqrt(np.maximum(variance, 0.0) * measured.deviation**2 + sampling)
        low, high = ends(below - shares * total, deviation)
        kept = (low <= 0) & (high >= 0)
        first = shares[np.argmax(kept, axis=-1)] - 1e-3
        last = shares[len(shares) - 1 - np.argmax(kept[..., ::-1], axis=-1)] + 1e-3
        near = np.clip(below / np.maximum(total, 1e-9), 0, 1)[..., 0]
        some = kept.any(axis=-1)
        return (
            np.where(some, np.maximum(first, 0.0), near),
            np.where(some, np.minimum(last, 1.0), near),
        )


def isotonic(values: Floats) -> Floats:
    """The nearest non-decreasing sequence, by pooling adjacent violators.

    >>> isotonic(np.array([1.0, 3.0, 2.0, 4.0]))
    array([1. , 2.5, 2.5, 4. ])
    """
    means: list[float] = []
    sizes: list[int] = []
    for each in values.tolist():
        means.append(each)
        sizes.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            size = sizes[-1] + sizes[-2]
            means[-2] = (means[-1] * sizes[-1] + means[-2] * sizes[-2]) / size
            sizes[-2] = size
            del means[-1], sizes[-1]
    return np.repeat(means, sizes)
