"""Sizes: what honest parties send, what the limits allow, and what the parameters promise."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from secure_agg import Limits, SecAggParams, kind_of, messages
from secure_agg.committee import ROW_BYTES
from secure_agg.errors import MessageError
from secure_agg.messages import HEADER_SIZE, Kind, Upload, frame, pack_bits, unpack_bits
from tests.secure_agg.world import World

CASES = [
    SecAggParams.derive(n=5, corrupt=0.2, dropout=0.2, modulus_bits=16, dimension=5000),
    SecAggParams.derive(n=5, corrupt=0.2, dropout=0.2, modulus_bits=32, dimension=3, suite=2),
    SecAggParams.derive(n=120, corrupt=0.1, dropout=0.1, modulus_bits=24, dimension=7),
]


@pytest.mark.parametrize("params", CASES)
def test_honest_messages_are_within_their_limits(params: SecAggParams) -> None:
    world, limits = World(params, shared=True), Limits(params)
    seen: set[Kind] = set()
    asked: Mapping[int, bytes] = world.server.begin()
    while asked:
        for id_ in asked:
            message = asked[id_]
            reply = world.members[id_].handle(message)
            world.server.receive(id_, reply)
            for one in (message, reply):
                kind = kind_of(one)
                seen.add(kind)
                limits.check(kind, len(one) - HEADER_SIZE)
                assert len(one) <= limits.largest_message
            assert len(reply) <= limits.largest_upload
            if kind_of(reply) is Kind.UPLOAD:
                assert len(reply) == limits.largest_upload  # every position has a key
                assert len(reply) == params.upload_bytes + HEADER_SIZE + messages._UPLOAD.size
        asked = world.server.close_stage()
    assert seen == set(Kind) - {Kind.NEXT}


def test_the_small_messages_are_small() -> None:
    """What a committee of 160 sends besides its uploads, in bytes."""
    limits = Limits(
        SecAggParams.derive(n=1000, corrupt=0.1, dropout=0.1, modulus_bits=20, dimension=1)
    )
    least = {kind: limits._bounds[kind][0] + HEADER_SIZE for kind in Kind}
    assert messages._ROW.size == ROW_BYTES  # which the size of a committee is chosen by
    assert least[Kind.CHECKED] == 38
    assert least[Kind.PROPOSAL] == 163
    assert least[Kind.ENDORSEMENT] == 102
    assert least[Kind.ANSWER] == 266


def test_frames() -> None:
    message = frame(Kind.NEXT, bytes(32), b"\1\0\0\0")
    assert kind_of(message) is Kind.NEXT
    for bad in (b"", message[: HEADER_SIZE - 1], b"\1" + message[1:], b"\2\x0b" + message[2:]):
        with pytest.raises(MessageError):
            kind_of(bad)


def test_an_upload_has_no_padding_but_zeros_and_an_aligned_ciphertext() -> None:
    world = World(CASES[0], shared=True)
    id_, opening = next(iter(world.server.begin().items()))
    upload = world.members[id_].handle(opening)
    start = HEADER_SIZE + messages._UPLOAD.size
    assert start % 8 == 0
    parsed = Upload.parse(upload, world.server.session)
    assert parsed.ciphertext == upload[start : start + len(parsed.ciphertext)]
    padded = bytearray(upload)
    padded[start - 1] = 1
    with pytest.raises(MessageError, match="padding is 256"):
        Upload.parse(bytes(padded), world.server.session)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 250])
def test_bit_strings(size: int) -> None:
    for chosen in ([], [0], [size - 1], list(range(size))):
        assert unpack_bits(pack_bits(chosen, size), size, "bits") == sorted(set(chosen))
    with pytest.raises(MessageError):
        unpack_bits(bytes(-(-size // 8) + 1), size, "bits")
    if size % 8:
        with pytest.raises(MessageError, match=f"of {size}"):
            unpack_bits(b"\xff" * -(-size // 8), size, "bits")
