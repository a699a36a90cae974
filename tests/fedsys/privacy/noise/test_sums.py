"""Sums of rounded Gaussians: tau, the privacy profile, and the law of a release."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr

from fedsys.privacy import AesCtrStream, Mechanism, build_mechanism
from fedsys.privacy.accounting.exact_gaussian import gaussian_delta
from fedsys.privacy.noise import rounding_distance
from fedsys.privacy.noise.distance import _cell_by_cell, _closed_form, _runs

FALSE_ALARM = 1e-7
Law = NDArray[np.float64]


def _stream(number: int) -> AesCtrStream:
    return AesCtrStream(number.to_bytes(32, "big"))


# -- tau ------------------------------------------------------------------------------------------


def _difference(sigma: float, terms: int) -> list[mpmath.mpf]:
    """Fourier coefficients (0..M) of the sum's law less the post-processed Gaussian's, exactly
    by definition: products and sums of the folded series, at 80 digits."""
    s, points = mpmath.mpf(sigma), 2 * int(14 * sigma * math.sqrt(terms) + terms + 6) + 1

    def h(w: mpmath.mpf) -> mpmath.mpf:
        sinc = mpmath.sin(w / 2) / (w / 2) if w else mpmath.mpf(1)
        return mpmath.exp(-s * s * w * w / 2) * sinc

    found = []
    for j in range(points // 2 + 1):
        t = 2 * mpmath.pi * j / points
        folds = [h(t + 2 * mpmath.pi * m) for m in range(-9, 10)]
        found.append(mpmath.fsum(folds) ** terms - mpmath.fsum(f**terms for f in folds))
    return found


@lru_cache(maxsize=32)
def _true_distance(sigma: float, terms: int) -> float:
    """Total variation by inverting the series, scaled so that float64 holds it."""
    with mpmath.workdps(80):
        half = _difference(sigma, terms)
        peak = max(abs(value) for value in half)
        scaled = np.array([float(value / peak) for value in half])
        law = np.fft.irfft(scaled, 2 * len(half) - 1)
        return float(peak) * float(np.abs(law).sum()) / 2


CASES = [
    *itertools.product((0.5, 1.0, 1.5, 2.0), (2, 3, 10, 50)),
    (3.0, 2),
    (3.0, 5),
]


@pytest.mark.parametrize(("sigma", "terms"), CASES)
def test_tau_is_a_bound_and_no_wild_one(sigma: float, terms: int) -> None:
    exact = _true_distance(sigma, terms)
    stated = rounding_distance(sigma, terms, terms)
    assert exact <= stated
    cells = _cells(sigma, terms, terms)
    assert exact <= cells <= 20 * exact


def test_tau_against_convolution() -> None:
    """The definition itself: laws on the integers, convolved and compared term by term."""
    sigma, terms = 1.0, 3
    with mpmath.workdps(50):
        s = mpmath.mpf(sigma)
        one = [mpmath.ncdf((k + 0.5) / s) - mpmath.ncdf((k - 0.5) / s) for k in range(-16, 17)]
        law = [mpmath.mpf(1)]
        for _ in range(terms):
            law = [
                mpmath.fsum(law[i] * one[k - i] for i in range(len(law)) if 0 <= k - i < len(one))
                for k in range(len(law) + len(one) - 1)
            ]
        middle = len(law) // 2

        def density(k: int) -> mpmath.mpf:
            """G + U + one more uniform, at k: the third difference of the third integral of Phi."""
            width = s * mpmath.sqrt(terms)

            def third(x: mpmath.mpf) -> mpmath.mpf:
                y = x / width
                phi, Phi = mpmath.npdf(y), mpmath.ncdf(y)
                return width**2 * ((y * y + 1) * Phi + y * phi) / 2

            return mpmath.fsum(
                (-1) ** j * mpmath.binomial(terms, j) * third(k + mpmath.mpf(terms) / 2 - j)
                for j in range(terms + 1)
            )

        exact = mpmath.fsum(abs(law[middle + k] - density(k)) for k in range(-16, 17)) / 2
    assert float(exact) == pytest.approx(_true_distance(sigma, terms), rel=1e-6)
    assert float(exact) <= rounding_distance(sigma, terms, terms)


def _cells(sigma: float, first: int, last: int) -> float:
    return float(_cell_by_cell(sigma, np.array([float(first)]), np.array([float(last)]))[0])


@pytest.mark.parametrize("fewest", [2, 4000, 10**6])
@pytest.mark.parametrize("further", [0, 4095, 4096, 4200, 10**5, 1 << 28])
def test_few_runs_hold_every_number_of_terms(fewest: int, further: int) -> None:
    runs = _runs(fewest, fewest + further)
    assert runs[0][0] == fewest
    assert runs[-1][1] == fewest + further
    assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(runs))
    assert len(runs) < 5000


def test_a_run_of_numbers_of_terms_has_a_bound_for_each() -> None:
    for sigma in (0.3, 1.0, 2.2):
        for first, last in ((64, 65), (4098, 4162), (10**5, 10**5 + 1562)):
            whole = _cells(sigma, first, last)
            each = [_cells(sigma, n, n) for n in np.linspace(first, last, 6).astype(int)]
            assert max(each) <= whole <= 1.1 * max(each)


def test_tau_holds_for_every_subset() -> None:
    for sigma in (0.8, 1.7, 2.5):
        for fewest, most in ((2, 30), (7, 9), (20, 120)):
            whole = rounding_distance(sigma, fewest, most)
            for terms in range(fewest, most + 1, 5):
                assert rounding_distance(sigma, terms, terms) <= whole * (1 + 1e-9)
    assert rounding_distance(0.01, 1, 1) == 0.0
    assert rounding_distance(5.0, 1, 1) == 0.0
    assert 0 < rounding_distance(500.0, 2, 90) <= 1e-299


def test_the_closed_form_covers_the_cells() -> None:
    for sigma in (2.0, 2.3, 3.1, 4.0):
        for terms in (2, 3, 8, 40, 200):
            cells = _cells(sigma, terms, terms)
            assert _closed_form(sigma, terms, terms) >= min(cells, 1e-290)


# -- the privacy profile --------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _summed(sigma: float, terms: int) -> tuple[mpmath.mpf, ...]:
    """The exact law of the sum of rounded Gaussians, around its middle."""
    with mpmath.workdps(40):
        reach = int(12 * sigma) + 2
        s = mpmath.mpf(sigma)
        one = [
            mpmath.ncdf((k + mpmath.mpf(0.5)) / s) - mpmath.ncdf((k - mpmath.mpf(0.5)) / s)
            for k in range(-reach, reach + 1)
        ]
        scale = mpmath.mpf(2) ** 120
        integers = [int(value * scale) for value in one]
        width = 120 * terms + 64
        packed = sum(value << (width * k) for k, value in enumerate(integers))
        power = packed**terms
        mask = (1 << width) - 1
        return tuple(
            mpmath.mpf(power >> (width * k) & mask) / scale**terms
            for k in range(2 * reach * terms + 1)
        )


@pytest.mark.parametrize(("sigma", "terms"), [(1.5, 5), (2.0, 10), (1.5, 20), (3.0, 8), (1.2, 50)])
def test_the_exact_profile_is_at_or_below_the_gaussians(sigma: float, terms: int) -> None:
    """One coordinate, every shift of an integer: delta(eps) of the sum against Balle and Wang."""
    law = _summed(sigma, terms)
    tau = rounding_distance(sigma, terms, terms)
    with mpmath.workdps(40):
        for shift in (1, 2, 5):
            multiplier = sigma * math.sqrt(terms) / shift
            for epsilon in (0.1, 0.5, 1.0, 2.0, 4.0):
                grown = mpmath.exp(epsilon)
                exact = mpmath.fsum(
                    max(law[k] - grown * law[k + shift], 0) for k in range(len(law) - shift)
                ) + mpmath.fsum(law[-shift:])
                assert float(exact) <= gaussian_delta(epsilon, multiplier) + tau


def test_the_profile_is_met_up_to_the_rounding() -> None:
    """The comparison above is no vacuous one: the exact figure is near the Gaussian's."""
    law = _summed(3.0, 8)
    with mpmath.workdps(40):
        exact = mpmath.fsum(max(law[k] - mpmath.e * law[k + 5], 0) for k in range(len(law) - 5))
    assert float(exact) > 0.8 * gaussian_delta(1.0, 3.0 * math.sqrt(8) / 5)


# -- the law of a release -------------------------------------------------------------------------

CAP = 12


def _mechanism(name: str, **changes: object) -> Mechanism:
    parameters: dict[str, object] = {
        "dimension": 4000,
        "clip": 1.0,
        "noise_multiplier": 0.0005,
        "expected_cohort": 8.0,
        "population": 80,
        "cap": CAP,
        "min_survivors": 1,
        "modulus_bits": 32,
    }
    return build_mechanism(name, **parameters | changes)  # type: ignore[arg-type]


def _release(mechanism: Mechanism, survivors: int, number: int) -> NDArray[np.int64]:
    """All noise in a release of nobody's updates."""
    streams = [_stream(1000 * number + k) for k in range(survivors)]
    shares = mechanism.noise_shares(survivors, streams)
    noise: NDArray[np.int64] = shares.sum(axis=0)
    noise += mechanism.top_up(survivors, _stream(5000 + number))
    return noise


def test_a_release_holds_as_many_rounded_terms_whoever_took_part() -> None:
    """At a deviation of half an integer rounding is most of the noise: its variance n_cap times
    that of one term, and its whole law, must not depend on the number of survivors."""
    mechanism = _mechanism("distributed-gaussian")
    sigma = math.sqrt(mechanism.event.share_variance)
    assert 0.4 < sigma < 0.7
    one = np.array([float(value) for value in _rounded(sigma)])
    law = one
    for _ in range(CAP - 1):
        law = np.convolve(law, one)
    values = np.arange(len(law)) - len(law) // 2
    variance = float((law * values**2).sum())
    edges = np.unique(np.searchsorted(np.cumsum(law), np.linspace(0.005, 0.995, 33)))
    cells = np.diff(np.concatenate(([0.0], np.cumsum(law)[edges], [1.0])))
    for survivors in (1, 2, 5, 11, CAP):
        drawn = np.concatenate(
            [_release(mechanism, survivors, 40 * survivors + k) for k in range(40)]
        )
        counts = np.bincount(np.searchsorted(values[edges], drawn), minlength=len(cells))
        assert stats.chisquare(counts, drawn.size * cells).pvalue > FALSE_ALARM
        spread = 6 * math.sqrt(2 / drawn.size)  # six standard errors of a variance
        assert float((drawn.astype(float) ** 2).mean()) == pytest.approx(variance, rel=spread)


def _rounded(sigma: float) -> Law:
    k = np.arange(-int(9 * sigma) - 1, int(9 * sigma) + 2)
    return np.asarray(ndtr((k + 0.5) / sigma) - ndtr((k - 0.5) / sigma))


def test_one_share_more_or_less_would_be_noticed() -> None:
    """The test above can fail: the law of n_cap - 1 terms is told from that of n_cap."""
    mechanism = _mechanism("distributed-gaussian")
    one = _rounded(math.sqrt(mechanism.event.share_variance))
    variance = float((one * (np.arange(len(one)) - len(one) // 2) ** 2).sum())
    drawn = np.concatenate(
        [mechanism.noise_shares(CAP - 1, _stream(k)).sum(axis=0) for k in range(40)]
    )
    spread = 6 * math.sqrt(2 / drawn.size)
    assert float((drawn.astype(float) ** 2).mean()) < CAP * variance * (1 - spread)


@pytest.mark.parametrize("name", ["distributed-gaussian", "local-gaussian"])
def test_exactly_the_missing_shares_are_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropouts of any pattern: draws for a release are n_cap a coordinate."""
    mechanism = _mechanism(name, noise_multiplier=1.0, dimension=50)
    drawn = []
    original = AesCtrStream.fill

    def counted(self: AesCtrStream, out: NDArray[Any]) -> None:
        drawn.append(out.size if out.dtype == np.dtype("<u2") else 0)  # a draw's leading bits
        original(self, out)

    monkeypatch.setattr(AesCtrStream, "fill", counted)
    for survivors in range(1, CAP + 1):
        drawn.clear()
        mechanism.noise_shares(survivors, _stream(survivors))
        mechanism.top_up(survivors, _stream(100 + survivors))
        assert sum(drawn) == CAP * 50


@pytest.mark.parametrize(
    ("name", "changes"),
    [("central-gaussian", {}), ("distributed-gaussian", {"noise": "once"})],
)
def test_one_draw_is_one_term_whoever_took_part(name: str, changes: dict[str, object]) -> None:
    mechanism = _mechanism(name, noise_multiplier=1.0, **changes)
    terms = mechanism.event.terms("outsider")
    assert terms is not None
    assert (terms.fewest, terms.most) == (1, 1)
    drawn = [mechanism.top_up(survivors, _stream(7)) for survivors in (1, 6, CAP)]
    for other in drawn[1:]:
        np.testing.assert_array_equal(drawn[0], other)
    assert not mechanism.noise_shares(3, _stream(1)).any()
    assert not mechanism.adds_shares
