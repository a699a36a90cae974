"""Whose view a privacy loss holds in, and its value in each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["VIEWS", "Epsilons", "View", "epsilon_to_json"]

View = Literal["outsider", "participant", "server"]
VIEWS: tuple[View, ...] = ("outsider", "participant", "server")


def epsilon_to_json(epsilon: float | None) -> float | str | None:
    """JSON knows no infinity: an infinite epsilon is the string "inf"."""
    return "inf" if epsilon is not None and math.isinf(epsilon) else epsilon


@dataclass(frozen=True, kw_only=True, slots=True)
class Epsilons:
    """Epsilon by view at one delta; ``math.inf`` where that view has no protection.

    Attributes:
        outsider: who sees releases only.
        participant: curious clients; None where the evidence at hand cannot tell.
        server: likewise.

    >>> Epsilons(outsider=5.37, participant=10.7, server=math.inf).to_json()
    {'outsider': 5.37, 'participant': 10.7, 'server': 'inf'}
    """

    outsider: float
    participant: float | None
    server: float | None

    def of(self, view: View) -> float | None:
        """The value of one view."""
        value: float | None = getattr(self, view)
        return value

    def to_json(self) -> dict[str, Any]:
        """As JSON writes it."""
        return {view: epsilon_to_json(self.of(view)) for view in VIEWS}
