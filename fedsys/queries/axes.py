"""Columns with declared bins and ranges, and the types of their numbers and texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "MOST_BINS",
    "Axis",
    "Edges",
    "Finite",
    "Range",
    "Share",
    "Text",
    "Values",
    "finite",
    "increasing",
    "require_range",
]

MOST_BINS = 4096
"""The most coordinates of one question."""


def finite(value: float) -> float:
    """The value, unless it is not a number or infinite."""
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be printable text")
    return value


Finite = Annotated[float, AfterValidator(finite), Field(ge=-1e100, le=1e100)]
Text = Annotated[str, AfterValidator(_printable), Field(min_length=1, max_length=200)]
Share = Annotated[float, AfterValidator(finite), Field(gt=0, lt=1)]
Edges = Annotated[tuple[Finite, ...], Field(min_length=2, max_length=MOST_BINS + 1)]
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""An integer that a column of floats can hold."""
Values = Annotated[tuple[Text | Whole, ...], Field(min_length=1, max_length=MOST_BINS)]
NARROWEST = 1e-100
"""The narrowest range: below it a float has too few digits to scale by."""


class Axis(BaseModel):
    """A column and its bins.

    Attributes:
        column: name of the column.
        edges: increasing edges of the bins of a number; values outside count in the nearest bin.
        values: the values of a category; others are not counted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    column: Text
    edges: Edges | None = None
    values: Values | None = None

    @model_validator(mode="after")
    def _check(self) -> Axis:
        if (self.edges is None) == (self.values is None):
            raise ValueError("needs either edges or values")
        if self.edges is not None:
            increasing(self.edges)
        if self.values is not None and len({str(each) for each in self.values}) < len(self.values):
            raise ValueError("values must differ")
        return self

    @property
    def bins(self) -> int:
        """The number of bins."""
        return len(self.values) if self.values is not None else len(self.edges or ()) - 1

    @property
    def labels(self) -> tuple[str, ...]:
        """The bins' names."""
        if self.values is not None:
            return tuple(str(each) for each in self.values)
        edges = self.edges or ()
        return tuple(f"{a:g} to {b:g}" for a, b in pairwise(edges))


def increasing(edges: Sequence[float]) -> None:
    """Raise ValueError unless every edge is above the one before."""
    if any(b <= a for a, b in pairwise(edges)):
        raise ValueError("edges must increase")


def require_range(low: float, high: float) -> None:
    """Raise ValueError unless `low` is below `high`, by more than a float cannot tell."""
    if not low < high:
        raise ValueError("low must be below high")
    if high - low < NARROWEST:
        raise ValueError(f"low must be below high by at least {NARROWEST:g}")


class Range(BaseModel):
    """A column and the range to which its values are clipped."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    column: Text
    low: Finite
    high: Finite

    @model_validator(mode="after")
    def _check_range(self) -> Range:
        require_range(self.low, self.high)
        return self
