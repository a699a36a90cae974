"""Products of ring elements against integers, at the extremes that the proof covers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_agg import products
from secure_agg.errors import InputError
from secure_agg.gaussian import TAIL
from secure_agg.masking import sample_secret, secret_limit
from secure_agg.params import SecAggParams
from secure_agg.products import RELATIVE_ERROR, Multiplier, PublicPolynomials, Room, room, transform

N = 2048
UNIT = 2.0**-53
Ints = npt.NDArray[np.int64]


def key(name: str) -> bytes:
    return name.encode().ljust(32)


def natural(x: Ints) -> list[int]:
    """Coefficients of 1, X, X^2, ... from the order in which they are stored."""
    return [*x[0::2].tolist(), *x[1::2].tolist()]


def stored(x: list[int]) -> list[int]:
    return [x[i // 2 + (N // 2) * (i % 2)] for i in range(N)]


def exact(a: list[int], s: list[int]) -> list[int]:
    """The negacyclic product, by Kronecker substitution: one product of two large integers."""
    slot = 128

    def spell(x: list[int]) -> int:
        plus = b"".join(max(v, 0).to_bytes(slot // 8, "little") for v in x)
        minus = b"".join(max(-v, 0).to_bytes(slot // 8, "little") for v in x)
        return int.from_bytes(plus, "little") - int.from_bytes(minus, "little")

    offset = sum(1 << (slot * i + slot - 1) for i in range(2 * N))
    raw = (spell(a) * spell(s) + offset).to_bytes(2 * N * slot // 8 + 1, "little")
    digits = [
        int.from_bytes(raw[i * slot // 8 : (i + 1) * slot // 8], "little") - (1 << (slot - 1))
        for i in range(2 * N)
    ]
    return [low - high for low, high in zip(digits[:N], digits[N:], strict=True)]


def limbs_of(name: str, bits: int) -> tuple[Ints, Ints]:
    """Low and high limbs of an a: random, or at an extreme."""
    most = 1 << (bits - 1)
    if name == "random":
        raw = np.frombuffer(Cipher(algorithms.AES256(key("limbs")), modes.CTR(bytes(16)))
                            .encryptor().update(bytes(16 * N)), np.int64)  # fmt: skip
        low, high = raw.reshape(2, N) >> (64 - bits)
        return low, high
    if name == "least":
        return np.full(N, -most), np.full(N, -most)
    sign = 1 - 2 * (np.arange(N) // 2 % 2)
    return np.where(sign > 0, most - 1, -most), np.where(sign > 0, -most, most - 1)


BOUND = int(secret_limit(10_000))
SECRETS: dict[str, Ints] = {
    "honest": sample_secret(key("secret")),
    "largest of one dealer": np.full(N, TAIL),
    "honest sum": np.rint(sample_secret(key("sum")) * 100.0).astype(np.int64),
    "limit": np.full(N, BOUND),
    "limit below": np.full(N, -BOUND),
    "limit alternating": BOUND * (1 - 2 * (np.arange(N) // 2 % 2)),
    "half of the field": np.full(N, 32_760),
    "half of the field alternating": 32_760 * (1 - 2 * (np.arange(N) // 2 % 2)),
    "one coefficient": np.where(np.arange(N) == 77, BOUND, 0),
    "zero": np.zeros(N, np.int64),
}


def product(multiplier: Multiplier, low: Ints, high: Ints, plus: int = 0) -> Ints:
    transforms = []
    for limb in (low, high):
        z = limb.astype(np.float64).view(np.complex128)[None]
        transform(z)
        transforms.append(z)
    out = np.empty((1, N), np.int64)
    multiplier.times(transforms[0], transforms[1], np.empty((1, N // 2), np.complex128), out, plus)
    result: Ints = out[0]
    return result


@pytest.mark.parametrize("limb", ["random", "least", "alternating"])
@pytest.mark.parametrize("bits", [17, 22, 26, 27])
def test_products_are_exact(bits: int, limb: str) -> None:
    low, high = limbs_of(limb, bits)
    a = [x + (y << bits) for x, y in zip(natural(low), natural(high), strict=True)]
    for name, secret in SECRETS.items():
        multiplier = Multiplier(secret, bits)
        wanted = stored(exact(a, natural(secret)))
        found = product(multiplier, low, high)
        modulus = 1 << (2 * bits)
        assert [(int(x) - multiplier.excess) % modulus for x in found] == [
            w % modulus for w in wanted
        ], name


@pytest.mark.parametrize("plus", [1, -3, (1 << 49) + 1])
def test_what_is_added_on_the_way_is_added_exactly(plus: int) -> None:
    low, high = limbs_of("least", 27)
    for secret in SECRETS.values():
        multiplier = Multiplier(secret, 27)
        alone = product(multiplier, low, high).view(np.uint64)
        found = product(multiplier, low, high, plus).view(np.uint64)
        assert (found - alone == np.uint64(plus % (1 << 64))).all()


def test_limbs_of_secrets_are_as_few_as_exactness_allows() -> None:
    counts = {name: len(Multiplier(s, 27).limbs) for name, s in SECRETS.items()}
    assert counts["honest"] == counts["largest of one dealer"] == counts["zero"] == 1
    assert counts["honest sum"] == counts["limit"] == counts["limit alternating"] == 2
    assert counts["half of the field"] == 3
    assert len(Multiplier(SECRETS["honest sum"], 22).limbs) == 1


def test_the_bound_covers_every_multiplier() -> None:
    """The proven error of every product that is formed is below one half."""
    for bits in range(10, 28):
        a_norm = 2.0 ** (bits - 1) * math.sqrt(N)
        for secret in SECRETS.values():
            for _, limb in Multiplier(secret, bits).limbs:
                # A transform is sqrt(1024) times a unitary matrix.
                norm = float(np.linalg.norm(limb)) / 32
                assert a_norm * norm * RELATIVE_ERROR < 0.5
    assert RELATIVE_ERROR < 2.0**-44.2


def test_measured_errors_are_far_below_the_bound() -> None:
    worst = 0.0
    for limb in ("random", "least", "alternating"):
        for a in limbs_of(limb, 27):
            z = a.astype(np.float64).view(np.complex128)
            transform(z)
            for secret in SECRETS.values():
                for _, s in Multiplier(secret, 27).limbs:
                    back = (np.fft.ifft(z * s) * products._UNTWIST).view(np.float64)
                    error = float(np.abs(back - np.rint(back)).max())
                    bound = float(np.linalg.norm(z) * np.linalg.norm(s)) / 1024 * RELATIVE_ERROR
                    assert error <= bound / 20
                    worst = max(worst, error)
    assert 0 < worst < 0.02


def roots(order: int) -> tuple[npt.NDArray[np.complex128], npt.NDArray[np.complex128]]:
    """The first 1,024 powers of exp(2 pi i / order) as a double and what it lacks."""
    with mpmath.workprec(200):
        exact_roots = [mpmath.expjpi(mpmath.mpf(2 * k) / order) for k in range(1024)]
        near = np.array([complex(z) for z in exact_roots])
        rest = np.array(
            [complex(z - mpmath.mpc(h)) for z, h in zip(exact_roots, near.tolist(), strict=True)]
        )
    return near, rest


def test_roots_of_unity_are_as_good_as_the_proof_says() -> None:
    near, rest = roots(2 * N)
    assert np.abs((products._TWIST - near) - rest).max() <= 4 * UNIT
    near, rest = roots(1024)
    power = np.outer(np.arange(1024), np.arange(1024)) % 1024
    inverse = np.fft.ifft(np.eye(1024), norm="forward")
    forward = np.conj(np.fft.fft(np.eye(1024)))
    for matrix in (inverse, forward):  # products of several roots each
        assert np.abs((matrix - near[power]) - rest[power]).max() <= 10 * UNIT


def params(polynomials: int, modulus_bits: int = 32) -> SecAggParams:
    return SecAggParams.derive(
        n=100, corrupt=0.1, dropout=0.1, modulus_bits=modulus_bits, dimension=N * polynomials
    )


def test_public_polynomials_are_the_keystream() -> None:
    p = params(37)
    raw = Cipher(algorithms.AES256(key("public")), modes.CTR(bytes(16))).encryptor()
    words = np.frombuffer(raw.update(bytes(37 * 8 * N)), "<i4").reshape(37, 2, N)
    public = PublicPolynomials(key("public"), p)
    bits = public.limb_bits
    assert bits == (p.log_q + 1) // 2
    count = 0
    for start, limbs in public.limbs(Room()):
        low, high = limbs.swapaxes(0, 1)
        assert start == count
        assert (low == words[start : start + len(low), 0] >> (32 - bits)).all()
        assert (high == words[start : start + len(high), 1] >> (32 - bits)).all()
        assert low.min() >= -(1 << (bits - 1))
        assert low.max() < 1 << (bits - 1)
        count += len(low)
    assert count == 37


def test_a_room_is_lent_to_one_at_a_time() -> None:
    with room() as one, room() as other:
        assert one is not other
    with room() as again:
        assert again in (one, other)
    with pytest.raises(KeyError), room() as lost:
        raise KeyError
    with room() as kept:
        assert kept is lost


def test_cached_blocks_are_the_same() -> None:
    p = params(37)

    def flat(public: PublicPolynomials) -> Iterator[tuple[int, bytes, bytes]]:
        for start, low, high in public.blocks(Room()):
            yield start, low.tobytes(), high.tobytes()

    once = list(flat(PublicPolynomials(key("public"), p)))
    cached = PublicPolynomials(key("public"), p, cached=True)
    assert list(flat(cached)) == once
    assert list(flat(cached)) == once
    assert list(flat(PublicPolynomials(key("other"), p))) != once


@pytest.mark.parametrize(
    "secret",
    [
        np.zeros(N - 1, np.int64),
        np.zeros((1, N), np.int64),
        np.zeros(N, np.float64),
        np.full(N, 32_769),
    ],
)
def test_bad_secrets(secret: Ints) -> None:
    with pytest.raises(InputError, match="a secret"):
        Multiplier(secret, 22)
