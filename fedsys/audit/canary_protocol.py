"""What an empirical audit does, written down and hashed before anything is trained.

A test whose number of guesses, threshold or canaries can be chosen after the scores were seen
refutes nothing and confirms nothing. So the protocol is fixed first: which canaries (a commitment
to the seed that their coins and directions are drawn from), which statistic, how many guesses,
which tests, at which level. The SHA-256 of its canonical JSON is in the ledger's header, the first
line that is signed; the audit compares it, opens the commitment and redraws the coins.

The probability that any test refutes an honest run is at most `FALSE_ALARM`: each test has its
level, and the levels, together with what the noise's distance from a Gaussian costs, add up to that
(Bonferroni's inequality, whatever the tests' dependence).

>>> protocol = Protocol(canaries=500, dimension=650, commitment=commitment_to(bytes(32)),
...     guesses=0, one_run_delta=1e-7, fdp_guesses=500, level=1.6e-5)
>>> Protocol.from_json(protocol.to_json()) == protocol, len(protocol.digest)
(True, 64)
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.audit.canaries import (
    Choice,
    choose_guesses,
    critical_count,
    fdp_refutes,
    one_run_p_value,
)
from fedsys.audit.canary_claim import Claimed
from fedsys.audit.canary_scores import ScoreLaw, expected_accuracy
from fedsys.errors import ConfigError, LedgerError
from fedsys.privacy import AesCtrStream
from fedsys.privacy.ledger.lines import canonical

__all__ = [
    "FALSE_ALARM",
    "TESTS",
    "Coins",
    "Protocol",
    "commitment_to",
    "critical_counts",
    "register",
]

FALSE_ALARM = 1e-4
"""Upper bound on the probability that an honest run is refuted, all tests together."""

TESTS = ("chi-square", "kolmogorov-smirnov", "one-run", "f-dp", "gaussian-scores", "one-shot")

MOST_CANARIES = 1_000_000

_VERSION = 1
_STATISTIC = (
    "inner product with the canary's direction of the model's change, real clients' clipped "
    "updates taken off, in clipping norms over the constant denominator"
)
_DIRECTIONS = "rows of a cosine transform with random signs, coins first, from AES-256-CTR"
_GUESSED = "the highest half of the guesses in, the lowest half out, by the statistic"
_SEED = b"fedsys canary seed v1\x00"
_PROTOCOL = b"fedsys canary protocol v1\x00"
_HEX64 = re.compile(r"[0-9a-f]{64}")
_WEAKENED = (1.5, 2.0, math.inf)
_LEAST_DELTA = 1e-11


def commitment_to(seed: bytes) -> str:
    """SHA-256 (hex) that commits to 32 unpredictable bytes and hides them."""
    return hashlib.sha256(_SEED + seed).hexdigest()


@dataclass(frozen=True, slots=True)
class Coins:
    """What a seed determines about m canaries in d dimensions.

    Attributes:
        included: (m,) fair coins: whether each canary is in.
        rows: (m,) distinct rows of the cosine transform.
        signs: (d,) sign of every coordinate, 1 or -1.
    """

    included: NDArray[np.bool_]
    rows: NDArray[np.int64]
    signs: NDArray[np.float32]

    @classmethod
    def included_by(cls, seed: bytes, canaries: int) -> NDArray[np.bool_]:
        """(m,) only the coins, which are drawn first."""
        return (AesCtrStream(seed).words(canaries) & np.uint64(1)).astype(np.bool_)

    @classmethod
    def draw(cls, seed: bytes, *, canaries: int, dimension: int) -> Coins:
        """Everything that the seed determines."""
        stream, one = AesCtrStream(seed), np.uint64(1)
        included = (stream.words(canaries) & one).astype(np.bool_)
        order = np.argsort(stream.words(dimension), kind="stable")
        signs = np.where(stream.words(dimension) & one, 1, -1).astype(np.float32)
        return cls(included=included, rows=order[:canaries].astype(np.int64), signs=signs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """The protocol of one empirical audit.

    Attributes:
        canaries: m.
        dimension: d.
        commitment: commitment to the seed, from `commitment_to`.
        guesses: r of the one-run test; 0 where no number of guesses could refute the claim.
        one_run_delta: the delta at which that test evaluates the claim. Its p-value is never below
            2 delta m / r, so that at the job's own delta it could refute nothing at so small a
            level; the rounds also promise a larger epsilon at a smaller delta.
        fdp_guesses: r of the f-DP one-run test, as for ``guesses``.
        level: level of each test.

    Raises:
        LedgerError: a value is out of range.
    """

    canaries: int
    dimension: int
    commitment: str
    guesses: int
    one_run_delta: float
    fdp_guesses: int
    level: float

    def __post_init__(self) -> None:
        for name in ("canaries", "dimension", "guesses", "fdp_guesses"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 1 << 40:
                raise LedgerError(f"canary protocol: {name} is not a count")
        if not 2 <= self.canaries <= min(self.dimension, MOST_CANARIES):
            raise LedgerError(
                f"canary protocol: {self.canaries} canaries in {self.dimension} dimensions "
                "are impossible"
            )
        for guesses in (self.guesses, self.fdp_guesses):
            if guesses % 2 or guesses > self.canaries:
                raise LedgerError(
                    f"canary protocol: {guesses} guesses about {self.canaries} canaries are "
                    "impossible"
                )
        if not isinstance(self.commitment, str) or not _HEX64.fullmatch(self.commitment):
            raise LedgerError("canary protocol: the commitment is not 64 hexadecimal digits")
        for name in ("level", "one_run_delta"):
            value = getattr(self, name)
            if type(value) is not float or not 0 < value < 1:
                raise LedgerError(f"canary protocol: {name} is not between 0 and 1")

    def to_json(self) -> dict[str, Any]:
        """What is hashed and what ``canaries.jsonl`` opens with."""
        return {
            "version": _VERSION,
            "canaries": self.canaries,
            "dimension": self.dimension,
            "seed_commitment": self.commitment,
            "directions": _DIRECTIONS,
            "statistic": _STATISTIC,
            "guessed": _GUESSED,
            "guesses": {"one-run": self.guesses, "f-dp": self.fdp_guesses},
            "one_run_delta": self.one_run_delta,
            "tests": list(TESTS),
            "level": self.level,
            "false_alarm": FALSE_ALARM,
        }

    @classmethod
    def from_json(cls, body: object) -> Protocol:
        """Reads what `to_json` returned, and nothing else.

        Raises:
            LedgerError: it is not a protocol, or not one that this version carries out.
        """
        if not isinstance(body, dict) or not isinstance(body.get("guesses"), dict):
            raise LedgerError("canary protocol: it is not an object with its guesses")
        found = cls(
            canaries=body.get("canaries"),  # type: ignore[arg-type]  # checked when it is made
            dimension=body.get("dimension"),  # type: ignore[arg-type]
            commitment=body.get("seed_commitment"),  # type: ignore[arg-type]
            guesses=body["guesses"].get("one-run"),
            one_run_delta=body.get("one_run_delta"),  # type: ignore[arg-type]
            fdp_guesses=body["guesses"].get("f-dp"),
            level=body.get("level"),  # type: ignore[arg-type]
        )
        if canonical(found.to_json()) != canonical(body):
            raise LedgerError("canary protocol: this version does not carry it out")
        return found

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of its canonical JSON, as in the ledger's header."""
        return hashlib.sha256(_PROTOCOL + canonical(self.to_json())).hexdigest()

    def false_alarm(self, noise: float) -> float:
        """Bound on the probability that any test refutes an honest run.

        Args:
            noise: bound on the noise's total variation distance from a Gaussian, all rounds
                together.
        """
        return len(TESTS) * self.level + noise


def register(claimed: Claimed, *, canaries: int, dimension: int, commitment: str) -> Protocol:
    """The protocol of a job before it begins: r and the level follow from m and the claim.

    Args:
        claimed: what the plan claims for all its rounds.
        canaries: m.
        dimension: d.
        commitment: commitment to the canaries' seed.

    Raises:
        ConfigError: the noise is so far from a Gaussian that nothing is left for the tests' level.
    """
    left = FALSE_ALARM - claimed.noise_distance
    if left < FALSE_ALARM / 2:
        raise ConfigError(
            f"--canaries: the noise is {claimed.noise_distance:.2g} in total variation from a "
            f"Gaussian, which leaves no room for tests at {FALSE_ALARM:g}; lower privacy.delta, or "
            "use aggregation.encoding = 'wide'"
        )
    level = left / len(TESTS)
    one_run, one_run_delta, fdp = 0, claimed.delta, 0
    if claimed.law is not None and math.isfinite(claimed.epsilon):
        law = claimed.law
        accuracies = [functools.partial(_accuracy, law, canaries, weaker) for weaker in _WEAKENED]
        chosen: list[tuple[Choice, float]] = []
        for delta in _deltas(claimed):
            critical = functools.partial(_one_run_critical, claimed, canaries, level, delta)
            chosen.append((choose_guesses(canaries, critical, accuracies), delta))
        best, one_run_delta = max(chosen, key=lambda choice: choice[0].merit)
        one_run = best.guesses
        critical = functools.partial(_fdp_critical, claimed, canaries, level)
        fdp = choose_guesses(canaries, critical, accuracies).guesses
    return Protocol(
        canaries=canaries,
        dimension=dimension,
        commitment=commitment,
        guesses=one_run,
        one_run_delta=one_run_delta,
        fdp_guesses=fdp,
        level=level,
    )


def _deltas(claimed: Claimed) -> list[float]:
    """Deltas at which the one-run test may evaluate the claim."""
    return [
        delta
        for delta in (claimed.delta / 10**power for power in range(6))
        if delta >= max(2 * claimed.overhead, _LEAST_DELTA) or delta == claimed.delta
    ]


def critical_counts(claimed: Claimed, protocol: Protocol) -> tuple[int | None, int | None]:
    """The fewest right guesses that refute the claim, by one-run and by f-DP one-run."""
    m, level = protocol.canaries, protocol.level
    r, delta, fdp_r = protocol.guesses, protocol.one_run_delta, protocol.fdp_guesses
    return (
        _one_run_critical(claimed, m, level, delta, r) if r else None,
        _fdp_critical(claimed, m, level, fdp_r) if fdp_r else None,
    )


def _accuracy(law: ScoreLaw, canaries: int, weaker: float, guesses: int) -> float:
    return expected_accuracy(law, guesses / canaries, weaker)


def _one_run_critical(
    claimed: Claimed, canaries: int, level: float, delta: float, guesses: int
) -> int | None:
    epsilon = claimed.epsilon_for(delta)
    if not math.isfinite(epsilon):
        return None

    def refutes(correct: int) -> bool:
        found = one_run_p_value(
            epsilon, canaries=canaries, guesses=guesses, correct=correct, delta=delta
        )
        return found <= level

    return critical_count(guesses, refutes)


def _fdp_critical(claimed: Claimed, canaries: int, level: float, guesses: int) -> int | None:
    tradeoff = claimed.tradeoff
    if tradeoff is None:
        return None
    return critical_count(
        guesses,
        lambda correct: fdp_refutes(
            tradeoff, canaries=canaries, guesses=guesses, correct=correct, level=level
        ),
    )
