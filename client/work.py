"""What a session needs of the owner's data and code."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy import Entropy
from fedsys.wire import Assignment
from fedsys.wire.terms import Terms

__all__ = ["Worker"]


class Worker(Protocol):
    """The owner's data and code."""

    @property
    def sha256(self) -> str:
        """Of the installed task's code, or of the graph that stands for it."""
        ...

    def check(self, terms: Terms) -> None:
        """Raise PolicyRefusal where these terms cannot be trained here."""
        ...

    def train(
        self, terms: Terms, assignment: Assignment, client: int, entropy: Entropy
    ) -> NDArray[np.float32]:
        """(1, d) this client's update."""
        ...
