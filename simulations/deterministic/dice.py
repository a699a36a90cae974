"""All chance of a schedule grows from one number.

>>> dice = Dice(7, "example")
>>> dice.below(6) == Dice(7, "example").below(6)
True
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Dice"]

_BLOCK = 4096
T = TypeVar("T")


class Dice:
    """A stream of chance that is a function of a seed and a purpose.

    Args:
        seed: of the schedule.
        purpose: two purposes never share a stream, so that a further draw for one of them leaves
            the others as they were.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self._key = f"fedsys schedule {seed} {purpose} ".encode()
        self._block = 0
        self._bytes = b""
        self._at = 0

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes; as an `Entropy`, for what a party takes from its system."""
        while len(self._bytes) - self._at < count:
            fresh = hashlib.shake_256(self._key + str(self._block).encode()).digest(_BLOCK)
            self._bytes = self._bytes[self._at :] + fresh
            self._block, self._at = self._block + 1, 0
        self._at += count
        return self._bytes[self._at - count : self._at]

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float from [low, high)."""
        return low + (high - low) * int.from_bytes(self.bytes(6), "big") / (1 << 48)

    def below(self, bound: int) -> int:
        """An integer from 0 to bound - 1."""
        return int.from_bytes(self.bytes(8), "big") % bound

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def one_of(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.below(len(choices))]
