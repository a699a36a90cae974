"""none: clipped sums without noise. Research only; every epsilon is infinite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy.clipping import wide_scale
from fedsys.privacy.events import UnprotectedEvent
from fedsys.privacy.mechanisms.base import WideEncoding
from fedsys.privacy.randomness import Entropy

__all__ = ["Unprotected"]


class Unprotected(WideEncoding):
    """The wide encoding without noise; see ``Mechanism``."""

    def __init__(self, event: UnprotectedEvent) -> None:
        super().__init__(event, wide_scale(event.dimension, event.clip))

    @property
    def noise_deviation(self) -> float:
        """Zero."""
        return 0.0

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """Zeros (clients, d)."""
        return np.zeros((clients, self.length), dtype=np.int64)

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """Zeros (d,)."""
        self.check_survivors(survivors)
        return np.zeros(self.length, dtype=np.int64)
