"""Mutated messages: the package's own errors only, no state changed, no memory eaten."""

from __future__ import annotations

import copy
import random
import resource
from collections.abc import Callable

import pytest

from secure_agg import RoundContext, SecAggParams
from secure_agg.errors import SecureAggError
from secure_agg.messages import (
    HEADER_SIZE,
    Certificate,
    Kind,
    Opening,
    pack_complaints,
    unpack_complaints,
)
from tests.secure_agg.world import World

PARAMS = SecAggParams.derive(n=5, corrupt=0.2, dropout=0.2, modulus_bits=20, dimension=6)
ME = 1
FEW, MANY = 2_000, 100_000
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 65_535, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def mutate(message: bytes, dice: random.Random) -> bytes:
    """One to three changes: bits, bytes, numbers, cuts, repeats, swaps; the header mostly kept."""
    data = bytearray(message)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(HEADER_SIZE, len(data) + 1) if dice.random() < 0.95 else 0
        kind = dice.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = dice.randrange(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = dice.randbytes(dice.choice((1, 2, 4, 32, 64, 97)))
        elif kind == 4:
            number = dice.choice(NUMBERS)
            width = dice.choice((1, 2, 4, 8))
            data[at : at + width] = (number % 256**width).to_bytes(width, "little")
        elif kind == 5:
            del data[at : at + dice.choice((1, 4, 32, 36, 64, 97))]
        elif kind == 6:
            size = dice.choice((4, 32, 97))
            data[at : at + size] = data[at : at + size] * 2
        else:
            data[HEADER_SIZE:] = dice.randbytes(dice.randrange(300))
        if len(data) < HEADER_SIZE:
            break
    return bytes(data)


def counts() -> list[object]:
    return [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]


def peak() -> int:
    """The most memory this process ever had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def before_kind(kind: Kind) -> tuple[World, bytes]:
    """A world in which a member is about to get a message of this kind, and the message."""
    if kind is Kind.NEXT:
        world = World(PARAMS, context=RoundContext(job=b"job", round=1, buffers=2))
        messages = world.server.begin()
        world.members[ME].handle(messages[ME])
        world.members[ME].provide(world.inputs[ME])
        good = bytes((2, Kind.NEXT)) + world.server.session.hash + (1).to_bytes(4, "little")
        return world, good
    world = World(PARAMS)
    return world, world.until(kind)[ME]


@pytest.mark.parametrize("count", counts())
@pytest.mark.parametrize("kind", [k for k in Kind if k % 2])
def test_a_member_survives_mutated_messages(kind: Kind, count: int) -> None:
    """Refused by name; whatever is accepted, the stores are as the machine says."""
    world, good = before_kind(kind)
    disk, tmpfs = copy.deepcopy(world.disks[ME]), copy.deepcopy(world.tmpfs[ME])
    member = world.restart(ME)
    member._vector = world.inputs[ME]
    dice = random.Random(int(kind))
    at_start, refused = peak(), 0
    for _ in range(count):
        bad = mutate(good, dice)
        try:
            reply = member.handle(bad)
        except SecureAggError:
            refused += 1
            continue
        assert reply[1] in (kind + 1, Kind.UPLOAD)
        world.disks[ME], world.tmpfs[ME] = copy.deepcopy(disk), copy.deepcopy(tmpfs)
        member = world.restart(ME)
        member._vector = world.inputs[ME]
    assert refused > 0.5 * count
    assert world.disks[ME].data == disk.data
    assert world.tmpfs[ME].data == tmpfs.data
    assert member.handle(good)[1] in (kind + 1, Kind.UPLOAD)
    assert peak() - at_start < 64 * 1024


@pytest.mark.parametrize("count", counts())
@pytest.mark.parametrize("kind", [k for k in Kind if not k % 2])
def test_the_aggregator_survives_mutated_messages(kind: Kind, count: int) -> None:
    world = World(PARAMS)
    messages = world.until(Kind(kind - 1))
    good = world.members[ME].handle(messages[ME])
    server, dice = world.server, random.Random(int(kind))
    at_start, refused = peak(), 0
    for _ in range(count):
        bad = mutate(good, dice)
        if bad == good:
            count -= 1
            continue
        try:
            server.receive(ME, bad)
        except SecureAggError:
            refused += 1
        server._settlement._answers.pop(ME, None)
        server._out.clear()
        server.blamed.clear()
    # Complaints are weighed when all are there; everything else is signed.
    assert refused == count or kind is Kind.CHECKED
    assert refused > 0.5 * count
    server._settlement._complaints.clear()
    server.receive(ME, good)
    assert peak() - at_start < 64 * 1024


def opening(body: bytes) -> bytes:
    return Opening.parse(body).body()


def certificate(body: bytes) -> bytes:
    return Certificate.parse(body, PARAMS.committee).body(PARAMS.committee)


def complaints(body: bytes) -> bytes:
    return pack_complaints(*unpack_complaints(body))


@pytest.mark.parametrize("count", counts())
@pytest.mark.parametrize("again", [opening, certificate, complaints])
def test_parsers_are_strict(again: Callable[[bytes], bytes], count: int) -> None:
    """What parses is canonical: it encodes to the very same bytes."""
    world = World(PARAMS)
    if again is complaints:
        good = bytes(HEADER_SIZE + 4) + b"".join(
            dealer.to_bytes(4, "little") + bytes(32) for dealer in (1, 2, 4)
        )
    else:
        good = world.until(Kind.OPENING if again is opening else Kind.CERTIFICATE)[ME]
    assert again(good[HEADER_SIZE:]) == good[HEADER_SIZE:]
    dice = random.Random(7)
    parsed = 0
    for _ in range(count):
        body = mutate(good, dice)[HEADER_SIZE:]
        try:
            found = again(body)
        except SecureAggError:
            continue
        assert found == body
        parsed += 1
    assert parsed


@pytest.mark.parametrize("count", counts())
@pytest.mark.parametrize("what", ["disks", "tmpfs"])
def test_damaged_stores_are_refused_by_name(what: str, count: int) -> None:
    world = World(PARAMS)
    world.until(Kind.PROPOSAL)
    store = getattr(world, what)[ME]
    good, dice = store.data, random.Random(3)
    at_start, refused = peak(), 0
    for _ in range(count):
        store.data = mutate(good, dice)
        try:
            world.restart(ME)
        except SecureAggError:
            refused += 1
    assert refused > 0.9 * count
    assert peak() - at_start < 64 * 1024
