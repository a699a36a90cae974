"""Attacks 27, 29 and 30: what a vector may be, what a message may be, what a mask must be."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from secure_agg import SecAggParams, prg
from secure_agg.errors import InputError, MessageError, SecureAggError
from secure_agg.messages import ADVERT_ROW, HEADER_SIZE, Kind, frame
from tests.secure_agg.world import World, without

VICTIM = 0
PARAMS = SecAggParams.derive(n=5, corrupt=0.2, dropout=0.2, modulus_bits=20)


def test_27_out_of_range_input() -> None:
    """An element that does not fit would wrap, silently, into another client's update."""

    def attack() -> list[int]:
        world = World(PARAMS, length=2)
        inputs = world.inputs
        world.members[VICTIM].provide(np.array([2**20 + 5, 1], np.uint32))
        inputs[VICTIM] = np.array([5, 1], np.uint32)
        world.until(None)
        total: list[int] = world.server.result.total.tolist()
        assert total[0] == sum(int(v[0]) for v in inputs.values()) % 2**20
        return total

    with pytest.raises(InputError, match="an element of the vector does not fit in 20 bits"):
        attack()
    with without("input_range"):
        assert attack()


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (np.array([1, 2], np.int64), "of type int64"),
        (np.array([1.0, 2.0]), "of type float64"),
        (np.array([1, 2, 3], np.uint32), r"shape \(3,\)"),
        (np.array([[1, 2]], np.uint32), r"shape \(1, 2\)"),
        (np.array([True, False]), "of type bool"),
    ],
)
def test_27_wrong_type_or_shape(vector: npt.NDArray[np.generic], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        World(PARAMS, length=2).members[VICTIM].provide(vector)


def test_27_no_input_then_one() -> None:
    world = World(PARAMS)
    message = world.until(Kind.DELIVERY)[VICTIM]
    member = world.members[VICTIM]
    member._now.vector = None
    with pytest.raises(InputError, match="call provide"):
        member.handle(message)
    member.provide(world.inputs[VICTIM])
    member.handle(message)
    with pytest.raises(InputError, match="there is one a round"):
        member.provide(world.inputs[VICTIM])


def test_29_oversized_message() -> None:
    """A cohort of a million rows is refused by its size, before memory is spent on it."""
    rows = 1_000_000

    def attack() -> int:
        world = World(PARAMS)
        message = world.until(Kind.COHORT)[VICTIM]
        huge = frame(Kind.COHORT, message[2:HEADER_SIZE], bytes(rows * ADVERT_ROW.size))
        tracemalloc.start()
        try:
            with pytest.raises(SecureAggError) as error:
                world.members[VICTIM].handle(huge)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(error.value, MessageError) == (peak < 2**20)
        return peak

    assert attack() < 2**20
    with without("size"):
        assert attack() > 100 * 2**20


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("size", [0, 1, 33, 34, 35, 40, 100, 5000])
def test_29_malformed_message(kind: Kind, size: int) -> None:
    world = World(PARAMS)
    begin = world.server.begin()[VICTIM]
    junk = (bytes((1, kind)) + begin[2:HEADER_SIZE] + hashlib.sha256(bytes(size)).digest() * 160)[
        :size
    ]
    with pytest.raises(SecureAggError):
        world.members[VICTIM].handle(junk)
    with pytest.raises(SecureAggError):
        world.server.receive(VICTIM, junk)


def correlated(seed: bytes, size: int = 4096) -> tuple[int, float]:
    """The bit of ``seed`` whose flip changes the mask's bits least like a coin, and how much."""

    def mask(key: bytes) -> npt.NDArray[np.uint8]:
        out = np.zeros(size // 4, "<u4")
        prg.add_masks(out, [key])
        return np.unpackbits(out.view(np.uint8))

    base = mask(seed)
    worst, at = 0.0, 0
    for bit in range(256):
        other = bytearray(seed)
        other[bit // 8] ^= 1 << (bit % 8)
        share = float(np.mean(base != mask(bytes(other))))
        if abs(share - 0.5) > worst:
            worst, at = abs(share - 0.5), bit
    return at, worst


def test_30_seeds_that_differ_in_one_bit_give_unrelated_masks() -> None:
    """Every one of 256 bits counts; a generator seeded with 32 of them, as elsewhere, fails.

    32 768 coin flips stray from one half by 0.02 with probability 2 exp(-2 * 32768 * 0.02^2) =
    8e-12 (Hoeffding), over 256 bits 2e-9.
    """
    seed = hashlib.sha256(b"seed").digest()
    assert correlated(seed)[1] < 0.02

    def truncated(key: bytes) -> CipherContext:
        short = struct.pack("<I28x", struct.unpack_from("<I", key)[0])
        return Cipher(algorithms.AES(short), modes.CTR(bytes(16))).encryptor()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prg, "_context", truncated)
        bit, stray = correlated(seed)
    assert bit >= 32
    assert stray == 0.5  # the very same mask
