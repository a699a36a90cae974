"""The sampler draws what it claims. Statistical tests have a false alarm rate of 1e-7 each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

from fedsys.errors import MechanismError
from fedsys.privacy import AesCtrStream
from fedsys.privacy.noise import MAX_SIGMA, RoundedGaussian, noise_sampler, sampler_distance
from fedsys.privacy.noise import sampler as sampling
from fedsys.privacy.noise.guide import GuidedTable
from fedsys.privacy.noise.inversion import (
    FURTHER_BYTES,
    SETTLED_BITS,
    decided,
    normal_quantile,
    settle,
    tail_quantile,
)
from fedsys.privacy.noise.table import upper_words

FALSE_ALARM = 1e-7
ONE = (1 << 64) - 1


def _stream(number: int) -> AesCtrStream:
    return AesCtrStream(number.to_bytes(32, "big"))


def _p_value(draws: NDArray[np.int64], cdf: Callable[[NDArray[np.float64]], object]) -> float:
    """Of a chi-square test in cells of at least 100 expected draws."""
    least, most = int(draws.min()), int(draws.max())
    edges = np.arange(least, most, max(1, (most - least) // 200_000))
    below = np.asarray(cdf(edges.astype(np.float64)))
    wanted, kept = 0.0, []
    for edge, value in zip(edges, below, strict=True):
        if (value - wanted) * draws.size >= 100 and (1 - value) * draws.size >= 100:
            kept.append(edge)
            wanted = value
    cells = np.bincount(np.searchsorted(kept, draws), minlength=len(kept) + 1)
    at = np.asarray(cdf(np.array(kept, dtype=np.float64)))
    expected = draws.size * np.diff(np.concatenate(([0.0], at, [1.0])))
    return float(stats.chisquare(cells, expected).pvalue)


@pytest.mark.parametrize(
    "sigma", [0.4, 1.0, 3.0, 29.0, 554.0, 2048.0, 2049.0, 20_000.0, 524_288.0, 524_300.0]
)
def test_draws_fit_the_rounded_gaussian(sigma: float) -> None:
    draws = RoundedGaussian(sigma).draw((1_000_000,), _stream(4))
    assert _p_value(draws, lambda k: ndtr((k + 0.5) / sigma)) > FALSE_ALARM


def test_a_wrong_deviation_is_noticed() -> None:
    """The test above can fail: one percent more noise is seen."""
    draws = RoundedGaussian(29.0 * 1.01).draw((1_000_000,), _stream(4))
    assert _p_value(draws, lambda k: ndtr((k + 0.5) / 29.0)) < FALSE_ALARM


def test_small_noise_is_mostly_zero() -> None:
    draws = RoundedGaussian(0.2).draw((1_000_000,), _stream(5))
    tail = float(ndtr(-2.5))
    hits = int((draws != 0).sum())
    assert abs(hits - 2 * tail * draws.size) < 6 * math.sqrt(2 * tail * draws.size)
    assert set(np.unique(draws)) == {-1, 0, 1}


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 2.5, 29.0, 89.46, 1000.0, 7777.7])
def test_the_table_is_the_distribution_function_to_the_last_bit(sigma: float) -> None:
    words = upper_words(sigma)
    assert words[-1] == 0
    assert len(words) > 1
    places = np.unique(np.geomspace(1, len(words), 60).astype(int) - 1)
    with mpmath.workprec(400):
        for k in places:
            tail = mpmath.erfc((int(k) + mpmath.mpf(0.5)) / mpmath.mpf(sigma) / mpmath.sqrt(2)) / 2
            assert int(words[k]) == int(mpmath.floor(mpmath.ldexp(tail, 64)))


@pytest.mark.parametrize("sigma", [1.0, 89.46, 2000.0])
def test_every_word_gives_the_number_of_entries_below_it(sigma: float) -> None:
    """Around each entry of the table: guide, search and doubt agree with plain counting."""
    table = GuidedTable.rounded_gaussian(sigma)
    entries = table.entries
    words = np.unique(np.concatenate([entries, entries - np.uint64(1), entries + np.uint64(1)]))
    drawn, doubtful = table.invert(words.copy())
    counted = np.searchsorted(entries, words, side="left") - len(entries) // 2
    np.testing.assert_array_equal(drawn, counted)
    np.testing.assert_array_equal(words[doubtful], np.unique(entries))


def _settled(word: int, sigma: float) -> int:
    """The same draw with further bits of zero, by bisection on the distribution function."""
    with mpmath.workprec(1300):
        uniform = (mpmath.ldexp(word, SETTLED_BITS - 64) + mpmath.mpf(0.5)) / mpmath.ldexp(
            1, SETTLED_BITS
        )
        low, high = -int(60 * sigma + 2), int(60 * sigma + 2)
        while low < high:
            middle = (low + high) // 2
            x = (middle + mpmath.mpf(0.5)) / mpmath.mpf(sigma)
            if uniform < mpmath.ncdf(x):
                high = middle
            else:
                low = middle + 1
        return low


class _Zeros(AesCtrStream):
    def __init__(self) -> None:
        super().__init__(bytes(32))

    def __call__(self, count: int) -> bytes:
        assert count == FURTHER_BYTES
        return bytes(count)


@pytest.mark.parametrize("word", [0, 1, 2, 12_345, 1 << 40, (1 << 63) - 1, 1 << 63, ONE - 7, ONE])
@pytest.mark.parametrize("sigma", [0.4, 3.0, 1632.0, 65_536.0])
def test_further_bits_decide_as_the_distribution_function_does(word: int, sigma: float) -> None:
    assert settle(word, sigma, 0.0, _Zeros()) == _settled(word, sigma)


def test_a_word_on_a_boundary_reads_further_bits() -> None:
    """Both outcomes of the word that holds P[R <= 0] occur, as the further bits fall."""
    sampler = RoundedGaussian(50.0)
    entries = GuidedTable.rounded_gaussian(50.0).entries
    word = int(entries[len(entries) // 2])

    class Fixed(AesCtrStream):
        def __init__(self, further: bytes) -> None:
            super().__init__(bytes(32))
            self._further = further

        def fill(self, out: NDArray[Any]) -> None:
            out[:] = word >> 48 if out.dtype == np.dtype("<u2") else (word & ((1 << 48) - 1)) << 16

        def __call__(self, count: int) -> bytes:
            return self._further

    low, high = (
        int(sampler.draw((1,), Fixed(further))[0])
        for further in (bytes(FURTHER_BYTES), b"\xff" * FURTHER_BYTES)
    )
    assert (low, high) == (0, 1)


@pytest.mark.parametrize("sigma", [2.0, 700.0, 40_000.0])
def test_rows_depend_on_their_own_stream_alone(sigma: float) -> None:
    sampler = noise_sampler(sigma)
    for width in (7, 650, 40_000):
        together = sampler.draw_rows([_stream(k) for k in range(5)], width)
        for k in range(5):
            np.testing.assert_array_equal(together[k], sampler.draw((width,), _stream(k)))


@pytest.mark.parametrize("sigma", [12.0, 700.0, 40_000.0, 1e6])
@pytest.mark.parametrize("width", [9, 140_000])
def test_adding_is_drawing(sigma: float, width: int) -> None:
    """Sums over streams, in place and block by block, equal sums of rows; so do rows in a ring."""
    sampler, total = noise_sampler(sigma), np.arange(width)
    rows = sampler.draw_rows([_stream(k) for k in range(5)], width)
    sampler.add_sum(total, [_stream(k) for k in range(5)])
    np.testing.assert_array_equal(total, np.arange(width) + rows.sum(axis=0))
    values = np.ones((5, width), dtype=np.uint16)
    sampler.add_rows(values, [_stream(k) for k in range(5)])
    np.testing.assert_array_equal(values, (rows + 1).astype(np.uint16))


def test_a_sum_of_many_draws_does_not_overflow() -> None:
    """2^31 / 40 sigma draws fit into an int32; here there are ten times as many."""
    sampler, total = noise_sampler(500_000.0), np.zeros(3, dtype=np.int64)
    sampler.add_sum(total, [_stream(1)] * 1000)
    rows = sampler.draw_rows([_stream(1)] * 1000, 3)
    np.testing.assert_array_equal(total, rows.sum(axis=0))
    sampler._summable = 7
    again = np.zeros(3, dtype=np.int64)
    sampler.add_sum(again, [_stream(1)] * 1000)
    np.testing.assert_array_equal(again, total)


@pytest.mark.parametrize("sigma", [0.7, 140.0, 1632.0])
def test_table_and_quantile_are_one_function(sigma: float) -> None:
    """The two ways of inverting give the same integers from the same words."""
    words = _stream(11).words(200_000)
    found, doubtful = GuidedTable.rounded_gaussian(sigma).invert(words)
    assert not doubtful.size
    by_quantile = RoundedGaussian(sigma)._by_quantile(words, [_stream(0)], words.size, None)
    np.testing.assert_array_equal(found, by_quantile)


@pytest.mark.parametrize("sigma", [30.0, 1632.0])
def test_a_draw_reads_its_word_in_two_parts(sigma: float) -> None:
    """16 bits for all of a row first, then the rest of the words that those do not decide."""
    stream, drawn = _stream(12), noise_sampler(sigma).draw((40_000,), _stream(12))
    leading = np.frombuffer(stream(80_000), dtype="<u2").astype(np.uint64)
    first = GuidedTable.rounded_gaussian(sigma).invert(leading << np.uint64(48))[0]
    last = GuidedTable.rounded_gaussian(sigma).invert(
        (leading << np.uint64(48)) + np.uint64((1 << 48) - 1)
    )[0]
    np.testing.assert_array_equal(drawn[first == last], first[first == last])
    open_ = np.flatnonzero(first != last)
    further = stream.words(open_.size) >> np.uint64(16)
    words = (leading[open_] << np.uint64(48)) | further
    np.testing.assert_array_equal(
        drawn[open_], GuidedTable.rounded_gaussian(sigma).invert(words)[0]
    )


def test_a_shift_is_added_before_rounding() -> None:
    sigma = 2.0
    shift = np.full(500_000, 0.25)
    draws = RoundedGaussian(sigma).draw(shift.shape, _stream(5), shift)
    assert _p_value(draws, lambda k: ndtr((k + 0.5 - 0.25) / sigma)) > FALSE_ALARM


def test_doubtful_draws_are_decided_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a sigma of 2^36 floating point cannot round; the words decide all the same."""
    doubtful, sigma = [], float(1 << 36)

    def count(word: int, sigma: float, shift: float) -> int | None:
        doubtful.append(word)
        return decided(word, sigma, shift)

    monkeypatch.setattr(sampling, "decided", count)
    draws = RoundedGaussian(sigma).draw((300,), _stream(8))
    words = _stream(8).words(300).tolist()
    assert doubtful
    assert set(doubtful) < set(words)
    assert draws.tolist() == [settle(word, sigma, 0.0, _Zeros()) for word in words]


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_a_word_decides_unless_it_holds_a_boundary(shift: float) -> None:
    sigma = 12.5
    with mpmath.workprec(300):
        below = mpmath.ncdf((mpmath.mpf(3) + mpmath.mpf(0.5) - shift) / sigma)
        word = int(mpmath.floor(mpmath.ldexp(below, 64)))
    assert [decided(word + more, sigma, shift) for more in (-1, 0, 1)] == [3, None, 4]
    assert decided(0, sigma, shift) is None
    assert decided(ONE, sigma, shift) is None


@pytest.mark.parametrize("tail", ["0.49", "0.3", "1e-5", "1e-30", "1e-75", "1e-320"])
def test_tail_quantile_in_high_precision(tail: str) -> None:
    with mpmath.workprec(1200):
        wanted = mpmath.mpf(tail)
        back = mpmath.erfc(tail_quantile(wanted) / mpmath.sqrt(2)) / 2
        assert abs(back / wanted - 1) < mpmath.ldexp(1, -1100)


def test_the_quantile_is_as_accurate_as_the_sampler_assumes() -> None:
    points = np.concatenate([np.logspace(-300, -0.31, 4000), np.linspace(0.01, 0.5, 4000)])
    scipys = -ndtri(points)
    np.testing.assert_allclose(normal_quantile(points), scipys, rtol=1e-14, atol=1e-15)
    with mpmath.workprec(200):
        for point in points[::400]:
            exact = tail_quantile(mpmath.mpf(float(point)))
            found = float(normal_quantile(np.array([point]))[0])
            assert abs(mpmath.mpf(found) - exact) <= abs(exact) * mpmath.mpf("1e-14") + 1e-15


def test_the_distance_covers_every_boundary() -> None:
    assert sampler_distance(1.0) <= 2.0**-1000
    assert sampler_distance(MAX_SIGMA) <= 2.0**-970
    assert RoundedGaussian(3.0).total_variation == sampler_distance(3.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, MAX_SIGMA * 2])
def test_impossible_noise_is_refused(bad: float) -> None:
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
