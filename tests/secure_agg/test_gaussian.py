"""The sampler against exact probabilities."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import chi2

from secure_agg.gaussian import TAIL, Keystream, Sampler, thresholds
from secure_agg.hardness import SIGMA

FALSE_ALARM = 1e-6
"""Chance that a correct sampler fails a statistical test, had its key been drawn afresh."""


def probabilities() -> list[float]:
    """The discrete Gaussian's exact probabilities of -60 to 60."""
    with mpmath.workprec(200):
        weights = [mpmath.exp(-mpmath.mpf(v * v) / (2 * SIGMA**2)) for v in range(-TAIL, TAIL + 1)]
        total = mpmath.fsum(weights)
        return [float(w / total) for w in weights]


def test_thresholds_are_the_cumulative_distribution() -> None:
    with mpmath.workprec(200):
        weights = [mpmath.exp(-mpmath.mpf(v * v) / (2 * SIGMA**2)) for v in range(-TAIL, TAIL + 1)]
        total = mpmath.fsum(weights)
        below = mpmath.mpf(0)
        for threshold, weight in zip(thresholds(), weights, strict=False):
            below += weight
            assert threshold == int(mpmath.floor(below / total * 2**80))
    assert len(thresholds()) == 2 * TAIL
    assert list(thresholds()) == sorted(thresholds())


def test_the_distance_from_the_ideal() -> None:
    """What the module's docstring promises, from the integers that are used."""
    cut = [0, *thresholds(), 1 << 80]
    with mpmath.workprec(200):
        weights = [mpmath.exp(-mpmath.mpf(v * v) / (2 * SIGMA**2)) for v in range(-TAIL, TAIL + 1)]
        total = mpmath.fsum(weights)
        used = [mpmath.mpf(b - a) / 2**80 for a, b in itertools.pairwise(cut)]
        distance = mpmath.fsum(abs(u - w / total) for u, w in zip(used, weights, strict=True)) / 2
        assert distance < mpmath.mpf(2) ** -73
        tail = mpmath.erfc((TAIL + mpmath.mpf("0.5")) / (SIGMA * mpmath.sqrt(2)))
        assert tail < mpmath.mpf(2) ** -128


class _Given(Sampler):
    """A sampler whose uniform bits are given."""

    __slots__ = ("_bits",)

    def __init__(self, bits: list[int]) -> None:
        self._coarse = _Stream(b"".join((b >> 64).to_bytes(2, "little") for b in bits))  # type: ignore[assignment]
        self._bits = bits
        self._fine = self  # type: ignore[assignment]

    def read(self, count: int) -> bytes:
        """Give the low bits of those that ask for them."""
        edges = {t >> 64 for t in thresholds()}
        asked = [b for b in self._bits if b >> 64 in edges]
        assert count == 8 * len(asked)
        return b"".join((b & (2**64 - 1)).to_bytes(8, "little") for b in asked)


class _Stream:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, count: int) -> bytes:
        """Give everything."""
        assert count == len(self._data)
        return self._data

    def fill(self, buffer: memoryview, count: int) -> None:
        """Write everything."""
        buffer[:count] = self.read(count)


def expected(bits: int) -> int:
    return sum(bits >= t for t in thresholds()) - TAIL


def test_every_threshold_is_where_it_should_be() -> None:
    """A sample's 80 bits just below and at each threshold, and at the ends."""
    bits = [0, (1 << 80) - 1]
    for t in thresholds():
        bits += [b for b in (t - 1, t) if 0 <= b < 1 << 80]
    assert _Given(bits).sample(len(bits)).tolist() == [expected(b) for b in bits]


def test_every_interval_of_sixteen_bits() -> None:
    low = [u << 64 for u in range(1 << 16)]
    high = [(u << 64) + 2**64 - 1 for u in range(1 << 16)]
    for bits in (low, high):
        assert _Given(bits).sample(len(bits)).tolist() == [
            b - TAIL for b in np.searchsorted(_floats(), _floats(bits), side="right").tolist()
        ]


def _floats(bits: list[int] | None = None) -> npt.NDArray[np.object_]:
    """Thresholds or given bits as exact pairs that sort as the integers do."""
    values = list(thresholds()) if bits is None else bits
    out = np.empty(len(values), object)
    out[:] = values
    return out


def test_frequencies() -> None:
    """Chi-square over four million samples."""
    count = 1 << 22
    samples = Sampler(b"frequencies".ljust(32)).sample(count)
    seen = np.bincount(samples.astype(np.int64) + TAIL, minlength=2 * TAIL + 1)
    expected_counts = count * np.array(probabilities())
    core = expected_counts >= 20
    observed = np.append(seen[core], seen[~core].sum())
    wanted = np.append(expected_counts[core], expected_counts[~core].sum())
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    assert core.sum() > 30
    assert statistic < chi2.isf(FALSE_ALARM, len(observed) - 1)


def test_neighbours_are_independent() -> None:
    """Chi-square of pairs of signs and magnitudes against their product distribution."""
    samples = Sampler(b"neighbours".ljust(32)).sample(1 << 21).astype(np.int64)
    classes = np.clip(samples, -8, 8) + 8
    joint = np.bincount(classes[0::2] * 17 + classes[1::2], minlength=289).astype(float)
    p = np.array(probabilities())
    marginal = np.array([p[: TAIL - 7].sum(), *p[TAIL - 7 : TAIL + 8], p[TAIL + 8 :].sum()], float)
    wanted = np.outer(marginal, marginal).ravel() * (len(samples) // 2)
    statistic = float(((joint - wanted) ** 2 / wanted).sum())
    assert wanted.min() > 20
    assert statistic < chi2.isf(FALSE_ALARM, 288)


def test_moments() -> None:
    samples = Sampler(b"moments".ljust(32)).sample(1 << 20).astype(float)
    five_sigma = 5.0 / math.sqrt(len(samples))  # false alarm 6e-7
    assert abs(samples.mean()) < SIGMA * five_sigma
    assert abs(samples.var() / SIGMA**2 - 1) < math.sqrt(2) * five_sigma


def test_how_samples_are_read_does_not_matter() -> None:
    key = b"reading".ljust(32)
    whole = Sampler(key).sample(50_000)
    parts = Sampler(key)
    joined = np.concatenate([parts.sample(n) for n in (1, 2047, 20_000, 27_952)])
    assert (whole == joined).all()
    assert not (whole == Sampler(b"another".ljust(32)).sample(50_000)).all()


def test_samples_are_a_function_of_two_keystreams() -> None:
    """Sixteen bits from the start of the stream; 64 more from block 2^64 where those are open."""
    key, count = b"function".ljust(32), 40_000
    coarse = np.frombuffer(Keystream(key).read(2 * count), "<u2").tolist()
    edges = {t >> 64 for t in thresholds()}
    asked = sum(u in edges for u in coarse)
    fine = iter(np.frombuffer(Keystream(key, 1 << 64).read(8 * asked), "<u8").tolist())
    bits = [(u << 64) + (next(fine) if u in edges else 0) for u in coarse]
    assert asked > 20
    assert Sampler(key).sample(count).tolist() == [expected(b) for b in bits]


def test_keystream() -> None:
    """AES-256 in counter mode: NIST SP 800-38A, F.5.5, and any way of reading it."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    block = int.from_bytes(bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"), "big")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    cipher = bytes.fromhex("601ec313775789a5b7a7f504bbf3d228")
    stream = Keystream(key, block).read(16)
    assert bytes(a ^ b for a, b in zip(stream, plain, strict=True)) == cipher
    whole = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(600_000))
    parts = Keystream(key)
    buffer = bytearray(300_016)
    parts.fill(memoryview(buffer), 1000)
    first = bytes(buffer[:1000])
    second = parts.read(299_000)
    parts.fill(memoryview(buffer), 300_000)
    assert first + second + bytes(buffer[:300_000]) == whole
    assert Keystream(key, 3).read(16) == whole[48:64]


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_has_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match=r"[kK]ey"):
        Sampler(bytes(size))
