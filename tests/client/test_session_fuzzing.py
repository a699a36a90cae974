"""Whatever a coordinator sends, a device answers, refuses in one line, or ends the session."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError, Message

from client.session import Dismissed
from fedsys.errors import ProtocolError
from fedsys.wire import fleet_pb2
from tests.client.devices import Book, Conversation, Devices, offer, plan_of
from tests.client.epochs import Epoch, buffered_plan, buffered_terms

COUNT = 4
Mutation = Callable[[bytes, Iterator[int]], bytes]


def dice(seed: str) -> Iterator[int]:
    counter = 0
    while True:
        block = hashlib.sha256(f"{seed} {counter}".encode()).digest()
        for at in range(0, 32, 4):
            yield int.from_bytes(block[at : at + 4], "big")
        counter += 1


def flipped(data: bytes, numbers: Iterator[int]) -> bytes:
    if not data:
        return b"x"
    at = next(numbers) % len(data)
    return data[:at] + bytes([data[at] ^ (1 << next(numbers) % 8)]) + data[at + 1 :]


def cut(data: bytes, numbers: Iterator[int]) -> bytes:
    return data[: next(numbers) % (len(data) + 1)]


def doubled(data: bytes, numbers: Iterator[int]) -> bytes:
    at = next(numbers) % (len(data) + 1)
    return data[:at] + data[at // 2 :]


def digits(data: bytes, numbers: Iterator[int]) -> bytes:
    """Another number somewhere in JSON text, a very large one now and then."""
    places = [at for at, each in enumerate(data) if 48 <= each < 58]
    if not places:
        return flipped(data, numbers)
    at = places[next(numbers) % len(places)]
    other = [b"9" * 400, b"-1", b"1e308", b"0", b"null", b"{}"][next(numbers) % 6]
    return data[:at] + other + data[at + 1 :]


FIELDS: dict[str, tuple[str, ...]] = {
    "welcome": ("statement", "signature"),
    "offer": ("terms",),
    "model": ("job", "weights"),
    "invitation": ("job", "assignment", "params", "message"),
    "stage": ("job", "message"),
    "lines": ("job", "lines"),
    "outcome": ("job", "ledger_head"),
}


BUFFERED: dict[str, tuple[str, ...]] = {
    "model": ("job", "weights"),
    "invitation": ("job", "assignment", "params", "message"),
    "begin": ("job",),
    "collect": ("job", "message"),
    "discard": ("job",),
    "stage": ("job", "message"),
    "outcome": ("job", "ledger_head"),
}


def inner(down: fleet_pb2.Down, field: str) -> Message:
    """The message that has the field."""
    content: Message = getattr(down, str(down.WhichOneof("content")))
    if field in ("statement", "signature"):
        return down.welcome.roster[0]
    if field == "message" and down.HasField("invitation"):
        return down.invitation.stage
    if down.HasField("collect"):
        return down.collect.stage
    return content


def messages(devices: Devices, talk: Conversation) -> dict[str, fleet_pb2.Down]:
    book = Book(talk.terms)
    book.round(talk.number)
    return {
        "welcome": devices.welcome(devices.roster),
        "offer": offer(talk.terms),
        "model": talk.model(),
        "invitation": talk.invitation(0),
        "stage": fleet_pb2.Down(stage=talk.stage(0)),
        "lines": book.told(),
        "outcome": book.outcome(talk.number),
    }


@pytest.mark.parametrize("mutation", [flipped, cut, doubled, digits])
@pytest.mark.parametrize("kind", FIELDS)
def test_no_bytes_end_an_agent(kind: str, mutation: Mutation, tmp_path: Path) -> None:
    devices = Devices(tmp_path, count=COUNT, plan=plan_of(COUNT), running=1)
    talk = Conversation(devices, devices.agree())
    session = devices.all[0].session
    numbers = dice(f"{kind} {mutation.__name__}")
    said: list[str] = []
    for trial in range(60):
        field = FIELDS[kind][trial % len(FIELDS[kind])]
        down = messages(devices, talk)[kind]
        target = inner(down, field)
        setattr(target, field, mutation(getattr(target, field), numbers))
        session.handle(talk.model())
        try:
            answer = session.handle(down)
        except (Dismissed, ProtocolError, DecodeError) as error:
            said.append(str(error))
            continue
        if answer is not None and answer.HasField("refusal"):
            assert answer.refusal.reason
            said.append(answer.refusal.reason)
    assert all("\n" not in text for text in said)
    assert devices.all[0].worker.trained <= 1


@pytest.mark.parametrize("mutation", [flipped, cut, doubled, digits])
@pytest.mark.parametrize("kind", BUFFERED)
def test_no_bytes_end_an_agent_in_buffered_rounds(
    kind: str, mutation: Mutation, tmp_path: Path
) -> None:
    devices = Devices(tmp_path, count=5, plan=buffered_plan())
    epoch = Epoch(devices, buffered_terms(devices))
    epoch.invite(0)
    epoch.train(devices.all[0])
    session, numbers = devices.all[0].session, dice(f"buffered {kind} {mutation.__name__}")
    for trial in range(60):
        field = BUFFERED[kind][trial % len(BUFFERED[kind])]
        ask = epoch.aggregator.next_upload(0)
        down = {
            "model": epoch.model(),
            "invitation": epoch.invitation(0),
            "begin": epoch.begin(),
            "collect": epoch.collect(ask, 1),
            "discard": fleet_pb2.Down(discard=fleet_pb2.Discard(job=epoch.terms.job, round=9)),
            "stage": epoch.duty(ask),
            "outcome": epoch.outcome(version=9),
        }[kind]
        target = inner(down, field)
        setattr(target, field, mutation(getattr(target, field), numbers))
        if kind != "model":
            session.handle(epoch.model())
        try:
            answer = session.handle(down)
        except (Dismissed, ProtocolError, DecodeError):
            continue
        if kind == "model":
            answer = session.handle(epoch.invitation(0))
        assert answer is None or not answer.HasField("answer")
    assert devices.all[0].worker.trained <= 2
