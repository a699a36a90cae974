"""What a question asks of a device, and what its sum says: the interface of every question."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedsys.queries.answers import Answer, Measured
from fedsys.queries.rows import Rows

__all__ = ["Block"]


class Block(Protocol):
    """One question's coordinates."""

    @property
    def size(self) -> int:
        """Coordinates."""
        ...

    @property
    def sensitivity(self) -> float:
        """The largest L2 norm that `contribute` gives a device, whatever its rows are."""
        ...

    def contribute(self, rows: Rows) -> NDArray[np.float64]:
        """(K, size) what each device adds."""
        ...

    def answer(self, measured: Measured) -> Answer:
        """The answer from noisy sums (size,)."""
        ...
