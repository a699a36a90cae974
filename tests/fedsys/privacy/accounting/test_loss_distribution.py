"""Loss distributions have the figures of dp-accounting, whose grid and cuts they share."""

import math
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy.stats import norm

from fedsys.privacy.accounting import loss_distribution
from fedsys.privacy.accounting.loss_distribution import gaussian_losses

CASES = [
    # noise multiplier, rate, rounds, width, delta, relative difference that rounding explains
    (1.0, 0.1, 100, 1e-3, 1e-5, 1e-9),
    (3.942, 0.1, 100, 1e-3, 1e-5, 1e-9),
    (0.3, 0.01, 10, 1e-2, 1e-6, 1e-9),
    (0.05, 0.3, 3, 0.5, 1e-5, 1e-9),
    (0.01, 0.5, 2, 10.0, 1e-5, 1e-9),
    (2.0, 0.99999, 20, 1e-2, 1e-6, 1e-9),
    (1.0, 1.0, 1, 1e-3, 1e-5, 1e-9),
    (0.02, 1.0, 1, 0.5, 1e-5, 1e-9),
    (100.0, 0.3, 5, 1e-3, 1e-5, 1e-9),
    (2.0, 0.00217, 2000, 1e-3, 1e-10, 1e-4),
    (1.2, 1e-6, 100_000, 1e-5, 1e-9, 1e-4),
    (0.7, 0.9, 50, 1e-2, 1e-12, 1e-4),
]


def _theirs(multiplier: float, rate: float, width: float) -> Any:
    return privacy_loss_distribution.from_gaussian_mechanism(
        multiplier,
        value_discretization_interval=width,
        sampling_prob=rate,
        use_connect_dots=True,
    )


@pytest.mark.parametrize(("multiplier", "rate", "rounds", "width", "delta", "close"), CASES)
def test_epsilon_and_delta_are_dp_accountings(
    multiplier: float, rate: float, rounds: int, width: float, delta: float, close: float
) -> None:
    ours = gaussian_losses(multiplier, rate, width).repeat(rounds)
    with np.errstate(over="ignore"):
        theirs = _theirs(multiplier, rate, width).self_compose(rounds)
        expected = float(theirs.get_epsilon_for_delta(delta))
        deltas = [float(theirs.get_delta_for_epsilon(each)) for each in (0.0, 0.3)]
    assert ours.epsilon(delta) == pytest.approx(expected, rel=close)
    found = [ours.delta(each) for each in (0.0, 0.3)]
    assert found == pytest.approx(deltas, rel=max(close, 1e-7), abs=delta * close)


def test_unlike_rounds_compose() -> None:
    ours = gaussian_losses(1.0, 0.1, 1e-3).repeat(50).compose(gaussian_losses(2.0, 1.0, 1e-3))
    theirs = _theirs(1.0, 0.1, 1e-3).self_compose(50).compose(_theirs(2.0, 1.0, 1e-3))
    assert ours.epsilon(1e-5) == pytest.approx(theirs.get_epsilon_for_delta(1e-5), rel=1e-9)


def test_the_noise_is_cut_where_dp_accounting_cuts_it() -> None:
    assert norm.ppf(0.5 * math.exp(-50)) == -loss_distribution._FARTHEST


def test_lengths_of_transforms() -> None:
    smooth = sorted(2**a * 3**b * 5**c for a in range(13) for b in range(9) for c in range(6))
    for least in (1, 2, 7, 11, 97, 1025, 3001):
        assert loss_distribution._fast_length(least) == next(n for n in smooth if n >= least)
