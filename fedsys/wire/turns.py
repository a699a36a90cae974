"""Which rounds of a training job ask devices how good its model is on their own rows.

After every `every` rounds of training, and after the last, comes one round of evaluation. It is
reserved, summed and charged as the others are, in the same ledger and under the same plan.

>>> turns = Turns.of(training=5, every=2)
>>> turns.rounds, [number for number in range(1, 9) if turns.evaluates(number)]
(8, [3, 6, 8])
>>> turns.trained(6)
4
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Turns"]


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The order of a job's rounds.

    Attributes:
        rounds: rounds of both kinds.
        every: rounds of training from one evaluation to the next; 0 for none.
    """

    rounds: int
    every: int = 0

    @classmethod
    def of(cls, *, training: int, every: int) -> Turns:
        """The order of so many rounds of training."""
        return cls(rounds=training + (-(-training // every) if every else 0), every=every)

    def evaluates(self, number: int) -> bool:
        """Whether devices evaluate in a round (1-based), instead of training."""
        return bool(self.every) and (number % (self.every + 1) == 0 or number == self.rounds)

    def trained(self, number: int) -> int:
        """Rounds of training among the first `number` rounds."""
        if not self.every:
            return number
        last = number == self.rounds and number % (self.every + 1) != 0
        return number - number // (self.every + 1) - last
