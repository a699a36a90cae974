"""Mutated messages: the package's own errors only, no state changed, no memory eaten."""

from __future__ import annotations

import random
import resource

import pytest

from secure_agg import Floor, SecAggParams
from secure_agg.errors import SecureAggError
from secure_agg.messages import HEADER_SIZE, Begin, Kind, Release, Unmask
from tests.secure_agg.world import World

PARAMS = SecAggParams(
    n=5, degree=2, threshold=1, quorum=3, min_alive=3, colluders=0, dropouts=2, modulus_bits=20
)
ME = 1
FEW, MANY = 400, 100_000
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
            data[at:at] = dice.randbytes(dice.choice((1, 2, 4, 32, 64, 164)))
        elif kind == 4:
            number = dice.choice(NUMBERS)
            width = dice.choice((1, 2, 4, 8))
            data[at : at + width] = (number % 256**width).to_bytes(width, "little")
        elif kind == 5:
            del data[at : at + dice.choice((1, 4, 32, 68, 164))]
        elif kind == 6:
            size = dice.choice((4, 32, 164))
            data[at : at + size] = data[at : at + size] * 2
        else:
            data[HEADER_SIZE:] = dice.randbytes(dice.randrange(300))
        if len(data) < HEADER_SIZE:
            break
    return bytes(data)


def counts() -> list[object]:
    return [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


def peak() -> int:
    """The most memory this process ever had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("count", counts())
@pytest.mark.parametrize("kind", [k for k in Kind if k % 2])
def test_a_participant_survives_mutated_messages(kind: Kind, count: int) -> None:
    """Refused by name; whatever is accepted, the next good message is judged by the old rules."""
    world = World(PARAMS, floor=Floor(secrecy_bits=0), shared=True)
    good = world.until(kind)[ME]
    member = world.members[ME]
    before = member.to_bytes()
    dice = random.Random(int(kind))
    at_start, refused = peak(), 0
    for _ in range(count):
        try:
            member.handle(mutate(good, dice))
        except SecureAggError:
            refused += 1
        else:
            member = world.restart(ME, before)
    assert refused > 0.9 * count or kind in (Kind.ALIVE, Kind.DELIVERY)
    assert refused > 0.5 * count
    assert member.to_bytes() == before
    assert Kind(member.handle(good)[1]) == kind + 1
    assert peak() - at_start < 64 * 1024


@pytest.mark.parametrize("count", counts())
@pytest.mark.parametrize("kind", [k for k in Kind if not k % 2])
def test_the_aggregator_survives_mutated_messages(kind: Kind, count: int) -> None:
    world = World(PARAMS, floor=Floor(secrecy_bits=0), shared=True)
    messages = world.until(Kind(kind - 1))
    good = world.deliver(messages)[ME]
    server = world.server
    dice = random.Random(int(kind))
    at_start, refused = peak(), 0
    for _ in range(count):
        try:
            server.receive(ME, mutate(good, dice))
        except SecureAggError:
            refused += 1
        server._answers[server.stage].pop(ME, None)
        server._attendance.out.clear()
        server._public_keys.clear()
        server.blamed.clear()
    # An upload may be any vector; these signatures are verified when they are needed.
    later = (Kind.MASKED, Kind.CONSISTENCY, Kind.SHARES)
    assert refused > 0.9 * count or kind in later
    server.receive(ME, good)
    assert peak() - at_start < 64 * 1024


@pytest.mark.parametrize("count", counts())
@pytest.mark.parametrize("parser", [Begin, Unmask, Release])
def test_parsers_are_strict(parser: type[Begin | Unmask | Release], count: int) -> None:
    """What parses is canonical: it encodes to the very same bytes."""
    world = World(PARAMS, floor=Floor(secrecy_bits=0))
    kind = {Begin: Kind.BEGIN, Unmask: Kind.UNMASK, Release: Kind.RELEASE}[parser]
    if parser is Release:
        good = world.deliver(world.until(Kind.UNMASK))[ME]
    else:
        good = world.until(kind)[ME]
    assert parser.parse(good[HEADER_SIZE:]).body() == good[HEADER_SIZE:]
    dice = random.Random(7)
    parsed = 0
    for _ in range(count):
        body = mutate(good, dice)[HEADER_SIZE:]
        try:
            found = parser.parse(body)
        except SecureAggError:
            continue
        assert found.body() == body
        parsed += 1
    assert parsed
