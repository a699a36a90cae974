"""Noise for the sum of many terms has the law of round(G + U), and its tables are exact."""

from __future__ import annotations

import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr

from fedsys.privacy import AesCtrStream
from fedsys.privacy.noise import lumps, noise_sampler, rounding_distance, table
from fedsys.privacy.noise import sampler as sampling
from fedsys.privacy.noise.guide import GuidedTable
from fedsys.privacy.noise.inversion import precisely
from fedsys.privacy.noise.lumps import (
    SMALL,
    deviation_of,
    powers,
    settle_small_sum,
    small_sum_words,
)
from fedsys.privacy.noise.table import upper_words


def _stream(number: int) -> AesCtrStream:
    return AesCtrStream(number.to_bytes(32, "big"))


def _law(sigma: float, reach: int) -> NDArray[np.float64]:
    edges = (np.arange(-reach, reach + 2) - 0.5) / sigma
    return np.diff(ndtr(edges))


def test_one_small_term_has_the_samplers_table() -> None:
    words = small_sum_words(1)
    np.testing.assert_array_equal(words, upper_words(SMALL)[: len(words)])


@pytest.mark.parametrize("terms", [2, 8, 64])
def test_a_table_is_the_convolution(terms: int) -> None:
    law = np.array([1.0])
    for _ in range(terms):
        law = np.convolve(law, _law(SMALL, 110))
    above = law[::-1].cumsum()[::-1][len(law) // 2 + 1 :]
    words = small_sum_words(terms).astype(np.float64) * 2.0**-64
    np.testing.assert_allclose(words, above[: len(words)], rtol=1e-9, atol=1e-15)


def test_tables_do_not_depend_on_the_process_s_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some other thread may use mpmath as well, which has one precision for all."""
    gaussian, law = upper_words(20.0), lumps._rounded_gaussian(192)
    monkeypatch.setattr(mpmath.mp, "prec", 53)
    done, interval = Event(), sys.getswitchinterval()

    def meddle() -> None:
        while not done.is_set():
            mpmath.mp.prec = 53
            time.sleep(0)

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(meddle)
            table._coefficients.cache_clear()
            found = upper_words(20.0), lumps._rounded_gaussian(192)
            done.set()
    finally:
        done.set()
        sys.setswitchinterval(interval)
        table._coefficients.cache_clear()
    np.testing.assert_array_equal(found[0], gaussian)
    assert found[1] == law


def test_a_thread_waits_while_another_computes_precisely() -> None:
    """All contexts share what mpmath remembers of constants."""
    law = lumps._rounded_gaussian(192)
    with ThreadPoolExecutor(1) as pool:
        with precisely(53) as here:
            found = pool.submit(lumps._rounded_gaussian, 192)
            with pytest.raises(TimeoutError):
                found.result(timeout=1)
            assert here.prec == 53
        assert found.result() == law


class _Bits(AesCtrStream):
    def __init__(self, octet: bytes) -> None:
        super().__init__(bytes(32))
        self._octet = octet

    def __call__(self, count: int) -> bytes:
        return self._octet * count


@pytest.mark.parametrize("terms", [1, 4])
def test_further_bits_decide_what_a_word_does_not(
    terms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lumps, "FURTHER_BYTES", 20)  # 120 in earnest, which takes seconds
    monkeypatch.setattr(lumps, "SETTLED_BITS", 64 + 8 * 20)
    summed, words = GuidedTable.small_sum(terms), _stream(3).words(40)
    settled = [settle_small_sum(terms, int(word), _stream(4)) for word in words]
    np.testing.assert_array_equal(summed.invert(words)[0], settled)
    edge = int(summed.entries[len(summed.entries) // 2 + 5])  # P[L <= 5]
    ends = [settle_small_sum(terms, edge, _Bits(octet)) for octet in (b"\x00", b"\xff")]
    assert ends == [5, 6]


def test_the_parts_have_the_terms_and_the_variance() -> None:
    for count in (1, 2, 63, 64, 109, 555):
        assert sum(powers(count)) == count
    for terms in (2, 64):
        whole = deviation_of(terms, 1458.4) ** 2 + (terms - 1) * SMALL**2
        assert whole == pytest.approx(terms * 1458.4**2, rel=1e-15)


@pytest.mark.parametrize("sigma", [30.0, 1458.4])
@pytest.mark.parametrize("count", [2, 109])
def test_many_terms_fit_the_law_of_their_sum(
    sigma: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """False alarm rate 1e-7 each; that a wrong variance is noticed is shown at the end."""
    monkeypatch.setattr(sampling, "_MANY", 1)
    total = np.zeros(200_000, dtype=np.int64)
    noise_sampler(sigma).add_many(total, count, _stream(5))
    variance = count * (sigma**2 + 1 / 12)
    for wrong, passes in ((1.0, True), (1.04, False)):
        deviation = math.sqrt(variance * wrong)
        edges = np.floor(stats.norm.ppf(np.linspace(0, 1, 21)[1:-1]) * deviation)
        share = np.diff([0.0, *ndtr((edges + 0.5) / deviation), 1.0])
        cells = np.bincount(np.searchsorted(edges, total), minlength=20)
        assert (stats.chisquare(cells, share * total.size).pvalue > 1e-7) == passes


def test_fewer_draws_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = AesCtrStream.fill

    def counted(self: AesCtrStream, out: NDArray[np.uint16]) -> None:
        drawn.append(out.size if out.dtype == np.dtype("<u2") else 0)
        original(self, out)

    monkeypatch.setattr(AesCtrStream, "fill", counted)
    noise_sampler(1000.0).add_many(np.zeros(1 << 17, dtype=np.int64), 48, _stream(1))
    assert sum(drawn) == (2 * 2 + 4) << 17  # 32 + 16, each on two grids; 46 = 32 + 8 + 4 + 2
    assert noise_sampler(1000.0).draws(48, 1 << 17) == (2 + 4) << 17
    assert noise_sampler(1000.0).draws(48, 100) == 4800  # one by one: they are few


def test_unequal_terms_are_as_close_as_the_proof_says() -> None:
    """(1 + b)^n - 1 with deviations so small that the distance can be seen in float64."""
    small, sigma, terms = 1.1, 1.6, 4
    large = math.sqrt(terms * sigma**2 - (terms - 1) * small**2)
    law = _law(large, 60)
    equal = np.array([1.0])
    for _ in range(terms - 1):
        law = np.convolve(law, _law(small, 60))
    for _ in range(terms):
        equal = np.convolve(equal, _law(sigma, 60))
    distance = 0.5 * np.abs(law - equal).sum()
    b = 2.1 * math.exp(-((small * math.pi) ** 2) / 2)
    width = terms / 2 + 46 * sigma * math.sqrt(terms) + 1
    allowed = (width + 0.5) * ((1 + b) ** terms - 1)
    assert distance <= allowed + rounding_distance(sigma, terms, terms)
