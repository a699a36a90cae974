"""Sealing: which public keys are of low order, and that a batch is its members one by one."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_agg.sealing import (
    _LOW_ENCODINGS,
    _LOW_ORDER,
    _PRIME,
    ENCAPSULATION_SIZE,
    PRIVATE_SIZE,
    Opener,
    Sealer,
    is_low_order,
    public_of,
    unseal,
)


def decoded(public: bytes) -> int:
    """The coordinate that RFC 7748, section 5, decodes, reduced."""
    return (int.from_bytes(public, "little") & (2**255 - 1)) % _PRIME


def test_every_encoding_of_a_point_of_low_order_is_known() -> None:
    """Coordinates from 0 to 18 have a second encoding, above the prime; all have the high bit."""
    assert {decoded(each) for each in _LOW_ENCODINGS} == _LOW_ORDER
    assert len(_LOW_ENCODINGS) == 2 * (len(_LOW_ORDER) + len({0, 1}))
    for u in (0, 1):
        for value in (u, u + _PRIME, u + 2**255, u + _PRIME + 2**255):
            assert is_low_order(value.to_bytes(32, "little"))


@given(st.integers(0, 2**256 - 1))
def test_other_keys_are_of_high_order(number: int) -> None:
    public = number.to_bytes(32, "little")
    assert is_low_order(public) == (decoded(public) in _LOW_ORDER)


@pytest.mark.parametrize("suite", [1, 2])
def test_each_member_opens_its_own_share(suite: int) -> None:
    session = bytes(range(32))
    privates = [hashlib.shake_128(bytes((i,))).digest(PRIVATE_SIZE[suite]) for i in range(4)]
    publics = [public_of(private, suite) for private in privates]
    shares = [bytes((i,)) * 20 for i in range(4)]
    sealer = Sealer(b"s" * 32, session, 7, 3)
    keys, sealed = sealer.seal((0, 2, 5, 6), publics, shares)
    assert len(set(keys)) == 4
    for place, position in enumerate((0, 2, 5, 6)):
        opener = Opener(privates[place], suite, session, position)
        split = ENCAPSULATION_SIZE[suite]
        key = opener.key(7, 3, sealer.public, sealed[place][:split])
        assert key == keys[place]
        assert unseal(key, sealed[place][split:], session) == shares[place]
        assert unseal(keys[place - 1], sealed[place][split:], session) is None
