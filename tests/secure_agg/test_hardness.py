"""The estimate against published block sizes, and what it gives for the masks."""

from __future__ import annotations

import math

import pytest

from secure_agg.hardness import mask_security, mask_security_by_theorem, primal_usvp


@pytest.mark.parametrize(
    ("dimension", "sigma", "beta", "core_svp"),
    [(512, math.sqrt(1.5), 406, 118.6), (768, 1.0, 624, 182.2)],
)
def test_kyber(dimension: int, sigma: float, beta: int, core_svp: float) -> None:
    """Kyber-512 and Kyber-768: centred binomial secrets of variance eta/2, as many samples."""
    estimate = primal_usvp(
        dimension=dimension,
        log_q=math.log2(3329),
        sigma_secret=sigma,
        sigma_error=sigma,
        max_samples=dimension,
    )
    assert estimate.beta == beta
    assert estimate.core_svp == core_svp


@pytest.mark.parametrize(
    ("log_q", "bits"),
    [
        (44, (139.9, 171.3, 158.3)),
        (52, (109.5, 140.9, 130.8)),
        (53, (106.6, 138.0, 128.1)),
        (54, (103.7, 135.1, 125.5)),
    ],
)
def test_masks_after_the_hint(log_q: int, bits: tuple[float, float, float]) -> None:
    estimate = mask_security(log_q)
    assert (estimate.core_svp, estimate.classical, estimate.quantum) == bits


def test_the_theorem_costs_a_few_bits() -> None:
    for log_q in (33, 44, 53):
        loss = mask_security(log_q).core_svp - mask_security_by_theorem(log_q).core_svp
        assert 2 < loss < 9
    assert mask_security_by_theorem(53).core_svp == 103.7


def test_a_larger_modulus_is_weaker() -> None:
    betas = [mask_security(log_q).beta for log_q in range(30, 54)]
    assert betas == sorted(betas, reverse=True)


def test_an_instance_without_an_attack_is_refused() -> None:
    with pytest.raises(ValueError, match="no block size"):
        primal_usvp(dimension=64, log_q=2, sigma_secret=9, sigma_error=9, max_samples=65)
