"""What an agent may say, whatever carries it: by size, by order, by rate; no sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fedsys.errors import ProtocolError
from fedsys.wire import fleet_pb2
from server.deployed.fleet import Fleet, Link, Said
from server.ingress import Ingress
from server.pace import Pace

HELLO = fleet_pb2.Up(hello=fleet_pb2.Hello(node=1, version="1\x1b[2J"))
HOSTILE = "no\n2026 ERROR server: forged\x1b[31m\x00\u202e" + "x" * 600


def greeted(fleet: Fleet | None = None, *, answer: int = 0) -> Ingress:
    ingress = Ingress(Link(node=1, answer=answer), fleet or Fleet())
    ingress.take(HELLO.SerializeToString())
    return ingress


def up(**content: Any) -> bytes:
    return bytes(fleet_pb2.Up(**content).SerializeToString())


def test_texts_are_fit_for_a_log_before_anybody_sees_them() -> None:
    ingress = Ingress(Link(node=1), Fleet())
    assert ingress.take(HELLO.SerializeToString()).hello.version.isprintable()
    found = ingress.take(up(refusal=fleet_pb2.Refusal(reason=HOSTILE)))
    assert found.refusal.reason.isprintable()
    assert len(found.refusal.reason) == 501


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (HELLO.SerializeToString(), "unexpected message: hello"),
        (b"", "does not know"),
        (b"\x1a\x05ab", "not its only content"),
        (b"\x1a\x02\xff\xff", "refusal that cannot be read"),
        (up(refusal=fleet_pb2.Refusal(job=b"j" * 31)), "job has 31 bytes"),
        (up(consent=fleet_pb2.Consent(job=bytes(32), terms=b"t")), "terms has 1 bytes"),
        (up(refusal=fleet_pb2.Refusal(reason="x" * 5000)), "at most 4096"),
        (up(answer=fleet_pb2.Answer(job=bytes(32), message=bytes(70_000))), "at most 65536"),
        (up(prekeys=fleet_pb2.Prekeys(prekeys=[bytes(97), b""])), "prekeys has 0 bytes"),
    ],
)
def test_what_does_not_fit_ends_the_session(message: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        greeted().take(message)


def test_nothing_comes_before_the_greeting() -> None:
    with pytest.raises(ProtocolError, match="not a greeting"):
        Ingress(Link(node=1), Fleet()).take(up(consent=fleet_pb2.Consent()))


def test_an_answer_is_judged_by_the_open_round() -> None:
    fleet = Fleet()
    large = up(answer=fleet_pb2.Answer(job=bytes(32), message=bytes(1 << 20)))
    inside = greeted(fleet, answer=2 << 20)
    assert inside.limit(large[:1]) == 2 << 20
    assert inside.take(large).answer.message == bytes(1 << 20)
    outside = greeted(fleet)
    assert outside.limit(large[:1]) < len(large)
    assert outside.passed(large[:1]) == 0
    fleet.allow(2 << 20, [5])
    fleet.allow(0, ())
    assert outside.passed(large[:1]) == 2 << 20
    assert outside.passed(up(consent=fleet_pb2.Consent())[:1]) == 0


def test_a_flood_is_slowed_over_all_sessions_of_its_node_and_of_nobody_else() -> None:
    now = [0.0]
    fleet = Fleet(clock=lambda: now[0])
    first = greeted(fleet)
    waits = [first.wait() for _ in range(1000)]
    assert waits[:400] == [0.0] * 400
    assert waits[-1] == pytest.approx(6.0)
    assert greeted(fleet).wait() > 6.0
    assert Ingress(Link(node=2), fleet).wait() == 0.0
    now[0] = 20.0
    assert first.wait() == 0.0


def test_what_passes_is_counted_until_it_is_taken() -> None:
    async def scene() -> None:
        seen: list[tuple[str, str, int]] = []
        fleet = Fleet(counted=lambda *each: seen.append(each))
        ingress = greeted(fleet)
        raw = up(consent=fleet_pb2.Consent(job=bytes(32), terms=bytes(32)))
        ingress.hand_on(ingress.take(raw), len(raw))
        event = fleet.events.get_nowait()
        assert isinstance(event, Said)
        assert event.link is not None
        assert event.link.pending == 0
        assert seen[-1] == ("in", "consent", len(raw))

    asyncio.run(scene())


def test_a_pace_is_a_burst_and_then_a_rate() -> None:
    now = [0.0]
    pace = Pace(burst=3, a_second=2.0, clock=lambda: now[0])
    assert pace.rested
    assert [pace.try_take() for _ in range(4)] == [True, True, True, False]
    assert not pace.rested
    now[0] = 0.5
    assert [pace.try_take() for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert pace.rested
