"""What the sampling tests look at: counts, sizes and overlaps, kept while cohorts are read.

No cohort is kept. A client costs a count and 64 bits, its attendance in the last 64 rounds in which
it might have been drawn, so that overlaps with each of the 64 cohorts before are counted as the
rounds go by.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy import PrivacyPlan

__all__ = ["LAGS", "CohortCounts", "Pair", "Scheme"]

LAGS = 64
"""Rounds (of a cyclic group's own) over which overlaps are counted."""

_REMARKABLE = 4.0
"""Standard deviations from which one pair's overlap is kept for its exact test."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """How cohorts are drawn, as far as it is random.

    Attributes:
        population: N.
        rate: a client's probability of being in a cohort of a round in which it may be.
        groups: cyclic groups that take turns; 1 where everybody may be drawn in every round.
        size: of every cohort, where it is fixed; None under Poisson sampling.
    """

    population: int
    rate: float
    groups: int = 1
    size: int | None = None

    @classmethod
    def of(cls, plan: PrivacyPlan) -> Scheme | None:
        """What a plan promises; None where no randomness is promised (min-separation)."""
        if plan.sampling == "fixed":
            size = round(plan.expected_cohort)
            return cls(population=plan.population, rate=size / plan.population, size=size)
        if plan.sampling != "poisson":
            return None
        cyclic = plan.mechanism == "banded-mf"
        groups = (plan.min_separation or 1) if cyclic else 1
        rate = min(1.0, plan.rate * groups)
        return cls(population=plan.population, rate=rate, groups=groups)

    def members(self, group: int) -> int:
        """Clients in a cyclic group: those whose number is `group` modulo the groups."""
        return max(0, -(-(self.population - group) // self.groups))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """An overlap of two cohorts that is worth an exact test.

    Attributes:
        rounds: the two rounds.
        size: of the earlier cohort.
        overlap: clients in both.
        score: standard deviations from what is expected.
    """

    rounds: tuple[int, int]
    size: int
    overlap: int
    score: float


class CohortCounts:
    """Counts over the rounds noted so far.

    Args:
        scheme: how cohorts are said to be drawn.

    Attributes:
        scheme: as given.
        rounds: noted.
        asked: (N,) rounds in which each client was in the cohort.
        turns: rounds noted of each cyclic group that had any.
        sizes: (clients who might have been drawn, cohort) of each round.
        overlaps: (LAGS + 1,) clients in a cohort and in the one so many turns before, all rounds
            together; entry 0 is unused.
        following: (LAGS + 1,) sizes of those earlier cohorts, added up.
        pairs: how many pairs of cohorts were compared.
        highest: the pair with by far the most in common, if any is remarkable.
        lowest: the pair with by far the least.
        repeated: two rounds with the same cohort, if there are any.
        same_group_pairs: pairs of rounds, at any distance, whose cohorts might have been the same.
    """

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.rounds = 0
        self.asked = np.zeros(scheme.population, dtype=np.int32)
        self.turns: Counter[int] = Counter()
        self.sizes: list[tuple[int, int]] = []
        self.overlaps = np.zeros(LAGS + 1, dtype=np.int64)
        self.following = np.zeros(LAGS + 1, dtype=np.int64)
        self.pairs = 0
        self.highest: Pair | None = None
        self.lowest: Pair | None = None
        self.repeated: tuple[int, int] | None = None
        self.same_group_pairs = 0
        self._digests: dict[bytes, int] = {}
        self._attended = np.zeros(scheme.population, dtype=np.uint64)
        self._last_turn = np.zeros(scheme.population, dtype=np.int32)
        self._before: dict[int, deque[tuple[int, int]]] = {}

    def note(self, round: int, cohort: Ids) -> None:
        """One round's cohort, in the rounds' order.

        Args:
            round: its number, from 1.
            cohort: increasing ids of those drawn, whatever became of them.
        """
        group = (round - 1) % self.scheme.groups
        self.rounds += 1
        self.sizes.append((self.scheme.members(group), cohort.size))
        self._note_repetition(round, cohort, group)
        self.turns[group] += 1
        self.asked[cohort] += 1
        self._note_overlaps(round, cohort, group)

    def _note_repetition(self, round: int, cohort: Ids, group: int) -> None:
        digest = hashlib.blake2b(cohort.tobytes(), digest_size=16).digest()
        before = self._digests.setdefault(digest, round)
        if before != round and self.repeated is None:
            self.repeated = before, round
        self.same_group_pairs += self.turns[group]

    def _note_overlaps(self, round: int, cohort: Ids, group: int) -> None:
        turn = self.turns[group]
        elapsed = turn - self._last_turn[cohort]
        # Bit j - 1 is attendance j turns ago: the client's own last turn becomes bit 0, then both
        # move back as many turns as have gone by since.
        recent = (self._attended[cohort] << np.uint64(1)) | (self._last_turn[cohort] > 0)
        past = np.where(elapsed <= LAGS, recent << _shift(elapsed - 1), np.uint64(0))
        bits = np.unpackbits(
            past.astype("<u8").view(np.uint8).reshape(cohort.size, 8), axis=1, bitorder="little"
        )
        common = bits.sum(axis=0, dtype=np.int64)
        self._attended[cohort], self._last_turn[cohort] = past, turn
        before = self._before.setdefault(group, deque(maxlen=LAGS))
        if before:
            sizes = np.array([size for _, size in before], dtype=np.int64)
            common = common[: len(sizes)]
            self.overlaps[1 : len(sizes) + 1] += common
            self.following[1 : len(sizes) + 1] += sizes
            self.pairs += len(sizes)
            self._keep_remarkable(round, [number for number, _ in before], sizes, common)
        before.appendleft((round, cohort.size))

    def _keep_remarkable(self, round: int, rounds: list[int], sizes: Ids, common: Ids) -> None:
        rate = self.scheme.rate
        spread = np.sqrt(np.maximum(sizes * rate * (1 - rate), 1e-9))
        scores = (common - sizes * rate) / spread
        for at in {int(scores.argmax()), int(scores.argmin())}:
            if abs(scores[at]) < _REMARKABLE:
                continue
            pair = Pair(
                rounds=(rounds[at], round),
                size=int(sizes[at]),
                overlap=int(common[at]),
                score=float(scores[at]),
            )
            if pair.score > 0 and (self.highest is None or pair.score > self.highest.score):
                self.highest = pair
            elif pair.score < 0 and (self.lowest is None or pair.score < self.lowest.score):
                self.lowest = pair


def _shift(turns: NDArray[np.int32]) -> NDArray[np.uint64]:
    """A number of bits to shift by that is defined for 64-bit words."""
    return np.clip(turns, 0, LAGS - 1).astype(np.uint64)
