"""What is looked at before a message is parsed: its kind, its size, the entries of its lists."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsys.errors import ProtocolError
from fedsys.wire import fleet_pb2
from fedsys.wire.limits import (
    MAX_SMALL,
    check_down,
    check_up,
    down_limits,
    kind_of_down,
    kind_of_up,
    up_limits,
)
from fedsys.wire.services import MAX_PREKEYS
from secure_agg import SecAggParams
from secure_agg.messages import HEADER_SIZE, Limits, largest_from_server
from secure_agg.prekeys import PREKEY_SIZE


def varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def welcome(inside: bytes) -> bytes:
    return b"\x0a" + varint(len(inside)) + inside


def test_every_kind_has_a_limit_and_is_known_by_its_first_byte() -> None:
    for message, kind_of, limits in (
        (fleet_pb2.Up, kind_of_up, up_limits(rosters=True)),
        (fleet_pb2.Down, kind_of_down, down_limits()),
    ):
        for field in message.DESCRIPTOR.fields:
            found = message()
            getattr(found, field.name).SetInParent()
            assert kind_of(found.SerializeToString()[:1]) == field.name
            assert limits[field.name] > 0
        assert len(limits) == len(message.DESCRIPTOR.fields)
        assert kind_of(b"") == "unknown"
        assert kind_of(b"\xfa\x01") == "unknown"


def test_an_agent_outside_a_round_says_little() -> None:
    large = fleet_pb2.Up(answer=fleet_pb2.Answer(message=bytes(1 << 20))).SerializeToString()
    with pytest.raises(ProtocolError, match=f"answer of .* at most {MAX_SMALL}"):
        check_up(large, up_limits())
    assert check_up(large, up_limits(answer=2 << 20)) == "answer"
    for field in fleet_pb2.Up.DESCRIPTOR.fields:
        if field.name != "answer":
            assert up_limits(answer=2 << 20).get(field.name, 0) <= MAX_SMALL, "lists unasked: none"


def test_a_device_takes_no_larger_model_than_it_agreed_to() -> None:
    model = fleet_pb2.Down(model=fleet_pb2.Model(weights=bytes(4 * 10_000))).SerializeToString()
    assert check_down(model, down_limits(dimension=10_000)) == "model"
    for limits in (down_limits(), down_limits(dimension=5000)):
        with pytest.raises(ProtocolError, match="model of"):
            check_down(model, limits)
    assert down_limits(cap=100)["stage"] > down_limits(cap=10)["stage"]


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (b"\x12\x00" * (10 << 20), "a roster of 0 bytes"),
        (b"\x08\x01" + b"\x12\x02\x0a\x00" * (5 << 20), "a roster of 2 bytes"),
        (b"\x08\x01" * 20_000, "more than 10000 rosters"),
        (b"\x1a\x64" + bytes(100), "a roster of 100 bytes"),
        (b"\x0d" + bytes(4), "something else"),
        (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "cut off"),
    ],
)
def test_a_flood_of_empty_rosters_is_refused_before_any_becomes_an_object(
    inside: bytes, reason: str
) -> None:
    raw = welcome(inside)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=reason):
            check_down(raw, down_limits())
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_honest_news_passes() -> None:
    roster = [fleet_pb2.SignedRoster(statement=bytes(60), signature=bytes(64))] * 3
    for down in (
        fleet_pb2.Down(welcome=fleet_pb2.Welcome(protocol=1, roster=roster)),
        fleet_pb2.Down(roster=fleet_pb2.RosterNews(roster=roster)),
        fleet_pb2.Down(welcome=fleet_pb2.Welcome(protocol=1)),
    ):
        assert check_down(down.SerializeToString(), down_limits()) in ("welcome", "roster")


@pytest.mark.parametrize(
    "raw", [b"", b"\x0a", b"\x0a\x05abc", b"\x0a\x00\x0a\x00", b"\x08\x01", b"\xff" * 20]
)
def test_a_message_is_one_content_and_nothing_beside_it(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        check_up(raw, up_limits())
    with pytest.raises(ProtocolError):
        check_down(raw, down_limits())


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    for check, limits in ((check_up, up_limits()), (check_down, down_limits())):
        with contextlib.suppress(ProtocolError):
            assert check(raw, limits) in limits


@pytest.mark.parametrize("n", [2, 3, 10, 30, 100, 101, 1000, 10_000])
@pytest.mark.parametrize("suite", [1, 2])
def test_every_message_of_a_round_passes(n: int, suite: int) -> None:
    """As large as each kind of its secure aggregation can be, in what carries it."""
    faulty = 0.1 if n >= 10 else 0.0
    params = SecAggParams.derive(
        n=n, corrupt=faulty, dropout=faulty, modulus_bits=20, dimension=1000, suite=suite
    )
    bounds = Limits(params)._bounds.items()
    largest = HEADER_SIZE + max(most for kind, (_, most) in bounds if kind % 2)
    assert largest <= largest_from_server(n)
    number, job, digest = 2**32 - 1, bytes(32), bytes(32)
    stage = fleet_pb2.Stage(
        job=job, round=number, step=number, message=bytes(largest), milliseconds=number
    )
    invitation = fleet_pb2.Invitation(
        job=job, round=number, assignment=bytes(100_000), params=params.encode(), stage=stage
    )
    limits = down_limits(cap=n)
    for down in (fleet_pb2.Down(stage=stage), fleet_pb2.Down(invitation=invitation)):
        assert check_down(down.SerializeToString(), limits) == down.WhichOneof("content")
    far = fleet_pb2.Down(stage=fleet_pb2.Stage(message=bytes(largest_from_server(n) + 5000)))
    with pytest.raises(ProtocolError, match="stage of"):
        check_down(far.SerializeToString(), limits)
    outcome = fleet_pb2.Outcome(
        job=job, round=number, committed=True, ledger_head=digest, prekeys=number
    )
    check_down(fleet_pb2.Down(outcome=outcome).SerializeToString(), limits)


def test_as_many_sealing_keys_as_are_kept_travel_with_everything_that_carries_them() -> None:
    keys = [bytes(max(PREKEY_SIZE.values()))] * MAX_PREKEYS
    number, job, digest = 2**32 - 1, bytes(32), bytes(32)
    hello = fleet_pb2.Hello(
        protocol_min=number,
        protocol_max=number,
        node=number,
        version="x" * 64,
        roster_version=2**63,
        prekeys=keys,
    )
    countersignature = fleet_pb2.Countersignature(
        job=job,
        round=number,
        ledger_head=digest,
        terms=digest,
        previous=digest,
        weights=digest,
        uploaded=True,
        nonce=bytes(16),
        invitations=number,
        uploads=number,
        signature=bytes(64),
        prekeys=keys,
    )
    for up in (
        fleet_pb2.Up(hello=hello),
        fleet_pb2.Up(consent=fleet_pb2.Consent(job=job, terms=digest, prekeys=keys)),
        fleet_pb2.Up(prekeys=fleet_pb2.Prekeys(prekeys=keys)),
        fleet_pb2.Up(countersignature=countersignature),
    ):
        assert check_up(up.SerializeToString(), up_limits()) == up.WhichOneof("content")
    more = fleet_pb2.Up(prekeys=fleet_pb2.Prekeys(prekeys=keys * 2))
    with pytest.raises(ProtocolError, match="prekeys of"):
        check_up(more.SerializeToString(), up_limits())
