"""What a round found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secure_agg.masking import Unsigned

__all__ = ["SumResult"]


@dataclass(frozen=True, kw_only=True)
class SumResult:
    """What a round found.

    Attributes:
        total: Sum modulo 2^modulus_bits of the included inputs; shape (dimension,).
        included: Increasing ids of those whose inputs are in the sum.
        blamed: Why, for each member that was caught cheating; exclude them next time.
        left_out: Why, for each uploader that is not in the sum and is not blamed: a committee
            member could not open its share, and nobody can tell which of the two is at fault.
        dropped: Ids that vanished, by the stage whose message they did not send.
    """

    total: Unsigned
    included: tuple[int, ...]
    blamed: Mapping[int, str] = field(default_factory=dict)
    left_out: Mapping[int, str] = field(default_factory=dict)
    dropped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
