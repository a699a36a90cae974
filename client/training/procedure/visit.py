"""What a round brings to each client besides its weights, and where clients keep what is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["States", "Visit"]


class States(Protocol):
    """Tensors that stay with their client from round to round."""

    def load(self, client: Any, round: int) -> dict[str, Tensor]:
        """What the client kept in the newest round before `round`; empty if there is none."""
        ...

    def save(self, client: Any, round: int, state: Mapping[str, Tensor]) -> None:
        """Keep this for later rounds; a round that is trained again replaces what it kept."""
        ...


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One round, as a local procedure sees it.

    Attributes:
        round: The round's number, from 1; 0 for a trial whose result nobody uses.
        rounds: Number of rounds of the job.
        shared: What the server sends to everybody besides the model.
        states: Where clients' tensors are kept; None keeps none.
    """

    round: int = 0
    rounds: int = 1
    shared: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    states: States | None = None
