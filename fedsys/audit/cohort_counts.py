"""Input of the sampling tests: counts, sizes and overlaps, accumulated while cohorts are read.

No cohort is kept. A client costs a count and 64 bits, its attendance in the last 64 rounds in which
it could have been drawn, so that overlaps with each of the previous 64 cohorts are counted round by
round.
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
"""Standard deviations from the mean beyond which a pair's overlap is kept for an exact test."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """How cohorts are drawn, where drawing is random.

    Attributes:
        population: N.
        rate: a client's probability of being drawn in a round in which it may be.
        groups: number of cyclic groups that take turns; 1 where everybody may be drawn in every
            round.
        size: the fixed size of every cohort; None under Poisson sampling.
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
        size: size of the earlier cohort.
        overlap: clients in both.
        score: standard deviations from the expected overlap.
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
        rounds: number of rounds noted.
        asked: (N,) rounds in which each client was in the cohort.
        turns: number of rounds noted for each cyclic group that had any.
        sizes: (clients that could have been drawn, cohort size) of each round.
        overlaps: (LAGS + 1,) clients in both a cohort and the one that many turns earlier, summed
            over all rounds; entry 0 is unused.
        following: (LAGS + 1,) sum of the sizes of those earlier cohorts.
        pairs: how many pairs of cohorts were compared.
        highest: the pair with the most unexpectedly large overlap; None if none is remarkable.
        lowest: the pair with the most unexpectedly small overlap; None if none is remarkable.
        repeated: two rounds with the same cohort, if there are any.
        same_group_pairs: pairs of rounds, at any distance, whose cohorts could have been the same.
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
        """Counts one round's cohort; rounds are noted in order.

        Args:
            round: its number, from 1.
            cohort: increasing ids of the clients drawn, including those lost later.
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
        # Bit j - 1 is attendance j turns ago: the client's own last turn becomes bit 0, then all
        # bits move up by the turns that have passed since.
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
    """Clips to shifts that are defined for 64-bit words."""
    return np.clip(turns, 0, LAGS - 1).astype(np.uint64)
