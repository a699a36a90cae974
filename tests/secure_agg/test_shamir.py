"""Shamir's sharing at its edges, and the code that corrects it."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg.errors import ParameterError, ShareError, ThresholdNotMet
from secure_agg.gf65536 import divide, invert, log_tables, matmul, multiply
from secure_agg.shamir import MAX_SHARES, combine, correctable, decode, split
from tests.secure_agg.world import fixed_entropy

SECRET = hashlib.sha512(b"secret").digest()


def slow_product(a: int, b: int) -> int:
    out = 0
    while b:
        out ^= a if b & 1 else 0
        a = (a << 1) ^ (0x1100B if a & 0x8000 else 0)
        b >>= 1
    return out


@settings(deadline=None)
@given(st.integers(0, 65_535), st.integers(0, 65_535))
def test_products_are_those_of_the_field(a: int, b: int) -> None:
    assert int(multiply(a, b)) == slow_product(a, b)
    if b:
        assert int(multiply(divide(a, b), b)) == a
        assert int(multiply(b, invert(b))) == 1
    assert int(invert(0)) == 0


def test_the_generator_reaches_every_element() -> None:
    log, exp = log_tables()
    assert len(set(exp[:65_535].tolist())) == 65_535
    assert 0 not in exp[: 2 * 65_535]
    assert not exp[2 * 65_535 :].any()
    assert sorted(log[1:].tolist()) == list(range(65_535))


def test_matrix_product() -> None:
    draw = fixed_entropy("matrices")
    a = np.frombuffer(draw(2 * 5 * 7), np.uint16).reshape(5, 7)
    b = np.frombuffer(draw(2 * 7 * 3), np.uint16).reshape(7, 3)
    for i, j in itertools.product(range(5), range(3)):
        expected = 0
        for x, y in zip(a[i].tolist(), b[:, j].tolist(), strict=True):
            expected ^= slow_product(x, y)
        assert int(matmul(a, b)[i, j]) == expected


@pytest.mark.parametrize(("count", "threshold"), [(1, 1), (2, 1), (2, 2), (5, 3), (9, 9), (40, 21)])
def test_any_threshold_of_shares_determine_the_secret(count: int, threshold: int) -> None:
    shares = split(SECRET, count, threshold, fixed_entropy("dealer"))
    assert [len(s) for s in shares] == [len(SECRET)] * count
    places = list(range(count))
    for chosen in (places[:threshold], places[-threshold:], places[::-1][:threshold], places):
        assert combine({p: shares[p] for p in chosen}, threshold) == SECRET
    if threshold > 1:
        fewer = {p: shares[p] for p in places[: threshold - 1]}
        with pytest.raises(ThresholdNotMet, match=f"{threshold - 1} shares are below"):
            combine(fewer, threshold)


def test_fewer_shares_say_nothing() -> None:
    """Whatever t - 1 shares are, every secret is possible, through exactly one polynomial."""
    share = split(b"\x01\x02", 3, 2, fixed_entropy("a"))[0]
    wanted = b"\xff\x07"
    x, y, c = 1, int.from_bytes(share, "little"), int.from_bytes(wanted, "little")
    slope = int(divide(y ^ c, x))
    other = split(wanted, 3, 2, lambda size: slope.to_bytes(size, "little"))
    assert other[0] == share


def test_shares_of_threshold_one_are_the_secret() -> None:
    assert split(SECRET, 4, 1) == [SECRET] * 4


def test_all_points_of_the_field_hold_shares() -> None:
    secret = b"\x12\x34"
    shares = split(secret, MAX_SHARES, 2, fixed_entropy("many"))
    assert combine({MAX_SHARES - 1: shares[-1], 0: shares[0]}, 2) == secret
    assert len(set(shares)) == MAX_SHARES  # a line meets each value once; zero's is the secret
    assert secret not in shares


@pytest.mark.parametrize(
    ("count", "threshold"), [(0, 0), (3, 0), (3, 4), (MAX_SHARES + 1, 2), (3, -1)]
)
def test_impossible_thresholds(count: int, threshold: int) -> None:
    with pytest.raises(ParameterError, match="threshold"):
        split(SECRET, count, threshold)


@pytest.mark.parametrize("secret", [b"", b"x", b"xyz"])
def test_secrets_that_are_not_field_elements(secret: bytes) -> None:
    with pytest.raises(ParameterError, match="cannot be shared"):
        split(secret, 3, 2)


def test_malformed_shares() -> None:
    good = split(SECRET, 3, 2, fixed_entropy("dealer"))
    for bad in ({0: good[0], 1: good[1][:-2]}, {0: b"", 1: b""}, {0: b"abc", 1: b"abc"}):
        with pytest.raises(ShareError, match="one even length"):
            combine(bad, 2)
    for place in (-1, MAX_SHARES):  # the point 0 would be the secret itself; 2^16 is no element
        with pytest.raises(ShareError, match="outside"):
            combine({0: good[0], place: good[1]}, 2)
    with pytest.raises(ParameterError, match="threshold is 0"):
        combine({0: good[0]}, 0)
    with pytest.raises(ThresholdNotMet):
        combine({}, 1)


def test_a_share_of_zeros_is_a_share_like_any_other() -> None:
    shares = split(bytes(4), 3, 2, lambda size: bytes(size))
    assert shares == [bytes(4)] * 3
    assert combine({0: shares[0], 2: shares[2]}, 2) == bytes(4)


@settings(deadline=None)
@given(st.data())
def test_errors_are_corrected_up_to_the_bound(data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, 8), "threshold")
    count = data.draw(st.integers(threshold, 20), "count")
    bound = correctable(count, threshold)
    wrong = data.draw(st.sets(st.integers(0, count - 1), max_size=bound), "wrong")
    shares = split(SECRET, count, threshold, fixed_entropy("code"))
    received = dict(enumerate(shares))
    for place in wrong:
        noise = data.draw(st.binary(min_size=64, max_size=64).filter(any), "noise")
        received[place] = bytes(a ^ b for a, b in zip(shares[place], noise, strict=True))
    secret, found = decode(received, threshold)
    assert secret == SECRET
    assert found == wrong


def test_beyond_the_bound_nothing_is_claimed() -> None:
    """Errors in half of the redundancy and one more: an error, for these fixed shares."""
    shares = dict(enumerate(split(SECRET, 9, 4, fixed_entropy("code"))))
    assert correctable(9, 4) == 2
    for place in (0, 3, 7):
        shares[place] = hashlib.sha512(bytes([place])).digest()
    with pytest.raises(ShareError, match="more than 2 of 9 shares are wrong"):
        decode(shares, 4)
    with pytest.raises(ThresholdNotMet):
        decode({0: SECRET}, 2)
    assert correctable(3, 5) == 0
