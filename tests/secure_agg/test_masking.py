"""Encrypted sums equal plain ones; what is not an honest sum is refused."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from secure_agg import masking
from secure_agg.errors import InputError, MessageError, ResidualError
from secure_agg.gaussian import Keystream, Sampler
from secure_agg.masking import (
    Accumulator,
    PublicPolynomials,
    encrypt,
    packed_sum,
    sample_secret,
    secret_limit,
    to_ring,
)
from secure_agg.params import SecAggParams
from secure_agg.products import Room

Ints = npt.NDArray[np.int64]


def derive(n: int = 10, bits: int = 20, dimension: int = 1003) -> SecAggParams:
    return SecAggParams.derive(
        n=n, corrupt=0.1, dropout=0.1, modulus_bits=bits, dimension=dimension
    )


def key(name: str, number: int = 0) -> bytes:
    return hashlib.sha256(f"{name} {number}".encode()).digest()


def vector(params: SecAggParams, number: int) -> masking.Unsigned:
    """A vector over the whole ring, in the narrowest type that holds it."""
    raw = Keystream(key("vector", number)).read(8 * params.dimension)
    values = np.frombuffer(raw, "<u8") & np.uint64((1 << params.modulus_bits) - 1)
    bits = params.modulus_bits
    return values.astype(np.uint16 if bits <= 16 else np.uint32 if bits <= 32 else np.uint64)


class Cohort:
    """Dealers with fixed secrets and vectors, and the sum of what they sent."""

    def __init__(self, params: SecAggParams, count: int, *, cached: bool = False) -> None:
        self.params = params
        self.public = PublicPolynomials(key("public"), params, cached=cached)
        self.accumulator = Accumulator(params)
        self.vectors = [vector(params, i) for i in range(count)]
        self.secrets = [sample_secret(key("secret", i)) for i in range(count)]
        for i in range(count):
            self.accumulator.add(self.ciphertext(i))

    def ciphertext(self, i: int) -> bytes:
        return encrypt(self.vectors[i], self.secrets[i], self.public, key("noise", i))

    def secret_sum(self, without: tuple[int, ...] = ()) -> Ints:
        total: Ints = np.sum(
            [s for i, s in enumerate(self.secrets) if i not in without], axis=0, dtype=np.int64
        )
        return total


@pytest.mark.parametrize("dimension", [1, 2, 2047, 2049, 1003, 70_001])
@pytest.mark.parametrize("bits", [2, 8, 16, 20, 24, 32, 40])
def test_sums_equal_plain_packed_sums(bits: int, dimension: int) -> None:
    """Also where digits wrap: the vectors cover the whole ring."""
    params = derive(bits=bits, dimension=dimension)
    cohort = Cohort(params, 7)
    found = cohort.accumulator.open(cohort.public, cohort.secret_sum(), 7)
    assert found.dtype == np.int64
    assert found.min() >= -(1 << (bits - 1))
    assert found.max() < 1 << (bits - 1)
    assert (to_ring(found, params) == packed_sum(cohort.vectors, params)).all()


@pytest.mark.parametrize(("n", "bits"), [(1000, 20), (3000, 20), (10_000, 32), (10_000, 39)])
def test_rings_of_large_cohorts(n: int, bits: int) -> None:
    params = derive(n=n, bits=bits, dimension=5001)
    cohort = Cohort(params, 3)
    found = cohort.accumulator.open(cohort.public, cohort.secret_sum(), 3)
    assert (to_ring(found, params) == packed_sum(cohort.vectors, params)).all()


@pytest.mark.parametrize("bits", [16, 20, 32])
def test_a_whole_cohort_of_a_thousand(bits: int) -> None:
    """As much noise as the parameters allow for, with the mean that rounding adds."""
    params = derive(n=1000, bits=bits, dimension=2048)
    assert params.dropped_bits == 4
    cohort = Cohort(params, 1000, cached=True)
    found = cohort.accumulator.open(cohort.public, cohort.secret_sum(), 1000)
    assert (to_ring(found, params) == packed_sum(cohort.vectors, params)).all()


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
def test_largest_sums_that_fit(bits: int) -> None:
    params = derive(n=10, bits=bits)
    public = PublicPolynomials(key("public"), params)
    accumulator = Accumulator(params)
    most = ((1 << (bits - 1)) - 1) // 10
    sign = 1 - 2 * (np.arange(params.dimension) % 2)
    x = (sign * most).astype(np.uint64) & np.uint64((1 << bits) - 1)
    secrets = [sample_secret(key("secret", i)) for i in range(10)]
    for i, secret in enumerate(secrets):
        accumulator.add(encrypt(x.astype(np.uint32), secret, public, key("noise", i)))
    found = accumulator.open(public, np.sum(secrets, axis=0), 10)
    assert (found == sign * most * 10).all()


def test_a_ciphertext_that_is_taken_out_leaves_no_trace() -> None:
    for bits, n in ((16, 10), (20, 10), (20, 3000), (24, 10)):  # 5, 6, 7 and 4 bytes
        params = derive(n=n, bits=bits, dimension=40_000)
        cohort = Cohort(params, 6)
        cohort.accumulator.subtract(cohort.ciphertext(1))
        cohort.accumulator.subtract(cohort.ciphertext(4))
        found = cohort.accumulator.open(cohort.public, cohort.secret_sum((1, 4)), 4)
        rest = [v for i, v in enumerate(cohort.vectors) if i not in (1, 4)]
        assert (to_ring(found, params) == packed_sum(rest, params)).all()


def spelled(params: SecAggParams, data: bytes) -> list[int]:
    """Coefficients of a ciphertext as Python integers, from its bytes."""
    values = [0] * params.coefficients
    offset = shift = 0
    for size in params.planes:
        for i in range(params.coefficients):
            word = data[offset + i * size : offset + (i + 1) * size]
            values[i] |= int.from_bytes(word, "little") << shift
        offset += size * params.coefficients
        shift += 8 * size
    return values


@pytest.mark.parametrize(("n", "bits"), [(10, 24), (10, 16), (10, 20), (3000, 20)])
def test_carries_run_through_all_planes(n: int, bits: int) -> None:
    """Sums of arbitrary bytes, and of values whose carries run from end to end."""
    params = derive(n=n, bits=bits)
    size = params.ciphertext_bytes
    modulus = 1 << (8 * sum(params.planes))
    one = spelled_back(params, [1] * params.coefficients)
    ones = b"\xff" * size
    terms = [ones, one, ones, ones, *(Keystream(key("bytes", i)).read(size) for i in range(4))]
    accumulator = Accumulator(params)
    total = [0] * params.coefficients
    for odd, term in enumerate(terms):
        accumulator.add(memoryview(bytes(odd % 4) + term)[odd % 4 :])  # at any address
        total = [(a + b) % modulus for a, b in zip(total, spelled(params, term), strict=True)]
        assert state(accumulator) == total
    for odd, term in enumerate(terms):
        accumulator.subtract(memoryview(bytes(odd % 4) + term)[odd % 4 :])
        total = [(a - b) % modulus for a, b in zip(total, spelled(params, term), strict=True)]
        assert state(accumulator) == total
    assert set(total) == {0}


def spelled_back(params: SecAggParams, values: list[int]) -> bytes:
    out, shift = b"", 0
    for size in params.planes:
        mask = (1 << (8 * size)) - 1
        out += b"".join(((v >> shift) & mask).to_bytes(size, "little") for v in values)
        shift += 8 * size
    return out


def state(accumulator: Accumulator) -> list[int]:
    data = b"".join(plane.tobytes() for plane in accumulator._sum)
    return spelled(accumulator.params, data)


def test_the_ciphertext_is_what_the_docstring_says() -> None:
    """One coefficient at a time, in integers: round(a s + e + 2^delta x) modulo q."""
    params = derive(n=1000, bits=20, dimension=4000)
    public = PublicPolynomials(key("public"), params)
    secret = sample_secret(key("secret"))
    x = vector(params, 0)
    data = encrypt(x, secret, public, key("noise"))
    low, high = next(public.limbs(Room()))[1].astype(np.int64).swapaxes(0, 1)
    errors = Sampler(key("noise")).sample(params.coefficients).tolist()
    order = [i // 2 + 1024 * (i % 2) for i in range(2048)]
    power = {p: i for i, p in enumerate(order)}
    s = secret.tolist()
    for at in (0, 1, 2, 777, 1999, 2047):
        a = [lo + (hi << public.limb_bits) for lo, hi in zip(low[0].tolist(), high[0].tolist(), strict=True)]  # fmt: skip  # noqa: E501
        product = 0
        for j in range(2048):
            rest = order[at] - order[j]
            product += a[j] * s[power[rest % 2048]] * (1 if rest >= 0 else -1)
        digits = [int(x[at + j * 2000]) if at < 2000 else 0 for j in range(2)]
        centred = [d - (1 << 20) * (d >> 19) for d in digits]
        f = (
            product
            + errors[at]
            + sum(c << (params.scale_bits + 20 * j) for j, c in enumerate(centred))
        )
        f %= 1 << params.log_q
        rounded = (f + (1 << (params.dropped_bits - 1))) >> params.dropped_bits
        assert spelled(params, data)[at] == rounded % (1 << params.wire_bits)


def test_nothing_leaves_above_the_wire_bits() -> None:
    for n, bits in ((10, 16), (10, 20), (3000, 20), (10, 24)):
        params = derive(n=n, bits=bits)
        data = Cohort(params, 1).ciphertext(0)
        assert len(data) == params.ciphertext_bytes
        assert max(spelled(params, data)).bit_length() == params.wire_bits


GOLDEN = {
    16: "266be9c6b167e9ea",
    20: "a59a8d57032dfa74",
    24: "fd4f7730977ae73e",
    32: "791fd4432753f2bd",
}


@pytest.mark.parametrize("bits", GOLDEN)
def test_golden_ciphertexts(bits: int) -> None:
    """Exact arithmetic gives the same bytes on every machine."""
    data = Cohort(derive(n=100, bits=bits, dimension=70_001), 1).ciphertext(0)
    assert hashlib.sha256(data).hexdigest()[:16] == GOLDEN[bits]


def test_cached_transforms_and_given_buffers_change_nothing() -> None:
    params = derive(bits=32, dimension=70_001)
    plain, cached = Cohort(params, 1), Cohort(params, 1, cached=True)
    data = plain.ciphertext(0)
    assert cached.ciphertext(0) == data
    assert cached.ciphertext(0) == data
    message = bytearray(len(data) + 20)
    part, hashed = memoryview(message)[10:-10], hashlib.sha256()
    given = plain.vectors[0], plain.secrets[0], plain.public, key("noise")
    assert encrypt(*given, part, hashed) == b""
    assert bytes(part) == data
    assert hashed.digest() == hashlib.sha256(data).digest()
    assert message[:10] == message[-10:] == bytes(10)
    Accumulator(params).add(part)


def test_a_device_holds_one_block_of_public_polynomials() -> None:
    params = derive(bits=32, dimension=1_000_000)
    public = PublicPolynomials(key("public"), params)
    x = vector(params, 0)
    out = bytearray(params.ciphertext_bytes)
    secret = sample_secret(key("secret"))
    encrypt(x, secret, public, key("noise"), out)  # tables are made at first use
    tracemalloc.start()
    try:
        encrypt(x, secret, public, key("noise"), out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 2**20


# --- what is refused


def test_a_ciphertext_that_does_not_match_its_shares() -> None:
    params = derive()
    cohort = Cohort(params, 6)
    other = sample_secret(key("another secret"))
    cohort.accumulator.subtract(cohort.ciphertext(2))
    cohort.accumulator.add(encrypt(cohort.vectors[2], other, cohort.public, key("noise", 2)))
    with pytest.raises(ResidualError, match="does not match its shares"):
        cohort.accumulator.open(cohort.public, cohort.secret_sum(), 6)


@pytest.mark.parametrize("change", [1, -1, 40])
def test_one_wrong_coefficient_of_the_secret(change: int) -> None:
    cohort = Cohort(derive(), 6)
    secret = cohort.secret_sum()
    secret[100] += change
    with pytest.raises(ResidualError, match="the noise of 6 ciphertexts"):
        cohort.accumulator.open(cohort.public, secret, 6)


def test_a_ciphertext_too_many() -> None:
    cohort = Cohort(derive(), 6)
    cohort.accumulator.add(cohort.ciphertext(0))
    with pytest.raises(ResidualError, match="noise"):
        cohort.accumulator.open(cohort.public, cohort.secret_sum(), 6)


def test_noise_of_more_dealers_than_stated() -> None:
    params = derive(n=100, bits=20)
    cohort = Cohort(params, 40)
    cohort.accumulator.open(cohort.public, cohort.secret_sum(), 40)
    with pytest.raises(ResidualError, match="noise of 10 ciphertexts"):
        cohort.accumulator.open(cohort.public, cohort.secret_sum(), 10)


def test_a_single_large_error() -> None:
    """One coefficient off by more than Z deviations, in a sum whose mean square is unchanged."""
    params = derive(n=10, bits=32)
    cohort = Cohort(params, 6)
    plane = cohort.accumulator._sum[0]
    step = 1 << params.dropped_bits
    plane[5] += int(params.noise_limit(6) + 40 * params.noise_sigma(1)) // step
    with pytest.raises(ResidualError, match="maximum"):
        cohort.accumulator.open(cohort.public, cohort.secret_sum(), 6)


def test_a_large_secret_is_refused_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = Cohort(derive(), 6)
    secret = cohort.secret_sum()
    limit = secret_limit(6)
    secret[7] = -int(limit) - 1

    def unused(*_: Any) -> None:
        raise AssertionError("multiplied before it was checked")

    monkeypatch.setattr(masking, "Multiplier", unused)
    with pytest.raises(ResidualError, match="the sum of 6 secrets"):
        cohort.accumulator.open(cohort.public, secret, 6)
    secret[7] = int(limit)
    with pytest.raises(AssertionError, match="multiplied"):
        cohort.accumulator.open(cohort.public, secret, 6)


def test_secrets_do_not_reach_messages() -> None:
    cohort = Cohort(derive(), 6)
    secret = cohort.secret_sum()
    secret[3] = 31_337
    with pytest.raises(ResidualError) as caught:
        cohort.accumulator.open(cohort.public, secret, 6)
    assert "31337" not in str(caught.value)


def bad_vectors(params: SecAggParams) -> Iterator[Any]:
    yield np.zeros(params.dimension, np.int64)
    yield np.zeros(params.dimension, np.float64)
    yield np.zeros(params.dimension - 1, np.uint32)
    yield np.zeros((1, params.dimension), np.uint32)
    yield [0] * params.dimension


def test_bad_inputs() -> None:
    params = derive()
    cohort = Cohort(params, 1)
    public, secret = cohort.public, cohort.secrets[0]
    for bad in bad_vectors(params):
        with pytest.raises(InputError, match="a vector"):
            encrypt(bad, secret, public, key("noise"))
        with pytest.raises(InputError, match="a vector"):
            packed_sum([bad], params)
    good = cohort.vectors[0]
    with pytest.raises(InputError, match="noise key has 31 bytes"):
        encrypt(good, secret, public, bytes(31))
    with pytest.raises(InputError, match="above 60"):
        encrypt(good, np.full(2048, 61), public, key("noise"))
    with pytest.raises(InputError, match="2048 signed integers"):
        encrypt(good, np.zeros(2047, np.int64), public, key("noise"))
    with pytest.raises(InputError, match="out has 7 bytes"):
        encrypt(good, secret, public, key("noise"), bytearray(7))
    for bad_bytes in (b"", bytes(params.ciphertext_bytes - 1), bytes(params.ciphertext_bytes + 1)):
        with pytest.raises(MessageError, match="a ciphertext has"):
            cohort.accumulator.add(bad_bytes)
        with pytest.raises(MessageError, match="a ciphertext has"):
            cohort.accumulator.subtract(bad_bytes)
    for count in (0, params.n + 1):
        with pytest.raises(InputError, match="count is"):
            cohort.accumulator.open(public, secret, count)
    with pytest.raises(InputError, match="other parameters"):
        cohort.accumulator.open(PublicPolynomials(key("a"), derive(bits=16)), secret, 1)
