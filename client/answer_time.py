"""When an upload leaves: at a time that does not reveal how much data it was trained on.

A device that answers as soon as it has trained reveals the number of its examples to anyone with a
clock. So its answer waits, from the moment it was asked, until the next of a few times that follow
from the job's terms alone:

    bucket k ends after u 2^k seconds,   u = .05 + 6e-9 d e 256

u is the time that a model of d weights takes for e epochs over 256 examples at a billion operations
per second (6 d operations per example: forward and backward), plus a constant for small models. A
device answers in the highest bucket that it needed in its last four rounds: if it chose afresh in
every round, the frequency with which it crosses a bucket's end would reveal how close its training
time is to that end. What remains visible is one of some ten buckets, and rarely a change of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from fedsys.wire.terms import Terms

__all__ = ["Answer", "AnswerTime", "stricter"]

Answer = Literal["at-once", "bucketed", "at-deadline"]

_ORDER: tuple[Answer, ...] = ("at-once", "bucketed", "at-deadline")
_LEAST_SECONDS = 0.05
_SECONDS_PER_WEIGHT_AND_EXAMPLE = 6e-9
_EXAMPLES = 256
_REMEMBERED = 4
_OF_THE_DEADLINE = 0.9
"""The remaining tenth is for the upload itself."""


def stricter(first: Answer, second: Answer) -> Answer:
    """The stricter of what a job and an owner ask for.

    >>> stricter("at-once", "bucketed")
    'bucketed'
    """
    return max(first, second, key=_ORDER.index)


@dataclass
class _Habit:
    """How a device has answered in one job.

    Attributes:
        lately: the buckets that its last rounds needed.
        deadline: the longest deadline announced, in seconds.
        warm: whether it has trained before in this process. The first training also loads
            libraries, which must not delay later rounds.
    """

    lately: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    deadline: float = 0.0
    warm: bool = False


class AnswerTime:
    """Holds uploads back.

    Args:
        clock: monotonic seconds.
        sleep: waits the given number of seconds, or less if the process is to end.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.clock = clock
        self._sleep = sleep
        self._habits: dict[bytes, _Habit] = {}

    def hold(self, terms: Terms, answer: Answer, *, asked: float, deadline: float) -> None:
        """Wait until an answer may leave.

        Args:
            terms: the job's terms.
            answer: what the owner asks for; the job may be stricter.
            asked: when the message to answer came, by `clock`.
            deadline: seconds that the coordinator announced with that message; 0 if none.
        """
        chosen = stricter(answer, terms.answer)
        if chosen == "at-once":
            return
        habit = self._habits.setdefault(terms.job, _Habit())
        # A coordinator could probe the training time with shorter deadlines: the longest counts.
        habit.deadline = max(habit.deadline, deadline)
        elapsed = self.clock() - asked
        at = _OF_THE_DEADLINE * habit.deadline
        if chosen == "bucketed" or elapsed > at:
            at = unit_seconds(terms) * 2.0 ** self._bucket(habit, elapsed / unit_seconds(terms))
        self._sleep(max(0.0, asked + at - self.clock()))

    def _bucket(self, habit: _Habit, units: float) -> int:
        needed = 0
        while 2.0**needed < units:
            needed += 1
        if not habit.warm:
            habit.warm = True
            return needed
        habit.lately.append(needed)
        return max(habit.lately)


def unit_seconds(terms: Terms) -> float:
    """u, the end of the first bucket in seconds, from a job's public constants alone."""
    epochs = terms.local.get("epochs", 1)
    passes = epochs if type(epochs) is int and 0 < epochs < 10**6 else 1
    work = _SECONDS_PER_WEIGHT_AND_EXAMPLE * terms.dimension * passes * _EXAMPLES
    return _LEAST_SECONDS + work
