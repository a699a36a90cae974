"""What a round found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secure_agg.ring import Vector

__all__ = ["SumResult"]


@dataclass(frozen=True, kw_only=True)
class SumResult:
    """What a round found.

    Attributes:
        total: Sum modulo 2^modulus_bits of the included inputs; shape (length,).
        included: Increasing ids of those whose inputs are in the sum.
        blamed: Why, for each member that was caught cheating; exclude them next time.
        dropped: Ids that vanished, by the stage whose message they did not send.
    """

    total: Vector
    included: tuple[int, ...]
    blamed: Mapping[int, str] = field(default_factory=dict)
    dropped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
