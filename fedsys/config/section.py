"""What every table of a configuration is, and the numbers in them."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = [
    "Count",
    "Finite",
    "Fraction",
    "NonNegative",
    "Norm",
    "Positive",
    "Probability",
    "Section",
]

Count = Annotated[int, Field(ge=1, le=10**9)]


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _norm(value: float) -> float:
    """Updates are float32, and a norm's square has to stay finite and above zero in float64."""
    if not 1e-30 <= value <= 1e30:
        raise ValueError("must lie between 1e-30 and 1e30")
    return value


Finite = Annotated[float, AfterValidator(_finite)]
Positive = Annotated[Finite, Field(gt=0)]
Norm = Annotated[Positive, AfterValidator(_norm)]
NonNegative = Annotated[Finite, Field(ge=0)]
Fraction = Annotated[Finite, Field(ge=0, lt=1)]
Probability = Annotated[Finite, Field(gt=0, le=1)]


class Section(BaseModel):
    """A table of the configuration; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
