"""example-gaussian: the sum of updates that each client made private by its own optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.clipping import wide_scale
from fedsys.privacy.events import ExampleEvent
from fedsys.privacy.mechanisms.base import WideEncoding
from fedsys.privacy.randomness import Entropy

__all__ = ["ExampleGaussian"]


class ExampleGaussian(WideEncoding):
    """The wide encoding without further noise: the clients' optimizers added theirs."""

    def __init__(self, event: ExampleEvent) -> None:
        super().__init__(event, wide_scale(event.dimension, event.clip))

    @property
    def noise_deviation(self) -> float:
        """Zero: nothing is added to the sum."""
        return 0.0

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """Zeros (clients, d)."""
        return np.zeros((clients, self.length), dtype=np.int64)

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """Zeros (d,)."""
        self.check_survivors(survivors)
        return np.zeros(self.length, dtype=np.int64)
