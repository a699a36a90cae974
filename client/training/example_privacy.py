"""What DP-SGD on a device guarantees, and the lattice on which it adds; for every implementation.

Clipped gradients are truncated to multiples of C / 2^20 and added as integers, and the noise is
round(sigma N) on that integer sum with sigma = z 2^20. Truncation does not lengthen a gradient, so
an example moves the sum by at most C. Ghost clipping has no single gradients to truncate: it rounds
their sum and clips to less instead (`client.training.example.optimizer`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError
from fedsys.privacy.randomness import AesCtrStream

__all__ = ["SLACK", "UNITS", "ExamplePrivacy", "poisson_batch"]

UNITS = float(1 << 20)
SLACK = 1.0 - 1e-5
"""Gradients are clipped to slightly less than C. What is smaller: the error of a norm, 4e-6
(`client.training.example.gradients.norms_of`), and those of float32 factors and products, 2e-7."""


@dataclass(frozen=True, kw_only=True)
class ExamplePrivacy:
    """The parameters that the accountant of ``example-gaussian`` charges for, one set for a job.

    Attributes:
        clip: C, the L2 norm to which each example's gradient is clipped.
        noise_multiplier: z; a step's summed gradient gets noise of standard deviation z C.
        example_rate: Probability that an example is in a step's batch, independently.
        steps: Local steps per round.
    """

    clip: float
    noise_multiplier: float
    example_rate: float
    steps: int

    def __post_init__(self) -> None:
        for name in ("clip", "noise_multiplier"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"privacy.{name} = {value}: must be a positive number")
        if not 0 < self.example_rate <= 1:
            raise ConfigError(f"example_rate = {self.example_rate}: must be in (0, 1]")
        if self.steps < 1:
            raise ConfigError(f"steps = {self.steps}: at least 1 is needed")


def poisson_batch(stream: AesCtrStream, count: int, rate: float) -> NDArray[np.bool_]:
    """(count,) independent coins, each true with probability `rate` to within 2^-64."""
    if rate >= 1:
        return np.ones(count, dtype=np.bool_)
    return stream.words(count) < np.uint64(math.floor(rate * 2.0**64))
