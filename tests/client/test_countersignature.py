"""What a device says about its rounds: one statement each, and nothing that it has not checked."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.journal import JobRecord
from fedsys.privacy.ledger.openings import NONCE_BYTES
from fedsys.wire import fleet_pb2
from fedsys.wire.countersign import NO_HEAD, Countersignature
from fedsys.wire.limits import MAX_LINES
from tests.client.devices import MODEL, Book, Conversation, D, Device, Devices, offer
from tests.fedsys.privacy.ledger.ledgers import OTHER


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    return Devices(tmp_path)


@pytest.fixture
def device(devices: Devices) -> Device:
    return devices.all[0]


def upload(devices: Devices, number: int = 1, **change: object) -> Conversation:
    """The first device's part in a round."""
    talk = Conversation(devices, devices.agree(), number=number)
    if change:
        talk.assignment = dataclasses.replace(talk.assignment, **change)  # type: ignore[arg-type]
        talk.aggregator = talk.another()
        talk.messages = talk.aggregator.begin()
    answer = talk.invite(devices.all[0], 0)
    assert answer.HasField("answer"), answer
    return talk


def said(device: Device, book: Book, round: int, first: int = 0) -> Countersignature:
    """What a device answers once it was told of a round's end."""
    assert device.session.handle(book.told(first)) is None
    up = device.handle(book.outcome(round))
    assert up.HasField("countersignature"), up
    key = device.session.credentials.identity.public_bytes
    return Countersignature.from_wire(up.countersignature, client=0, key=key)


def refused(device: Device, *messages: fleet_pb2.Down) -> str:
    """The reason for which a device declines the last of these."""
    answers = [device.session.handle(message) for message in messages]
    last = answers[-1]
    assert last is not None
    assert last.HasField("refusal"), last
    assert last.refusal.cause == fleet_pb2.Refusal.LEDGER
    return str(last.refusal.reason)


def declines(devices: Devices) -> bool:
    """Whether the first device's next process takes part in no round of the job."""
    again = devices.start(0)
    answer = again.handle(offer(devices.terms()))
    return answer.HasField("refusal") and answer.refusal.cause == fleet_pb2.Refusal.LEDGER


def unopened(talk: Conversation) -> Conversation:
    """The round with an opening that no device accepts."""
    talk.messages = {client: message[:-1] for client, message in talk.messages.items()}
    return talk


def other_model(devices: Devices) -> Conversation:
    """The first round, with other weights than the ledger's."""
    talk = Conversation(devices, devices.terms())
    talk.assignment = dataclasses.replace(talk.assignment, weights=np.ones(D, dtype=np.float32))
    talk.aggregator = talk.another()
    talk.messages = talk.aggregator.begin()
    return talk


@pytest.mark.parametrize("restart", [False, True])
def test_the_model_that_is_countersigned_is_the_one_that_was_trained_on(
    devices: Devices, restart: bool
) -> None:
    """A coordinator shows the ledger's model, with an opening that fails, and then another one."""
    talk = unopened(Conversation(devices, devices.agree()))
    device = devices.all[0]
    assert talk.invite(device, 0).HasField("refusal")
    if restart:
        device = devices.start(0)
        device.handle(offer(talk.terms))
    answer = other_model(devices).invite(device, 0)
    assert answer.HasField("refusal"), "its statement would have named the first model"
    assert "another model or price" in answer.refusal.reason
    assert device.worker.trained == 0
    # The round itself is not lost to an honest coordinator, whose opening was damaged on its way.
    again = Conversation(devices, talk.terms)
    assert again.invite(device, 0).HasField("answer")


@pytest.mark.parametrize("restart", [False, True])
def test_a_round_whose_outcome_was_countersigned_is_not_joined_again(
    devices: Devices, restart: bool
) -> None:
    """It has stated that it uploaded nothing there."""
    talk = unopened(Conversation(devices, devices.agree()))
    device = devices.all[0]
    assert talk.invite(device, 0).HasField("refusal")
    book = Book(talk.terms)
    book.round(1)
    assert not said(device, book, 1).uploaded
    if restart:
        device = devices.start(0)
        device.handle(offer(talk.terms))
    answer = Conversation(devices, talk.terms).invite(device, 0)
    assert answer.HasField("refusal"), answer
    assert "round 1 is over" in answer.refusal.reason
    assert device.worker.trained == 0


def test_who_disputes_a_ledger_sends_nothing_more_in_the_round_that_is_open(
    devices: Devices, device: Device
) -> None:
    """It was invited before it saw the lines; the opening comes as a stage, not an invitation."""
    talk = unopened(Conversation(devices, devices.agree()))
    assert talk.invite(device, 0).HasField("refusal")
    book = Book(talk.terms)
    book.entries[0][1]["initial_weights_sha256"] = "00" * 32
    book.reserve(1)
    assert "this device was sent the model" in refused(device, book.told())
    good = Conversation(devices, talk.terms)
    stage = fleet_pb2.Down(stage=good.stage(0))
    assert "this device was sent the model" in refused(device, stage)
    assert device.worker.trained == 0


@pytest.mark.parametrize("restart", [False, True])
def test_who_helped_to_open_a_sum_is_not_told_that_nobody_did(
    devices: Devices, restart: bool
) -> None:
    """An abort before that is not charged to the server's view."""
    talk = Conversation(devices, devices.agree())
    talk.close({k: talk.invite(device, k) for k, device in enumerate(devices.all)})
    device = devices.all[0]
    while not devices_journal(device).answered:
        stages = [fleet_pb2.Down(stage=talk.stage(k)) for k in range(devices.count)]
        answers = [each.handle(stage) for each, stage in zip(devices.all, stages, strict=True)]
        talk.close(dict(enumerate(answers)))
    if restart:
        device = devices.start(0)
        device.handle(offer(talk.terms))
    book = Book(talk.terms)
    book.round(1, kind="abort")
    book.entries[-1][1]["before_unmask"] = False
    honest = book.told()
    book.entries[-1][1]["before_unmask"] = True
    assert "the sum of round 1 was never opened, and this device" in refused(device, book.told())
    assert declines(devices)
    other = devices.all[1]
    assert other.session.handle(honest) is None


def devices_journal(device: Device) -> JobRecord:
    """What the device's journal holds of its only job."""
    (record,) = device.session.journal.jobs.values()
    return record


def test_a_device_states_what_it_was_sent_and_did(devices: Devices, device: Device) -> None:
    book = Book(devices.terms())
    talk = upload(devices)
    nonce = talk.invite(device, 0).answer.nonce
    book.round(1)
    first = said(device, book, 1)
    assert first.holds(talk.terms.job)
    assert (first.round, first.ledger_head, first.previous) == (1, book.head, NO_HEAD)
    assert (first.terms, first.weights.hex()) == (talk.terms.digest, MODEL)
    assert (first.uploaded, first.invitations, first.uploads) == (True, 1, 1)
    assert first.nonce == nonce
    assert len(nonce) == NONCE_BYTES
    assert any(nonce)
    assert Countersignature.parse(first.encode(), "it") == first

    # a round without this device, then one in which it is invited and sends nothing
    before, length = book.head, len(book.entries)
    book.round(2)
    device.worker.error = ValueError("no data")
    talk = Conversation(devices, talk.terms, number=3)
    assert talk.invite(device, 0).HasField("refusal")
    book.round(3, kind="abort")
    device.session.handle(book.told(length))
    again = device.handle(book.outcome(3, committed=False)).countersignature
    assert (again.previous, again.uploaded, again.nonce) == (before, False, bytes(NONCE_BYTES))
    assert (again.invitations, again.uploads) == (2, 1)


def test_a_device_that_is_asked_again_says_the_same(devices: Devices, device: Device) -> None:
    book = Book(devices.terms())
    upload(devices)
    book.round(1)
    first = said(device, book, 1)
    book_two = Book(devices.terms(), [*book.entries])
    assert said(device, book_two, 1, len(book.entries) - 1) == first
    again = devices.start(0)
    answer = again.handle(offer(devices.terms())).consent
    assert answer.lines == len(book.entries)
    assert again.handle(book.outcome(1)).countersignature.signature == first.signature


def test_it_says_nothing_of_a_round_where_it_did_nothing(devices: Devices, device: Device) -> None:
    book = Book(devices.terms())
    devices.agree()
    book.round(1)
    device.session.handle(book.told())
    assert not device.handle(book.outcome(1)).HasField("countersignature")
    upload(devices, 2)
    over = device.handle(book.outcome(2))
    assert not over.HasField("countersignature"), "its lines did not come"


def test_a_second_head_for_one_round_is_named(devices: Devices, device: Device) -> None:
    book, other = Book(devices.terms()), Book(devices.terms())
    upload(devices)
    book.round(1)
    first = said(device, book, 1)
    other.round(1, model="ab" * 32)
    why = refused(device, other.outcome(1))
    assert first.ledger_head.hex() in why
    assert other.head.hex() in why
    assert declines(devices)


def test_a_round_before_the_newest_is_not_signed(devices: Devices, device: Device) -> None:
    book = Book(devices.terms())
    upload(devices)
    book.round(1)
    early = book.outcome(1)
    upload(devices, 2)
    book.round(2)
    said(device, book, 2)
    assert "comes after round 2" in refused(device, early)


def forked(book: Book) -> list[fleet_pb2.Down]:
    other = Book(book.terms)
    other.round(1, model="ab" * 32)
    other.round(2)
    return [other.told(3)]


def rewritten(book: Book) -> list[fleet_pb2.Down]:
    """The whole ledger again, as if it had not been shown."""
    other = Book(book.terms)
    other.round(1, kind="abort")
    return [other.told()]


def dropped(book: Book) -> list[fleet_pb2.Down]:
    """Round 2, in which it took part, is left out."""
    length = len(book.entries)
    book.round(2, model="cd" * 32)
    book.reserve(3)
    del book.entries[length : length + 2]
    return [book.told(length)]


def another_price(book: Book) -> list[fleet_pb2.Down]:
    length = len(book.entries)
    book.reserve(2, noise_multiplier=0.5)
    return [book.told(length)]


def swapped(book: Book) -> list[fleet_pb2.Down]:
    """The model that is in force is not the one that it was sent."""
    length = len(book.entries)
    book.entries[-1] = ("commit", {"round": 1, "weights_sha256": MODEL})
    book.reserve(2)
    return [book.told(length)]


def too_many(book: Book) -> list[fleet_pb2.Down]:
    length = len(book.entries)
    for number in range(2, 7):
        book.round(number, model="cd" * 32)
    return [book.told(length)]


def otherwise(book: Book) -> list[fleet_pb2.Down]:
    """The ledger commits what the outcome calls aborted."""
    length = len(book.entries)
    book.round(2)
    return [book.told(length), book.outcome(2, committed=False)]


CHEATS: dict[Callable[[Book], list[fleet_pb2.Down]], str] = {
    forked: "two histories",
    rewritten: "two histories",
    dropped: "does not reserve round 2",
    another_price: "price",
    swapped: "was sent the model",
    too_many: "does not reserve round 6 of 5",
    otherwise: "the ledger ends with the commit of round 2",
}


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda each: each.__name__)
def test_lines_that_contradict_what_it_knows_are_named(
    devices: Devices, device: Device, cheat: Callable[[Book], list[fleet_pb2.Down]]
) -> None:
    """It has countersigned round 1, and uploaded in round 2."""
    book = Book(devices.terms())
    upload(devices)
    sent = np.ones(D, dtype="<f4") if cheat is swapped else np.zeros(D, dtype="<f4")
    model = hashlib.sha256(sent.tobytes()).hexdigest()
    book.round(1, model=model if cheat is not swapped else MODEL)
    said(device, book, 1)
    upload(devices, 2, weights=sent.astype(np.float32))
    assert CHEATS[cheat] in refused(device, *cheat(book))
    assert declines(devices)


def test_a_ledger_of_other_terms_is_named(devices: Devices, device: Device) -> None:
    upload(devices)
    other = Book(dataclasses.replace(devices.terms(), roster_hash="00" * 32))
    other.round(1)
    assert "not of the job that was agreed to" in refused(device, other.told())


@pytest.mark.parametrize("raw", [b"", b"\n", b"x\n" * 9, b"{}\n", bytes(MAX_LINES + 1)])
def test_what_are_no_lines_is_refused_and_changes_nothing(
    devices: Devices, device: Device, raw: bytes
) -> None:
    book = Book(devices.terms())
    upload(devices)
    book.round(1)
    message = fleet_pb2.Down(lines=fleet_pb2.Lines(job=book.terms.job, lines=raw))
    answer = device.handle(message)
    assert answer.refusal.cause == fleet_pb2.Refusal.PROTOCOL
    stranger = device.handle(Book(book.terms, book.entries, OTHER).told())
    assert "did not sign" in stranger.refusal.reason
    assert device.session.handle(book.told(1)) is None, "some before them are missing"
    assert said(device, book, 1).uploads == 1
