"""The three views in which a privacy loss is stated, and an epsilon for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["VIEWS", "Epsilons", "View", "epsilon_to_json"]

View = Literal["outsider", "participant", "server"]
VIEWS: tuple[View, ...] = ("outsider", "participant", "server")


def epsilon_to_json(epsilon: float | None) -> float | str | None:
    """An epsilon as JSON, which has no infinity: an infinite one is the string "inf"."""
    return "inf" if epsilon is not None and math.isinf(epsilon) else epsilon


@dataclass(frozen=True, kw_only=True, slots=True)
class Epsilons:
    """Epsilon by view at one delta; ``math.inf`` where that view has no protection.

    Attributes:
        outsider: epsilon against somebody who sees releases only.
        participant: epsilon against curious clients; None where the evidence does not determine it.
        server: epsilon against the server; None likewise.

    >>> Epsilons(outsider=5.37, participant=10.7, server=math.inf).to_json()
    {'outsider': 5.37, 'participant': 10.7, 'server': 'inf'}
    """

    outsider: float
    participant: float | None
    server: float | None

    def of(self, view: View) -> float | None:
        """The epsilon of one view."""
        value: float | None = getattr(self, view)
        return value

    def to_json(self) -> dict[str, Any]:
        """A JSON object: epsilon by view."""
        return {view: epsilon_to_json(self.of(view)) for view in VIEWS}
