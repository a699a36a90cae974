"""The samplers draw what they claim. Statistical tests have a false alarm rate of 1e-7 each."""

from __future__ import annotations

import math
import os

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

from fedsys.errors import MechanismError
from fedsys.privacy.randomness import AesCtrStream
from fedsys.privacy.samplers import RoundedGaussian, SkellamSampler, skellam_sampler
from fedsys.privacy.samplers.gaussian import _tail_quantile
from fedsys.privacy.samplers.skellam import MAX_VARIANCE, skellam_probabilities

FALSE_ALARM = 1e-7
VARIANCES = [0.3, 1.0, 29.0**2, 554.0**2, 104.25**2]


def _stream(number: int) -> AesCtrStream:
    return AesCtrStream(number.to_bytes(32, "big"))


def _chi_square(draws: NDArray[np.int64], cdf: NDArray[np.float64], edges: list[int]) -> float:
    """p-value of counts in (-inf, e0], (e0, e1], .., (ek, inf) with P[X <= e] = cdf."""
    expected = np.diff(np.concatenate(([0.0], cdf, [1.0]))) * draws.size
    cells = np.searchsorted(np.array(edges), draws, side="left")
    counts = np.bincount(cells, minlength=len(edges) + 1)
    keep = expected > 20
    expected = np.append(expected[keep], expected[~keep].sum())
    counts = np.append(counts[keep], counts[~keep].sum())
    if expected[-1] < 20:
        expected = np.append(expected[:-2], expected[-2:].sum())
        counts = np.append(counts[:-2], counts[-2:].sum())
    return float(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize("variance", [0.37, 4.0, 841.0, 40_000.0])
def test_skellam_table_against_bessel_functions(variance: float) -> None:
    bits = 400
    table = skellam_probabilities(variance, bits)
    with mpmath.workprec(600):
        mu = mpmath.mpf(variance)
        for k in (0, 1, 2, len(table) // 3, len(table) // 2):
            exact = mpmath.exp(-mu) * mpmath.besseli(k, mu)
            assert abs(mpmath.mpf(table[k]) / 2**bits / exact - 1) < mpmath.mpf(2) ** -150
        outside = 1 - mpmath.mpf(2 * sum(table) - table[0]) / 2**bits
        assert outside < mpmath.mpf(2) ** -128


@pytest.mark.parametrize("variance", VARIANCES)
def test_skellam_draws_fit_chi_square(variance: float) -> None:
    draws = skellam_sampler(variance).draw((1_000_000,), _stream(1))
    edges = sorted(
        {round(quantile * math.sqrt(variance)) for quantile in np.linspace(-3.5, 3.5, 60)}
    )
    cdf = stats.skellam.cdf(edges, variance / 2, variance / 2)
    assert _chi_square(draws, cdf, edges) > FALSE_ALARM


@pytest.mark.parametrize("variance", [554.0**2, 2900.0**2])
def test_skellam_draws_fit_kolmogorov(variance: float) -> None:
    """Against the normal limit; a standard deviation this wide is one within 1e-4."""
    draws = skellam_sampler(variance).draw((400_000,), _stream(2))
    ordered = np.sort(draws).astype(np.float64)
    distance = float(
        np.abs(
            ndtr((ordered + 0.5) / math.sqrt(variance))
            - np.searchsorted(ordered, ordered, side="right") / ordered.size
        ).max()
    )
    allowed = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * draws.size))  # Massart's inequality
    assert distance < allowed + 1e-4


def test_a_wrong_variance_would_be_noticed() -> None:
    draws = skellam_sampler(29.0**2).draw((1_000_000,), _stream(3))
    edges = list(range(-90, 91, 3))
    wrong = 1.02 * 29.0**2
    assert _chi_square(draws, stats.skellam.cdf(edges, wrong / 2, wrong / 2), edges) < FALSE_ALARM


def test_every_word_maps_to_the_number_of_entries_below_it() -> None:
    """Exhaustive around the table's entries: guide table, search and settlement agree."""
    for variance in (1.0, 700.0, 900_000.0):
        sampler = SkellamSampler(variance)
        entries = sampler._high
        words = np.unique(np.concatenate([entries, entries - np.uint64(1), entries + np.uint64(1)]))
        got = sampler.invert(words.copy(), [_AllZeros()], words.size) + sampler.half_width
        # second words of zero: an entry with the same upper half is <= u only if its lower is zero
        upper = np.searchsorted(entries, words, side="left")
        for word, count, least in zip(words, got, upper, strict=True):
            expected = int(least)
            last = len(entries) - 1
            while expected < last and entries[expected] == word and sampler._low[expected] == 0:
                expected += 1
            assert count == expected


class _AllZeros(AesCtrStream):
    def __init__(self) -> None:
        super().__init__(bytes(32))

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.zeros(count, dtype=np.uint64)


def test_the_second_word_decides_on_a_boundary() -> None:
    sampler = SkellamSampler(50.0)
    index = sampler.half_width  # the entry of P[X <= 0]
    word = np.array([sampler._high[index]], dtype=np.uint64)

    class Second(AesCtrStream):
        def __init__(self, value: int) -> None:
            super().__init__(bytes(32))
            self._value = value

        def words(self, count: int) -> NDArray[np.uint64]:
            return np.full(count, self._value, dtype=np.uint64)

    low = int(sampler._low[index])
    assert sampler.invert(word.copy(), [Second(low - 1)], 1)[0] == 0
    assert sampler.invert(word.copy(), [Second(low)], 1)[0] == 1


def test_rows_depend_on_their_own_stream_alone() -> None:
    sampler = skellam_sampler(400.0)
    for width in (7, 650, 40_000):
        together = sampler.draw_rows([_stream(k) for k in range(5)], width)
        for k in range(5):
            alone = sampler.draw_rows([_stream(k)], width)
            np.testing.assert_array_equal(together[k], alone[0])


def test_draws_of_one_stream_do_not_repeat() -> None:
    stream = _stream(9)
    sampler = skellam_sampler(1e6)
    assert not np.array_equal(sampler.draw((1000,), stream), sampler.draw((1000,), stream))


@pytest.mark.parametrize("sigma", [0.4, 3.0, 1632.0, 81_000.0])
def test_rounded_gaussian_fits_chi_square(sigma: float) -> None:
    draws = RoundedGaussian(sigma).draw((1_000_000,), _stream(4))
    edges = sorted({round(quantile * sigma) for quantile in np.linspace(-3.5, 3.5, 60)})
    cdf = ndtr((np.array(edges) + 0.5) / sigma)
    assert _chi_square(draws, cdf, edges) > FALSE_ALARM


def test_rounded_gaussian_honours_its_shift() -> None:
    sigma = 2.0
    shift = np.full(500_000, 0.25)
    draws = RoundedGaussian(sigma).draw(shift.shape, _stream(5), shift)
    edges = list(range(-6, 7))
    cdf = ndtr((np.array(edges) + 0.5 - 0.25) / sigma)
    assert _chi_square(draws, cdf, edges) > FALSE_ALARM


def test_high_precision_settles_like_floating_point_where_both_can() -> None:
    """The slow path gives the fast path's integer on draws that are not in doubt."""
    sampler = RoundedGaussian(1632.0)
    words = _stream(6).words(300)
    for word in words:
        negative, magnitude = bool(word >> np.uint64(63)), int(word & np.uint64((1 << 63) - 1))
        fast = -1632.0 * float(ndtri((magnitude + 0.5) * 2.0**-64))
        fast = -fast if negative else fast
        slow = sampler._settle(magnitude, negative, 0.0, _stream(7))
        if abs(abs(fast - round(fast)) - 0.5) > 1e-6:
            assert slow == round(fast)


def test_doubtful_draws_take_the_slow_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a sigma of 2^36 floating point cannot round; every such draw must be settled exactly."""
    sampler = RoundedGaussian(float(1 << 36))
    settled = []
    original = RoundedGaussian._settle

    def count(
        self: RoundedGaussian, word: int, negative: bool, shift: float, stream: AesCtrStream
    ) -> int:
        settled.append(word)
        return original(self, word, negative, shift, stream)

    monkeypatch.setattr(RoundedGaussian, "_settle", count)
    draws = sampler.draw((300,), _stream(8))
    assert len(settled) > 0
    assert np.abs(draws / (1 << 36)).max() < 6


@pytest.mark.parametrize("tail", ["0.49", "0.3", "1e-5", "1e-30", "1e-75"])
def test_tail_quantile_in_high_precision(tail: str) -> None:
    with mpmath.workprec(330):
        wanted = mpmath.mpf(tail)
        back = mpmath.erfc(_tail_quantile(wanted) / mpmath.sqrt(2)) / 2
        assert abs(back / wanted - 1) < mpmath.mpf(2) ** -250


def test_ndtri_is_as_accurate_as_the_sampler_assumes() -> None:
    points = np.concatenate([np.logspace(-12, -0.31, 200), np.linspace(0.3, 0.5, 40)[:-1]])
    with mpmath.workprec(200):
        for point in points:
            exact = -_tail_quantile(mpmath.mpf(float(point)))
            error = abs(mpmath.mpf(float(ndtri(point))) - exact)
            assert error <= abs(exact) * mpmath.mpf("1e-14") + mpmath.mpf("1e-15")


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, MAX_VARIANCE * 2])
def test_impossible_noise_is_refused(bad: float) -> None:
    with pytest.raises(MechanismError, match="variance"):
        SkellamSampler(bad)
    with pytest.raises(MechanismError, match="deviation"):
        RoundedGaussian(bad)


def test_a_stream_shows_and_shares_nothing() -> None:
    stream = AesCtrStream(os.urandom(32))
    assert "secret" in repr(stream)
    with pytest.raises(TypeError):
        stream.__reduce__()
    with pytest.raises(MechanismError, match="32 bytes"):
        AesCtrStream(b"short")


def test_stream_is_aes_256_in_counter_mode() -> None:
    """NIST SP 800-38A has no all-zero vector; AES-256 of zeros under a zero key is well known."""
    stream = AesCtrStream(bytes(32))
    assert stream(16).hex() == "dc95c078a2408989ad48a21492842087"
    whole = AesCtrStream(bytes(32))(1 << 20)
    pieces = AesCtrStream(bytes(32))
    assert b"".join(pieces(n) for n in (1, 15, 16, (1 << 20) - 32)) == whole
