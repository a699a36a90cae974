"""Draws who takes part in a round, from the operating system's entropy and never from a seed.

>>> cohort = poisson_cohort(1000, 0.05, AesCtrStream(bytes(32)))
>>> cohort[:4], cohort.size
(array([  9,  60, 111, 128]), 51)
>>> fixed_cohort(10, 3, AesCtrStream(bytes(32)))
array([0, 1, 9])
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.randomness import AesCtrStream, Entropy

__all__ = [
    "MinSeparation",
    "cyclic_group",
    "fixed_cohort",
    "least_first",
    "poisson_cohort",
    "secret_coin",
]

_WORDS_AT_ONCE = 1 << 16


def _threshold(probability: float) -> int:
    """floor(p 2^64); a uniform 64-bit word is below it with probability p, to within 2^-64."""
    numerator, denominator = probability.as_integer_ratio()
    return (numerator << 64) // denominator


def secret_coin(probability: float, entropy: Entropy) -> bool:
    """Whether an agent contributes its update in this round, or zero; nobody else may know.

    Args:
        probability: p, realised to within 2^-64.
        entropy: called once, for 8 bytes.

    Raises:
        MechanismError: ``probability`` is outside (0, 1].
    """
    validation.probability("participation", probability)
    return int.from_bytes(entropy(8), "little") < _threshold(float(probability))


def poisson_cohort(population: int, rate: float, entropy: Entropy) -> NDArray[np.int64]:
    """Samples each of the clients 0..N-1 independently with probability ``rate``; ascending.

    Args:
        population: N.
        rate: q, realised to within 2^-64.
        entropy: called for a 32-byte key, unless q is 1.

    Raises:
        MechanismError: ``population`` is below 1 or ``rate`` outside (0, 1].
    """
    validation.integer("population", population)
    threshold = _threshold(validation.probability("sampling rate", rate))
    if threshold >> 64:
        return np.arange(population, dtype=np.int64)
    stream = AesCtrStream.from_entropy(entropy)
    chosen = []
    for start in range(0, population, _WORDS_AT_ONCE):
        words = stream.words(min(_WORDS_AT_ONCE, population - start))
        chosen.append(np.flatnonzero(words < np.uint64(threshold)) + start)
    return np.concatenate(chosen)


def fixed_cohort(population: int, size: int, entropy: Entropy) -> NDArray[np.int64]:
    """A uniform subset of constant size of the clients 0..N-1; ascending.

    Args:
        population: N.
        size: the cohort's size, from 1 to N.
        entropy: called for a 32-byte key.

    Raises:
        MechanismError: a number is out of range.
    """
    validation.integer("population", population)
    validation.integer("cohort size", size, most=population)
    return _uniform_subset(np.arange(population, dtype=np.int64), size, entropy)


def _uniform_subset(clients: NDArray[np.int64], size: int, entropy: Entropy) -> NDArray[np.int64]:
    """The clients with the ``size`` smallest of independent 64-bit keys; redrawn on a tie."""
    stream = AesCtrStream.from_entropy(entropy)
    if size == clients.size:
        return np.sort(clients)
    while True:
        keys = stream.words(clients.size)
        order = np.argpartition(keys, (size - 1, size))
        if keys[order[size - 1]] != keys[order[size]]:
            return np.sort(clients[order[:size]])


def cyclic_group(round: int, bands: int, population: int) -> NDArray[np.int64]:
    """The clients that may be sampled in a round (counted from 1) of banded matrix factorisation.

    The b groups of a fixed public partition take turns, so a client's rounds are at least b apart
    (Choquette-Choo et al. 2023, "(Amplified) Banded Matrix Factorization", Algorithm 2).
    """
    return np.arange((round - 1) % bands, population, bands, dtype=np.int64)


def least_first(
    counts: NDArray[np.int64], clients: NDArray[np.int64], entropy: Entropy
) -> NDArray[np.int64]:
    """Clients in the order in which buffered rounds ask them: fewest contributions first, random
    among equals. The accounting does not rely on this randomness.

    Args:
        counts: (N,) the number of contributions of each client in the population.
        clients: (n,) the clients that may be asked, increasing.
        entropy: source for the random order.
    """
    keys = AesCtrStream.from_entropy(entropy).words(clients.size)
    return clients[np.lexsort((keys, counts[clients]))]


class MinSeparation:
    """Cohorts of constant size in which a client returns after at least ``separation`` rounds.

    Args:
        population: N.
        size: the size of each cohort.
        separation: b; two rounds of one client differ by b or more.
        max_participations: k; no client takes part more often.

    Raises:
        MechanismError: a number is out of range.
    """

    def __init__(
        self, *, population: int, size: int, separation: int, max_participations: int
    ) -> None:
        validation.integer("population", population)
        validation.integer("cohort size", size, most=population)
        validation.integer("min_separation", separation)
        validation.integer("max_participations", max_participations)
        self._size = size
        self._separation = separation
        self._limit = max_participations
        self._last = np.full(population, -(1 << 60), dtype=np.int64)
        self._count = np.zeros(population, dtype=np.int64)

    def record(self, round: int, cohort: Iterable[int]) -> None:
        """Records who was sampled; called by `draw`, and when a run is resumed.

        Raises:
            MechanismError: a client returns too early or too often.
        """
        ids = np.fromiter(cohort, dtype=np.int64)
        if (self._last[ids] > round - self._separation).any():
            raise MechanismError(
                f"round {round}: a client returns in fewer than {self._separation} rounds"
            )
        if (self._count[ids] >= self._limit).any():
            raise MechanismError(f"round {round}: a client exceeds {self._limit} participations")
        self._last[ids] = round
        self._count[ids] += 1

    def record_lost(self, round: int) -> None:
        """Records a round whose cohort was lost in a crash: anybody may have been in it."""
        self._last[:] = round
        self._count += 1

    def eligible(self, round: int) -> NDArray[np.int64]:
        """The clients that may take part in this round; ascending.

        Raises:
            MechanismError: fewer clients than a cohort needs may take part.
        """
        free = (self._last <= round - self._separation) & (self._count < self._limit)
        clients = np.flatnonzero(free)
        if clients.size < self._size:
            raise MechanismError(
                f"round {round}: {clients.size} clients may take part, {self._size} are needed; "
                "raise the population or max_participations, or lower min_separation or the cohort"
            )
        return clients

    def draw(self, round: int, entropy: Entropy) -> NDArray[np.int64]:
        """Draws and records a cohort of clients that may take part in this round.

        Those who took part least come first, in random order among equals. A purely random choice
        would leave too few eligible clients long before the population's turns are used up. This
        costs nothing, because the accounting does not rely on this sampling's randomness.

        Raises:
            MechanismError: fewer clients than a cohort needs may take part.
        """
        clients = self.eligible(round)
        counts = self._count[clients]
        level = np.partition(counts, self._size - 1)[self._size - 1]
        certain, drawn = clients[counts < level], clients[counts == level]
        rest = _uniform_subset(drawn, self._size - certain.size, entropy)
        cohort = np.sort(np.concatenate([certain, rest]))
        self.record(round, cohort.tolist())
        return cohort
