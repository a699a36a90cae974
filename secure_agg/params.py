"""Parameters of a round, derived from what may go wrong rather than guessed.

>>> params = SecAggParams.derive(n=1000, corrupt=0.1, dropout=0.1)
>>> params.degree, params.threshold, params.colluders, params.quorum
(52, 28, 100, 551)
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from secure_agg.errors import ParameterError

__all__ = ["MAX_ATTEMPTS", "MAX_MEMBERS", "SecAggParams"]

MAX_MEMBERS: Final = 65_535
"""Most members of one round; GF(2^16) has this many non-zero points for share holders."""
MAX_ATTEMPTS: Final = 16
"""Most draws of the graph in one round."""
_WIRE = struct.Struct("<7IBB")
_SLACK = 1e-9  # 0.1 * 30 is 3.0000000000000004 and means 3


@dataclass(frozen=True, kw_only=True)
class SecAggParams:
    """Everything the members of a round must agree upon before they start.

    ``derive`` is the way to get one. The constructor takes raw values for benchmarks; it refuses
    only what cannot work, and `secrecy_bits` says what raw values are worth.

    Raises:
        ParameterError: A value is no integer, or outside its range.

    Attributes:
        n: Members invited. Slots of the graph: who never answers keeps an empty one.
        degree: Neighbours of each slot, k; even, or n - 1 for the complete graph.
        threshold: Shares that determine a secret, t.
        quorum: Signatures over one alive set without which nothing is unmasked, q.
        min_alive: Inputs a sum must contain, m; fewer, and the round reveals nothing.
        colluders: Members that may collude with the server, c.
        dropouts: Members that may vanish; beyond it a round may fail, never leak.
        modulus_bits: The ring is the integers modulo 2 to this power, 1 to 64.
        attempts: How often the graph may be drawn before the round is given up.
    """

    n: int
    degree: int
    threshold: int
    quorum: int
    min_alive: int
    colluders: int
    dropouts: int
    modulus_bits: int
    attempts: int = 1

    def __post_init__(self) -> None:
        _check("n", self.n, 2, MAX_MEMBERS)
        _check("degree", self.degree, 1, self.n - 1)
        if self.degree % 2 and self.degree != self.n - 1:
            raise ParameterError(f"degree is {self.degree}: it must be even, or n - 1")
        _check("threshold", self.threshold, 1, self.degree)
        _check("quorum", self.quorum, 1, self.n)
        _check("min_alive", self.min_alive, 2, self.n)
        _check("colluders", self.colluders, 0, self.n - 1)
        _check("dropouts", self.dropouts, 0, self.n - 1)
        _check("modulus_bits", self.modulus_bits, 1, 64)
        _check("attempts", self.attempts, 1, MAX_ATTEMPTS)

    @property
    def complete(self) -> bool:
        """Whether every member is every other's neighbour."""
        return self.degree == self.n - 1

    @staticmethod
    def derive(
        *,
        n: int,
        corrupt: float,
        dropout: float,
        modulus_bits: int = 32,
        correctness_bits: int = 30,
        secrecy_bits: int = 41,
        attempts: int | None = None,
    ) -> SecAggParams:
        """Choose the sparsest graph and the largest threshold that are secure and correct.

        With X ~ Hypergeometric(n-1, c, k) corrupt and Y ~ Hypergeometric(n-1, n-dropouts, k) live
        neighbours (Bell et al., CCS 2020, sections 3 and 4): ``n P[Y < t] <= 2^-correctness_bits``,
        ``A n P[X >= t] <= 2^-secrecy_bits`` and ``A n ((c+dropouts)/n)^(k/2) <= 2^-secrecy_bits``,
        where A is `attempts`: a coalition that withholds a nonce has the graph drawn again.
        One alive set for everybody is enforced by the quorum ``q > (n+c)/2``, which is what lets
        secrecy ask for ``X >= t`` only. Where no sparse graph fits, the complete one:
        ``c < t <= n - dropouts - max(c, 1)``.

        Args:
            n: Members invited to this round.
            corrupt: Fraction of them, gamma, that may collude with the server.
            dropout: Fraction of them, delta, that may vanish at any stage.
            modulus_bits: Width of the ring.
            correctness_bits: eta, of the chance that honest dropouts make a round fail.
            secrecy_bits: Of the chance that a graph is drawn that exposes somebody.
            attempts: Draws of the graph; default 1 for a sparse graph, and 4 for a complete one,
                where a draw gives an attacker nothing.

        Returns:
            The parameters; results are cached.

        Raises:
            ParameterError: When no k and t satisfy all bounds, or the live members, n - dropouts,
                fall below the quorum.
        """
        for name, value in (("corrupt", corrupt), ("dropout", dropout)):
            if not 0.0 <= value < 1.0:
                raise ParameterError(f"{name} is {value}: a fraction in [0, 1) is needed")
        _check("n", n, 2, MAX_MEMBERS)
        return _derive(n, corrupt, dropout, modulus_bits, correctness_bits, secrecy_bits, attempts)

    @property
    def secrecy_bits(self) -> float:
        """-log2 of the chance that a draw of the graph exposes somebody; inf if none can.

        Zero where the colluders reach the threshold or a quorum could sign two alive sets.
        """
        return _secrecy_bits(self)

    def encode(self) -> bytes:
        """Return the canonical 30 bytes that every member signs."""
        return _WIRE.pack(
            self.n,
            self.degree,
            self.threshold,
            self.quorum,
            self.min_alive,
            self.colluders,
            self.dropouts,
            self.modulus_bits,
            self.attempts,
        )

    @staticmethod
    def decode(data: bytes) -> SecAggParams:
        """Read what `encode` wrote.

        Raises:
            ParameterError: On a wrong length or values that cannot work.
        """
        if len(data) != _WIRE.size:
            raise ParameterError(f"parameters take {_WIRE.size} bytes, got {len(data)}")
        n, degree, threshold, quorum, min_alive, colluders, dropouts, bits, attempts = _WIRE.unpack(
            data
        )
        return SecAggParams(
            n=n,
            degree=degree,
            threshold=threshold,
            quorum=quorum,
            min_alive=min_alive,
            colluders=colluders,
            dropouts=dropouts,
            modulus_bits=bits,
            attempts=attempts,
        )


PARAMS_SIZE: Final = _WIRE.size


def _check(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterError(f"{name} is {value!r}: an integer is needed")
    if not low <= value <= high:
        raise ParameterError(f"{name} is {value}: it must be from {low} to {high}")


@functools.lru_cache(maxsize=65_536)
def _derive(
    n: int,
    corrupt: float,
    dropout: float,
    modulus_bits: int,
    correctness_bits: int,
    secrecy_bits: int,
    attempts: int | None,
) -> SecAggParams:
    colluders = math.ceil(corrupt * n - _SLACK)
    live = math.floor((1 - dropout) * n + _SLACK)
    quorum = (n + colluders) // 2 + 1
    what = f"n={n}, corrupt={corrupt}, dropout={dropout}"
    if live < max(quorum, 2):
        raise ParameterError(
            f"{what}: {live} live members are below the quorum of {max(quorum, 2)}; "
            "invite more or assume less"
        )
    sparse_attempts = 1 if attempts is None else attempts
    bits = secrecy_bits + math.log2(sparse_attempts)
    hit = (colluders + n - live) / n  # the fractions, rounded up to whole members
    chosen: tuple[int, int] | None = None
    first = 2
    if hit > 0:
        if hit >= 1:
            first = n
        else:
            first = max(2, 2 * math.ceil((bits + math.log2(n)) / -math.log2(hit) - _SLACK))
    for degree in range(first, n - 1, 2):
        threshold = _largest_threshold(n, live, degree, correctness_bits)
        if threshold and _tail(n - 1, colluders, degree, threshold) * n <= 2.0**-bits:
            chosen = degree, threshold
            break
    if chosen is None:
        threshold = min(live - 1, live - colluders)
        if threshold <= colluders:
            raise ParameterError(
                f"{what}: no threshold above {colluders} colluders can be met by "
                f"{live - colluders} honest live members; invite more or assume less"
            )
        chosen = n - 1, threshold
    degree, threshold = chosen
    return SecAggParams(
        n=n,
        degree=degree,
        threshold=threshold,
        quorum=quorum,
        min_alive=live,
        colluders=colluders,
        dropouts=n - live,
        modulus_bits=modulus_bits,
        attempts=(4 if degree == n - 1 else 1) if attempts is None else attempts,
    )


@functools.lru_cache(maxsize=8)
def _log_factorials(n: int) -> npt.NDArray[np.float64]:
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1, dtype=np.float64)))))


def _pmf(population: int, marked: int, draws: int) -> tuple[int, npt.NDArray[np.float64]]:
    """Return the least value of Hypergeometric(population, marked, draws), and all chances."""
    low = max(0, draws - (population - marked))
    j = np.arange(low, min(marked, draws) + 1)
    # Round the table up so that neighbouring n share one.
    lf = _log_factorials(1 << max(8, population.bit_length()))
    logs = (
        lf[marked] - lf[j] - lf[marked - j]
        + lf[population - marked] - lf[draws - j] - lf[population - marked - draws + j]
        - lf[population] + lf[draws] + lf[population - draws]
    )  # fmt: skip
    return low, np.exp(logs)


def _tail(population: int, marked: int, draws: int, at_least: int) -> float:
    """Return P[X >= at_least], summed from the small end so that tiny tails stay exact."""
    low, p = _pmf(population, marked, draws)
    return float(np.sum(p[max(0, at_least - low) :][::-1]))


def _largest_threshold(n: int, live: int, degree: int, correctness_bits: int) -> int:
    """Return the largest t with n P[Y < t] <= 2^-correctness_bits, or 0."""
    low, p = _pmf(n - 1, min(live, n - 1), degree)
    below = n * np.cumsum(p)  # below[i] = n P[Y <= low + i]
    fits = np.flatnonzero(below > 2.0**-correctness_bits)
    first_bad = low + int(fits[0]) if len(fits) else degree
    return min(first_bad, degree)


@functools.lru_cache(maxsize=4096)
def _secrecy_bits(params: SecAggParams) -> float:
    n, c, k, t = params.n, params.colluders, params.degree, params.threshold
    if 2 * params.quorum <= n + c or params.min_alive <= c:
        return 0.0
    if params.complete:
        return math.inf if c < t else 0.0
    hit = (c + params.dropouts) / n
    if hit >= 1:
        return 0.0
    chance = params.attempts * n * (_tail(n - 1, c, k, t) + hit ** (k / 2))
    return math.inf if chance == 0 else max(0.0, -math.log2(chance))
