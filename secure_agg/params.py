"""Parameters of a round, derived from what may go wrong rather than guessed.

>>> params = SecAggParams.derive(
...     n=1000, corrupt=0.1, dropout=0.1, modulus_bits=20, dimension=100_000
... )
>>> params.committee, params.colluders, params.quorum, params.threshold, params.packing
(160, 64, 113, 89, 25)
>>> params.log_q, params.values_per_coefficient, params.ciphertext_bytes / params.dimension
(52, 2, 3.072)
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from dataclasses import dataclass
from typing import Final

from secure_agg.committee import (
    EVERYBODY,
    MAX_COHORT,
    MAX_COMMITTEE,
    PROOF_COLUMNS,
    SEAL_OVERHEAD,
    SUITES,
    Committee,
    choose_committee,
    cohort_colluders,
    live_members,
    require_fraction,
    require_integer,
)
from secure_agg.errors import ParameterError
from secure_agg.hardness import (
    RING_DEGREE,
    SIGMA,
    Estimate,
    mask_security,
    mask_security_by_theorem,
)

__all__ = [
    "EVERYBODY",
    "FIELD",
    "MARGIN",
    "MAX_COHORT",
    "MAX_COMMITTEE",
    "MAX_DIMENSION",
    "MAX_LOG_Q",
    "PARAMS_SIZE",
    "PROOF_COLUMNS",
    "RING_DEGREE",
    "SEAL_OVERHEAD",
    "SIGMA",
    "Committee",
    "SecAggParams",
    "choose_committee",
    "cohort_colluders",
]

FIELD: Final = 65_521
"""Prime of the share field: the largest below 2^16, so that an element takes two bytes."""
MARGIN: Final = 9.5
"""Decoding margin Z, in standard deviations of the noise; see `SecAggParams.noise_limit`."""
MAX_DIMENSION: Final = 2**31 - 1
MAX_LOG_Q: Final = 53
"""Largest modulus: 2^53 leaves 106 bits of core-SVP hardness, 138 bits classically."""
MIN_MODULUS_BITS: Final = 2
MAX_MODULUS_BITS: Final = 40
_MAX_DROPPED_BITS: Final = 11
_WIRE: Final = struct.Struct("<HIBHHHHHHHBBBBB")
PARAMS_SIZE: Final = _WIRE.size


@dataclass(frozen=True, kw_only=True)
class SecAggParams:
    """Everything the members of a round must agree upon before they start.

    ``derive`` is the way to get one. The constructor takes raw values for tests and for what
    arrives from the network; it refuses values that are unsafe on their own terms. Whether the
    `colluders` they assume are enough is for the member to judge, which derives its own.

    Raises:
        ParameterError: A value is no integer, outside its range, or unsafe together with the
        others.

    Attributes:
        n: Members invited, 2 to 10,000.
        dimension: Values in a vector, d.
        modulus_bits: The sum is modulo 2 to this power, b.
        committee: Committee members, C.
        colluders: Committee members that may collude with the server, c.
        quorum: Endorsements of one set without which nobody answers, q.
        threshold: Answers that determine the sum, t.
        packing: Secrets packed into one polynomial, rho.
        errors: Wrong answers that are corrected when C less the tolerated losses answer.
        min_included: Inputs that a sum must contain, m.
        values_per_coefficient: Values packed into one coefficient of the ring.
        log_q: log2 of the ciphertext modulus.
        dropped_bits: Low bits of a ciphertext that are rounded away before it is sent.
        scale_bits: Position of the packed values above the noise, delta.
        suite: 1 seals with X25519, 2 with X25519 and ML-KEM-768.
    """

    n: int
    dimension: int
    modulus_bits: int
    committee: int
    colluders: int
    quorum: int
    threshold: int
    packing: int
    errors: int
    min_included: int
    values_per_coefficient: int
    log_q: int
    dropped_bits: int
    scale_bits: int
    suite: int = 1

    def __post_init__(self) -> None:
        require_integer("n", self.n, 2, MAX_COHORT)
        require_integer("dimension", self.dimension, 1, MAX_DIMENSION)
        require_integer("modulus_bits", self.modulus_bits, MIN_MODULUS_BITS, MAX_MODULUS_BITS)
        require_integer("committee", self.committee, 2, min(self.n, MAX_COMMITTEE))
        require_integer("colluders", self.colluders, 0, self.committee - 1)
        require_integer("quorum", self.quorum, 1, self.committee)
        require_integer("threshold", self.threshold, 2, self.committee)
        require_integer("packing", self.packing, 1, min(self.threshold - 1, RING_DEGREE))
        require_integer("errors", self.errors, 0, (self.committee - self.threshold) // 2)
        require_integer("min_included", self.min_included, 2, self.n)
        require_integer("log_q", self.log_q, 2, MAX_LOG_Q)
        require_integer("values_per_coefficient", self.values_per_coefficient, 1, MAX_LOG_Q)
        require_integer("scale_bits", self.scale_bits, 1, self.log_q - 1)
        require_integer("dropped_bits", self.dropped_bits, 0, self.scale_bits)
        require_integer("suite", self.suite, SUITES[0], SUITES[-1])
        if self.tau < self.colluders:
            raise ParameterError(
                f"threshold less packing is {self.tau}: it must reach the {self.colluders} "
                "colluders, whose shares would reveal secrets"
            )
        if 2 * self.quorum <= self.committee + self.colluders:
            raise ParameterError(
                f"quorum is {self.quorum}: {self.colluders} colluders in a committee of "
                f"{self.committee} could endorse two sets; it must be at least "
                f"{(self.committee + self.colluders) // 2 + 1}"
            )
        width = self.modulus_bits * self.values_per_coefficient + self.scale_bits
        if self.log_q < width:
            raise ParameterError(
                f"log_q is {self.log_q}: {self.values_per_coefficient} values of "
                f"{self.modulus_bits} bits above {self.scale_bits} bits of noise take {width}"
            )
        if self.noise_limit(self.n) > 2 ** (self.scale_bits - 1):
            raise ParameterError(
                f"scale_bits is {self.scale_bits}: the noise of {self.n} ciphertexts reaches "
                f"{self.noise_limit(self.n):.0f}, above half of 2^{self.scale_bits}"
            )

    @staticmethod
    def derive(
        *,
        n: int,
        corrupt: float,
        dropout: float,
        modulus_bits: int,
        dimension: int,
        colluders: int = 0,
        min_included: int | None = None,
        suite: int = 1,
        committee: int | None = None,
    ) -> SecAggParams:
        """Choose the committee that costs a member the fewest bytes, and the ring likewise.

        Deterministic: both sides derive and compare. Results are cached.

        Args:
            n: Members invited, 2 to 10,000.
            corrupt: Fraction of the cohort that may collude with the server. It means something
                only if the cohort was sampled honestly: the server chooses it.
            dropout: Fraction of the cohort that may be lost at any stage.
            modulus_bits: The sum is modulo 2 to this power.
            dimension: Values in a vector.
            colluders: Members of the whole roster that may collude, an absolute number; up to n - 2
                of them are assumed to be in the cohort.
            min_included: Inputs a sum must contain, two more than colluders at least: the sum
                with one honest input reveals it. By default those that stay when `dropout` is
                exhausted.
            suite: 1 or 2.
            committee: Size of the committee; by default `choose_committee` decides.

        Raises:
            ParameterError: A value is outside its range, or no choice is secure and live; the
                message says which of n, corrupt and dropout cannot be met and why.
        """
        require_integer("n", n, 2, MAX_COHORT)
        require_fraction("corrupt", corrupt)
        require_fraction("dropout", dropout)
        require_integer("modulus_bits", modulus_bits, MIN_MODULUS_BITS, MAX_MODULUS_BITS)
        return _derive(
            n,
            float(corrupt),
            float(dropout),
            modulus_bits,
            dimension,
            colluders,
            min_included,
            suite,
            committee,
        )

    @property
    def tau(self) -> int:
        """Most shares of a secret that reveal nothing of it: threshold less packing."""
        return self.threshold - self.packing

    @functools.cached_property
    def columns(self) -> int:
        """Polynomials that carry one member's secret, K."""
        return -(-RING_DEGREE // self.packing)

    @property
    def needed(self) -> int:
        """Live committee members without which there is no sum."""
        return max(self.quorum, self.threshold)

    @property
    def losses_if_colluders_answer(self) -> int:
        """Committee members that may be lost while the colluders serve as everybody else."""
        return self.committee - self.needed

    @property
    def losses_if_colluders_refuse(self) -> int:
        """Honest committee members that may be lost while `colluders` members are silent.

        Below zero, so many colluders alone can stop a round, which is all they can do. In a drawn
        committee `colluders` is the bound that holds but for a chance of 2^-104; its expectation
        is far lower.
        """
        return self.committee - self.colluders - self.needed

    @property
    def losses_if_colluders_lie(self) -> int:
        """Committee members that may be lost while `errors` others give wrong answers."""
        return self.committee - max(self.quorum, self.threshold + 2 * self.errors)

    @functools.cached_property
    def coefficients_used(self) -> int:
        """Coefficients that carry values: ceil(dimension / values_per_coefficient)."""
        return -(-self.dimension // self.values_per_coefficient)

    @functools.cached_property
    def polynomials(self) -> int:
        """Ring elements in a ciphertext."""
        return -(-self.coefficients_used // RING_DEGREE)

    @functools.cached_property
    def coefficients(self) -> int:
        """Coefficients in a ciphertext."""
        return self.polynomials * RING_DEGREE

    @functools.cached_property
    def wire_bits(self) -> int:
        """Bits of a rounded coefficient."""
        return self.log_q - self.dropped_bits

    @functools.cached_property
    def planes(self) -> tuple[int, ...]:
        """Bytes of a coefficient's planes on the wire, low first: 4, then 2, 1 or both."""
        return _planes(self.wire_bits)

    @functools.cached_property
    def ciphertext_bytes(self) -> int:
        """Bytes of an encrypted vector."""
        return self.coefficients * sum(self.planes)

    @functools.cached_property
    def share_bytes(self) -> int:
        """Bytes of one committee member's sealed share: values, proof masks, sealing."""
        return 2 * (self.columns + PROOF_COLUMNS) + SEAL_OVERHEAD[self.suite]

    @functools.cached_property
    def proof_bytes(self) -> int:
        """Bytes of the low-degree proof: `PROOF_COLUMNS` polynomials of `threshold` values."""
        return 2 * PROOF_COLUMNS * self.threshold

    @property
    def upload_bytes(self) -> int:
        """Bytes of an upload's ciphertext, shares and proof, without header and signature."""
        return self.ciphertext_bytes + self.committee * self.share_bytes + self.proof_bytes

    @property
    def security(self) -> Estimate:
        """Cost of breaking the masks; see `secure_agg.hardness` for what it leaves out."""
        return mask_security(self.log_q)

    @property
    def security_by_theorem(self) -> Estimate:
        """The same at the smaller deviation for which there is a proof."""
        return mask_security_by_theorem(self.log_q)

    def noise_sigma(self, count: int) -> float:
        """Return the standard deviation of the noise in a sum of ``count`` ciphertexts.

        Each brings a Gaussian error of variance sigma^2 and a rounding error that is uniform over
        ``2^dropped_bits`` consecutive integers, of variance below ``4^dropped_bits / 12``.
        """
        return math.sqrt(count * _noise_variance(self.dropped_bits))

    def noise_limit(self, count: int) -> float:
        """Return Z standard deviations of the noise in a sum of ``count`` ciphertexts.

        A centred discrete Gaussian over the integers is sub-Gaussian with its own parameter
        (Micciancio and Peikert 2012, lemma 2.8), and so is a symmetric uniform distribution
        with its own variance. So a coefficient exceeds the limit with chance at most
        ``2 exp(-Z^2 / 2) = 2^-64``, and about 2^-68.7 by the Gaussian tail itself.
        """
        return MARGIN * self.noise_sigma(count)

    def encode(self) -> bytes:
        """Return the canonical bytes that every member binds its session to."""
        return _WIRE.pack(*(getattr(self, field.name) for field in dataclasses.fields(self)))

    @staticmethod
    def decode(data: bytes) -> SecAggParams:
        """Read what `encode` wrote.

        Raises:
            ParameterError: On a wrong length or values that are unsafe.
        """
        if len(data) != _WIRE.size:
            raise ParameterError(f"parameters take {_WIRE.size} bytes, got {len(data)}")
        names = (field.name for field in dataclasses.fields(SecAggParams))
        return SecAggParams(**dict(zip(names, _WIRE.unpack(data), strict=True)))


@dataclass(frozen=True, kw_only=True)
class _Ring:
    values_per_coefficient: int
    log_q: int
    dropped_bits: int
    scale_bits: int


@functools.lru_cache(maxsize=4_096)
def _ring(n: int, modulus_bits: int) -> _Ring:
    """Return the packing with the least wire bytes a value, then the least modulus."""
    best: tuple[tuple[float, int, int], _Ring] | None = None
    for values in range(1, MAX_LOG_Q // modulus_bits + 1):
        for dropped in range(_MAX_DROPPED_BITS + 1):
            sigma = math.sqrt(n * _noise_variance(dropped))
            # The least scale with Z sigma <= 2^(scale - 1), from the bits of the float and not from
            # a logarithm, whose last bit may differ between the two sides' libraries.
            mantissa, exponent = math.frexp(MARGIN * sigma)
            scale = max(dropped, exponent + (mantissa > 0.5))
            log_q = modulus_bits * values + scale
            if log_q > MAX_LOG_Q:
                continue
            size = sum(_planes(log_q - dropped))
            key = (size / values, log_q, dropped)
            if best is None or key < best[0]:
                best = (
                    key,
                    _Ring(
                        values_per_coefficient=values,
                        log_q=log_q,
                        dropped_bits=dropped,
                        scale_bits=scale,
                    ),
                )
    if best is None:
        raise ParameterError(
            f"modulus_bits={modulus_bits}, n={n}: the sum and its noise do not fit {MAX_LOG_Q} "
            "bits; a smaller modulus or cohort is needed"
        )
    return best[1]


def _noise_variance(dropped_bits: int) -> float:
    return float(SIGMA**2 + (4.0**dropped_bits - 1) / 12)


def _planes(wire_bits: int) -> tuple[int, ...]:
    high = max(0, -(-(wire_bits - 32) // 8))
    return (4, *((2,) if high >= 2 else ()), *((1,) if high % 2 else ()))


@functools.lru_cache(maxsize=65_536)
def _derive(
    n: int,
    corrupt: float,
    dropout: float,
    modulus_bits: int,
    dimension: int,
    colluders: int,
    min_included: int | None,
    suite: int,
    size: int | None,
) -> SecAggParams:
    committee = choose_committee(
        n=n, corrupt=corrupt, dropout=dropout, colluders=colluders, suite=suite, size=size
    )
    bad = cohort_colluders(n=n, corrupt=corrupt, colluders=colluders)
    if min_included is None:
        min_included = max(live_members(n=n, dropout=dropout), bad + 2)
    require_integer("min_included", min_included, bad + 2, n)
    ring = _ring(n, modulus_bits)
    return SecAggParams(
        n=n,
        dimension=dimension,
        modulus_bits=modulus_bits,
        committee=committee.size,
        colluders=committee.colluders,
        quorum=committee.quorum,
        threshold=committee.threshold,
        packing=committee.packing,
        errors=committee.errors,
        min_included=min_included,
        values_per_coefficient=ring.values_per_coefficient,
        log_q=ring.log_q,
        dropped_bits=ring.dropped_bits,
        scale_bits=ring.scale_bits,
        suite=suite,
    )
