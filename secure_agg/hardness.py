"""What the masks cost to break: our own estimate of the primal attack on RLWE.

The masks of `secure_agg.masking` hide under ring learning with errors (RLWE) of degree 2048
modulo a power of two. The best known attacks ignore the ring and solve a unique shortest vector
problem with the block-wise lattice reduction BKZ. This module estimates the block size beta that
the primal attack needs, in the model that Alkim, Ducas, Pöppelmann and Schwabe ("Post-quantum key
exchange - a new hope", USENIX Security 2016, section 6.3) introduced and Albrecht, Göpfert, Virdia
and Wunderer (ASIACRYPT 2017) confirmed by experiment. For a lattice of dimension
``d = dimension + samples + 1`` that embeds the error with the secret scaled to its size, BKZ-beta
finds the vector when

    sqrt(beta) sigma_error <= delta(beta)^(2 beta - d - 1) volume^(1/d),
    volume = q^samples (sigma_error / sigma_secret)^dimension,

where ``delta(beta) = ((pi beta)^(1/beta) beta / (2 pi e))^(1 / (2 (beta - 1)))`` (Chen 2013). The
attacker takes the number of samples that suits it best.

Costs of beta, as log2 of operations:

- `Estimate.core_svp`: ``0.292 beta``, one call of a sieve (Becker, Ducas, Gama and Laarhoven 2016).
- `Estimate.classical`: ``0.292 beta + 16.4 + log2(8 d)``, and
- `Estimate.quantum`: ``0.265 beta + 16.4 + log2(8 d)``: the models that the Homomorphic Encryption
  Standard (Albrecht et al. 2018) tabulates.

The deviation. A dealer's secret and error have sigma = 4.5. The round reveals their sums, which for
two honest dealers is a hint ``s + s'`` on each secret. Given it, a Gaussian secret has deviation
``sigma / sqrt(2) = 3.18``, which is what an attacker has to find and what `mask_security` assumes.
A theorem promises less: Hint-MLWE with hints ``H_i r + y_i`` is as hard as MLWE with

    1 / sigma_0^2 = 2 (1 / sigma^2 + sum of B_i / sigma_i^2),    sigma_0 >= sqrt(2) eta_epsilon,

up to an advantage proportional to epsilon (Kim, Lee, Seo and Song, CRYPTO 2023, theorem 1; also for
rings and with a loss of 2 epsilon in Espitau, Niot and Prest, CRYPTO 2024). With a hint, ``H = 1``
and ``sigma_1 = sigma``, sigma_0 is ``sigma / 2 = 2.25``; in dimension 2^20 the condition holds with
epsilon = 2^-51. `mask_security_by_theorem` is the estimate at 2.25, lower by three or four bits.

What is ours and what is owed. The formulas are the literature's; the implementation is ours, and
reproduces the block sizes published for Kyber-512 and Kyber-768 (406 and 624). The estimate says
nothing of dual and hybrid attacks, which may be cheaper by some bits, nor of what ring structure
may give an attacker. An estimate by the lattice estimator including dual-hybrid attacks, and an
outside review, are owed.

>>> mask_security(44).core_svp
139.9
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

__all__ = [
    "RING_DEGREE",
    "SIGMA",
    "Estimate",
    "mask_security",
    "mask_security_by_theorem",
    "primal_usvp",
]

RING_DEGREE: Final = 2048
"""Coefficients of a ring element, N."""
SIGMA: Final = 4.5
"""Standard deviation of a secret's and of an error's coefficients."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cheapest primal attack found.

    Attributes:
        beta: BKZ block size.
        dimension: Dimension d of the lattice that the attack reduces.
    """

    beta: int
    dimension: int

    @property
    def core_svp(self) -> float:
        """Bits of one sieve in dimension beta, to a tenth."""
        return round(0.292 * self.beta, 1)

    @property
    def classical(self) -> float:
        """Bits of the whole attack on a classical machine, to a tenth."""
        return round(0.292 * self.beta + 16.4 + math.log2(8 * self.dimension), 1)

    @property
    def quantum(self) -> float:
        """Bits of the whole attack with a quantum sieve, to a tenth."""
        return round(0.265 * self.beta + 16.4 + math.log2(8 * self.dimension), 1)


@functools.cache
def mask_security(log_q: int) -> Estimate:
    """Return the estimate for masks modulo ``2^log_q``, at the deviation that a hint leaves."""
    return _ring_security(log_q, SIGMA / math.sqrt(2))


@functools.cache
def mask_security_by_theorem(log_q: int) -> Estimate:
    """Return the estimate for masks modulo ``2^log_q``, at the deviation of the theorem."""
    return _ring_security(log_q, SIGMA / 2)


def _ring_security(log_q: int, sigma: float) -> Estimate:
    return primal_usvp(
        dimension=RING_DEGREE,
        log_q=log_q,
        sigma_secret=sigma,
        sigma_error=sigma,
        max_samples=4 * RING_DEGREE,
    )


def primal_usvp(
    *, dimension: int, log_q: float, sigma_secret: float, sigma_error: float, max_samples: int
) -> Estimate:
    """Return the least block size that solves LWE as a unique shortest vector problem.

    Args:
        dimension: Length of the secret.
        log_q: log2 of the modulus.
        sigma_secret: Standard deviation of the secret's entries.
        sigma_error: Standard deviation of the errors.
        max_samples: Samples that the attacker may use; steps of half a percent are tried.

    Raises:
        ValueError: No block size up to three times the dimension succeeds.
    """
    step = max(1, dimension // 200)
    volume_bits = dimension * math.log2(sigma_error / sigma_secret)

    def lattice(beta: int) -> int | None:
        """Return the least lattice dimension in which BKZ-beta succeeds."""
        log_delta = math.log2(_root_hermite_factor(beta))
        log_target = math.log2(math.sqrt(beta) * sigma_error)
        for samples in range(dimension // 2, max_samples, step):
            d = dimension + samples + 1
            if beta <= d and log_target <= (2 * beta - d - 1) * log_delta + (
                (samples * log_q + volume_bits) / d
            ):
                return d
        return None

    low, high = 50, 3 * dimension
    while low < high:
        middle = (low + high) // 2
        if lattice(middle) is None:
            low = middle + 1
        else:
            high = middle
    found = lattice(low)
    if found is None:
        raise ValueError(
            f"dimension={dimension}, log_q={log_q}: no block size up to {3 * dimension} succeeds"
        )
    return Estimate(beta=low, dimension=found)


def _root_hermite_factor(beta: int) -> float:
    return float(
        ((beta / (2 * math.pi * math.e)) * (math.pi * beta) ** (1 / beta)) ** (1 / (2 * (beta - 1)))
    )
