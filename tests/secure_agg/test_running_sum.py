"""The server adds an input when it comes, once and whole, and keeps none."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from secure_agg import Floor, SecAggParams
from secure_agg.errors import LateMessage, SecureAggError, StageError
from secure_agg.messages import HEADER_SIZE, Kind
from tests.secure_agg.world import World, exact_sum

CHEAT = 2
D = 400_000


@pytest.mark.parametrize(("bits", "transient"), [(32, 100_000), (20, 4 * D + 3_500_000)])
def test_memory_does_not_grow_with_the_inputs(bits: int, transient: int) -> None:
    """Of 12 inputs, 19 MB, the sum alone stays; 20 bits take one unpacked vector and a block."""
    params = SecAggParams.derive(n=12, corrupt=0.1, dropout=0.1, modulus_bits=bits)
    world = World(params, length=D, floor=Floor(secrecy_bits=0), shared=True)
    uploads = world.deliver(world.until(Kind.DELIVERY))
    tracemalloc.start()
    try:
        for member, upload in uploads.items():
            world.server.receive(member, upload)
        kept, peak = tracemalloc.get_traced_memory()
        asked = world.server.close_stage()
    finally:
        tracemalloc.stop()
    assert kept < 100_000
    assert peak < transient
    while asked:
        asked = world.step(asked)
    assert world.server.result.total.tolist() == exact_sum(world.inputs, world.ids, bits)


def shortened(upload: bytes) -> bytes:
    return upload[:-1]


def lengthened(upload: bytes) -> bytes:
    return upload + b"\0"


def padded_with_ones(upload: bytes) -> bytes:
    return upload[:-1] + bytes([upload[-1] | 0x80])


def complaining_about_itself(upload: bytes) -> bytes:
    head = (1).to_bytes(2, "little") + CHEAT.to_bytes(4, "little")
    return upload[:HEADER_SIZE] + head + upload[HEADER_SIZE + 2 :]


@pytest.mark.parametrize(
    "spoil", [shortened, lengthened, padded_with_ones, complaining_about_itself]
)
def test_a_refused_input_is_not_in_the_sum(spoil: Callable[[bytes], bytes]) -> None:
    params = SecAggParams.derive(n=7, corrupt=0.0, dropout=0.4, modulus_bits=19)
    world = World(params, length=9)
    server = world.server
    uploads = world.deliver(world.until(Kind.DELIVERY))
    for member, upload in uploads.items():
        if member != CHEAT:
            server.receive(member, upload)
    before = server._total.tobytes()
    with pytest.raises(SecureAggError):
        server.receive(CHEAT, spoil(uploads[CHEAT]))
    assert server._total.tobytes() == before
    with pytest.raises(StageError, match="does not wait"):  # there is no second try
        server.receive(CHEAT, uploads[CHEAT])
    assert server._total.tobytes() == before
    asked = server.close_stage()
    while asked:
        asked = world.step(asked, absent={CHEAT})
    others = [member for member in world.ids if member != CHEAT]
    assert server.result.included == tuple(others)
    assert server.result.total.tolist() == exact_sum(world.inputs, others, 19)
    assert list(server.result.blamed) == [CHEAT]


def test_an_input_is_added_once_and_in_time() -> None:
    world = World(SecAggParams.derive(n=7, corrupt=0.0, dropout=0.4))
    server = world.server
    uploads = world.deliver(world.until(Kind.DELIVERY))
    late = uploads.pop(CHEAT)
    for member, upload in uploads.items():
        server.receive(member, upload)
        after = server._total.tobytes()
        with pytest.raises(StageError, match="has sent"):
            server.receive(member, upload)
        assert server._total.tobytes() == after
    asked = server.close_stage()
    before = server._total.tobytes()
    with pytest.raises(LateMessage):
        server.receive(CHEAT, late)
    assert server._total.tobytes() == before
    while asked:
        asked = world.step(asked, absent={CHEAT})
    assert server.result.total.tolist() == exact_sum(world.inputs, uploads, 32)
