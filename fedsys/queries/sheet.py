"""All questions of a round in one vector: how they share the norm, and the grid that it lies on.

**Sharing.** Question j adds t_j v_j / D_j, where D_j bounds the norm of v_j and sum t_j^2 = 1, so
the vector's norm is at most 1. Noise of deviation z then gives question j the error z D_j / t_j,
which is 1 / t_j of what it would have alone. With weights w_j on the squares of these factors,
sum w_j / t_j^2 is least at t_j^2 = sqrt(w_j) / sum sqrt(w_i), by Lagrange's condition
w_j / t_j^4 = constant. In zero-concentrated privacy rho_j is in proportion to t_j^2, and the rho_j
add up to that of the round (Bun and Steinke 2016, Lemma 2.3); in the terms of the matrix mechanism
(Li, Miklau, Hay, McGregor and Rastogi 2015) it is the best scaling of given strategies.

**Grid.** Clipping in the integers rounds each coordinate to a multiple of 1 / s with s = 64 sqrt(D)
(`fedsys.privacy.encoding.clipping`). Rounding to nearest would add the same error on thousands of
devices that hold the same value, so devices round at random, up or down, to the right value in
expectation; the choice comes from a public seed and hides nothing. This adds at most 1 / (4 s^2) to
the variance of each coordinate for each device. The vector is padded with zeros to D coordinates,
which makes the grid so fine that this stays small next to the noise, and is shortened by
sqrt(d) / s, so that rounding cannot lengthen it above 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError
from fedsys.queries.answers import Answer, Measured
from fedsys.queries.blocks import Block
from fedsys.queries.histograms import CalibrationBlock, DevicesBlock, HistogramBlock
from fedsys.queries.ladder import QuantilesBlock
from fedsys.queries.moments import (
    CorrelationBlock,
    CountBlock,
    MeanBlock,
    SumBlock,
    VarianceBlock,
)
from fedsys.queries.questions import (
    Calibration,
    Confusion,
    Correlation,
    Count,
    Crosstab,
    Devices,
    Examples,
    Histogram,
    Labels,
    Mean,
    Quantiles,
    Question,
    Sum,
    Top,
    Variance,
)
from fedsys.queries.rows import Rows

__all__ = ["MOST_COORDINATES", "Sheet", "block_of"]

MOST_COORDINATES = 4096
"""The most coordinates of all questions together."""
_INTEGERS = 64  # as in fedsys.privacy.encoding.clipping
_FINE, _FINEST = 4096, 1 << 16

Floats = NDArray[np.float64]


def block_of(question: Question) -> Block:
    """What a question asks of a device."""
    if isinstance(question, Count):
        return CountBlock(question)
    if isinstance(question, Sum):
        return SumBlock(question)
    if isinstance(question, Mean):
        return MeanBlock(question)
    if isinstance(question, Variance):
        return VarianceBlock(question)
    if isinstance(question, Correlation):
        return CorrelationBlock(question)
    if isinstance(question, Quantiles):
        return QuantilesBlock(question)
    if isinstance(question, Devices):
        return DevicesBlock(question)
    if isinstance(question, Calibration):
        return CalibrationBlock(question)
    if isinstance(question, Histogram | Labels | Top | Crosstab | Confusion | Examples):
        return HistogramBlock(question)
    raise ConfigError(f"ask = {question.ask!r}: there is no such question")


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The questions of one round.

    Attributes:
        questions: in the order of the vector.
        dimension: D, coordinates of the vector with its padding.
    """

    questions: tuple[Question, ...]
    dimension: int

    @classmethod
    def of(
        cls,
        questions: Sequence[Question],
        *,
        population: int | None = None,
        dimension: int | None = None,
    ) -> Sheet:
        """A sheet with enough padding for `population` devices, or with a given dimension.

        Raises:
            ConfigError: the questions have too many coordinates, or more than `dimension`.
        """
        sheet = cls(questions=tuple(questions), dimension=dimension or 0)
        needed = sheet.size
        if needed > MOST_COORDINATES:
            raise ConfigError(
                f"the questions have {needed} coordinates together; at most {MOST_COORDINATES} are "
                f"allowed: ask fewer, or with fewer bins"
            )
        if dimension is None:
            fine = max(min(16 * needed, _FINE), min(-(-(population or 0) // 40), _FINEST))
            return cls(questions=sheet.questions, dimension=max(needed, fine))
        if dimension < needed:
            raise ConfigError(
                f"the questions have {needed} coordinates, and the vector only {dimension}"
            )
        return sheet

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """What each question asks of a device."""
        return tuple(map(block_of, self.questions))

    @cached_property
    def size(self) -> int:
        """d, coordinates without padding."""
        return sum(block.size for block in self.blocks)

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """t_j, the part of the norm that each question takes; their squares add up to 1."""
        roots = [math.sqrt(each.weight) for each in self.questions]
        return tuple(math.sqrt(root / math.fsum(roots)) for root in roots)

    @property
    def grid(self) -> float:
        """s, steps of the grid in a norm of 1."""
        return _INTEGERS * math.sqrt(self.dimension)

    @property
    def kept(self) -> float:
        """The norm that is left to the contribution, next to its rounding."""
        return 1 - math.sqrt(self.size) / self.grid

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """By question, units of its own sums in a norm of 1."""
        return tuple(
            block.sensitivity / (self.kept * share)
            for block, share in zip(self.blocks, self.shares, strict=True)
        )

    def exact(self, rows: Rows) -> Floats:
        """(K, d) contributions before they are put on the grid, of norm `kept` at most."""
        parts = [
            block.contribute(rows) / scale
            for block, scale in zip(self.blocks, self.scales, strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def contributions(self, rows: Rows, uniforms: Floats | None = None) -> NDArray[np.float32]:
        """(K, D) vectors on the grid, of norm 1 at most.

        Args:
            rows: of K devices.
            uniforms: (K, d) uniform in [0, 1), which decide how each coordinate is rounded; None
                rounds to nearest.
        """
        exact = self.exact(rows) * self.grid
        chosen = np.full(exact.shape, 0.5) if uniforms is None else uniforms
        found = np.zeros((rows.devices, self.dimension), dtype=np.float32)
        found[:, : self.size] = np.floor(exact + chosen) / self.grid
        return found

    def answers(
        self, mean: NDArray[np.floating], *, deviation: float, rate: float, population: int
    ) -> tuple[Answer, ...]:
        """The answers of a round.

        Args:
            mean: (d or more,) the noisy sum over q N.
            deviation: standard deviation of the noise in each of its coordinates.
            rate: q.
            population: N.
        """
        found = []
        for block, measured in zip(
            self.blocks, self.measured(mean, deviation, rate, population), strict=True
        ):
            found.append(block.answer(measured))
        return tuple(found)

    def measured(
        self, mean: NDArray[np.floating], deviation: float, rate: float, population: int
    ) -> list[Measured]:
        """Each question's sums from a round's mean (..., d or more), as for `answers`."""
        rounding = population / rate / (2 * self.grid * population) ** 2
        total = math.sqrt(deviation**2 + rounding) * population
        found, at = [], 0
        for block, scale in zip(self.blocks, self.scales, strict=True):
            part = mean[..., at : at + block.size].astype(np.float64)
            found.append(
                Measured(
                    sums=part * population * scale,
                    deviation=total * scale,
                    rate=rate,
                    population=population,
                )
            )
            at += block.size
        return found
