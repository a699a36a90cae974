"""A device in buffered rounds: what it sends, what it counts, and a coordinator that cheats."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedsys.transparency import VerifierKey
from fedsys.transparency.note import COSIGNATURE_V1
from fedsys.wire import fleet_pb2
from secure_agg import Kind
from secure_agg.messages import kind_of
from tests.client.devices import Book, D, Devices, offer
from tests.client.epochs import (
    BUFFERING,
    NONE,
    Epoch,
    buffered_plan,
    buffered_terms,
    entered,
    record,
    refused,
    reply,
    restarted,
    trained,
)

WITNESS = str(
    VerifierKey(
        name="w.example/1",
        algorithm=COSIGNATURE_V1,
        public=Ed25519PrivateKey.generate().public_key().public_bytes_raw(),
    )
)


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    return Devices(tmp_path, count=5, plan=buffered_plan(**NONE))


@pytest.fixture
def epoch(devices: Devices) -> Epoch:
    """Everybody is in the first epoch."""
    return entered(devices)


# -- what goes well --------------------------------------------------------------------------------


def test_stale_updates_count_scaled_and_every_buffer_is_summed(epoch: Epoch) -> None:
    devices, mechanism = epoch.devices.all, epoch.terms.plan.build_mechanism()
    epoch.train(devices[4])  # from version 0; it uploads when there are two more
    epoch.contribute(0, 1, 2)
    full = mechanism.decode(epoch.settle().total)
    epoch.contribute(0, 1, 3)
    epoch.settle()
    for client in (0, 2):
        epoch.contribute(client)
    epoch.aggregator.receive(4, epoch.upload(devices[4], 4, staleness=2))
    stale = mechanism.decode(epoch.settle().total)
    assert full == pytest.approx(np.full(D, 0.1), abs=4e-3)
    assert stale == pytest.approx(np.full(D, 0.1) * (2 + 1 / np.sqrt(3)) / 3, abs=4e-3)
    assert [record(each).uploaded for each in devices] == [[1, 2, 3], [1, 2], [1, 3], [2], [3]]
    assert {record(each).version for each in devices} == {3}


def test_entering_costs_nothing_and_an_upload_one_participation(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    assert record(device).joined == []
    epoch.train(device)
    assert record(device).joined == []
    epoch.upload(device, 0)
    assert record(device).joined == [1]


def test_who_contributed_as_often_as_was_agreed_is_asked_no_more(devices: Devices) -> None:
    terms = buffered_terms(devices, plan=buffered_plan(max_participations=1, **NONE))
    epoch = Epoch(devices, terms)
    epoch.invite()
    epoch.contribute(0, 1, 2)
    epoch.settle()
    assert devices.all[0].session.handle(epoch.model(2)) is None
    cause, reason = refused(devices.all[0].handle(epoch.begin()))
    assert cause == "PARTICIPATION"
    assert "asked to take part 2 times in 2 buffers: 1 were agreed to" in reason
    assert devices.all[0].session.take_work() is None


@pytest.mark.parametrize(
    "limits",
    [
        {"corrupt": 0.45},
        {"colluders": 1},
        {"max_roster_version": 0},
        {"max_clip": 0.1},
        {"max_participations": 0},
        {"tasks": {}},
        {"witnesses": (WITNESS,), "witness_threshold": 1},
    ],
)
def test_a_limit_tightened_later_counts_in_a_running_epoch(
    devices: Devices, limits: dict[str, Any]
) -> None:
    epoch = Epoch(devices, buffered_terms(devices))
    epoch.invite(0, 1)
    for client in (0, 1, 2):
        device = devices.all[client]
        if client == 0:
            epoch.train(device)
        device.policy[0] = dataclasses.replace(device.policy[0], **limits)
    named, said = max(limits), []
    told = epoch.aggregator.next_upload(0)
    said.append(refused(devices.all[0].handle(epoch.collect(told))))
    assert devices.all[1].session.handle(epoch.model(epoch.buffer)) is None
    said.append(refused(devices.all[1].handle(epoch.begin())))
    assert devices.all[2].session.handle(epoch.model()) is None
    said.append(refused(devices.all[2].handle(epoch.invitation(2))))
    assert all(("not on the owner's list" if named == "tasks" else named) in why for _, why in said)
    assert not any(record(each).joined for each in devices.all)


def test_what_is_trained_is_told_with_the_consent(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    assert not device.handle(offer(epoch.terms)).consent.HasField("training")
    device.session.handle(epoch.model())
    device.session.handle(epoch.begin())
    found = device.handle(offer(epoch.terms)).consent.training
    assert (found.job, found.round, found.version, found.done) == (b"j" * 32, 1, 0, False)
    trained(device)
    assert device.handle(offer(epoch.terms)).consent.training.done
    discard = fleet_pb2.Discard(job=b"j" * 32, round=1)
    assert device.session.handle(fleet_pb2.Down(discard=discard)) is None
    assert not device.handle(offer(epoch.terms)).consent.HasField("training")


def test_training_that_was_replaced_says_nothing(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    device.session.handle(epoch.model())
    device.session.handle(epoch.begin())
    first = device.session.take_work()
    assert first is not None
    epoch.tell([0])
    epoch.next_buffer()
    assert epoch.train(device).version == 1
    assert first() is None


def test_training_that_fails_is_one_refusal_that_quotes_nothing(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    device.worker.error = ValueError("row 17 is a cat")
    device.session.handle(epoch.model())
    device.session.handle(epoch.begin())
    work = device.session.take_work()
    assert work is not None
    assert refused(work()) == ("TRAINING", "")
    message = epoch.aggregator.next_upload(0)
    assert refused(device.handle(epoch.collect(message)))[0] == "TRAINING"


def test_a_training_epoch_after_epoch_goes_on(epoch: Epoch) -> None:
    """One that trains when an epoch ends uploads in the next one."""
    devices = epoch.devices
    epoch.train(devices.all[4])
    devices.all[4].session.handle(epoch.outcome(committed=False, version=0, over=True))
    again = Epoch(devices, epoch.terms, number=2)
    again.invite(4)
    assert kind_of(again.upload(devices.all[4], 4)) is Kind.UPLOAD


def test_another_job_ends_an_epoch_and_its_training(epoch: Epoch) -> None:
    device, job = epoch.devices.all[0], epoch.assignment.context.job_hash
    epoch.train(device)
    other = epoch.devices.terms(job=b"k" * 32, buffering=BUFFERING)
    assert not device.handle(offer(other)).consent.HasField("training")
    assert device.session._sealing.bound(job) is None
    cause, _ = refused(device.handle(epoch.collect(epoch.aggregator.next_upload(0))))
    assert cause == "PROTOCOL"
    device.session.handle(epoch.model())
    assert "epoch 1 is asked for again" in refused(device.handle(epoch.invitation(0)))[1]


def test_a_host_that_cannot_train_aside_declines(tmp_path: Path) -> None:
    devices = Devices(tmp_path, count=5, plan=buffered_plan(**NONE))
    devices.all[0].session._takes_buffered = False
    cause, reason = refused(devices.all[0].handle(offer(devices.terms(buffering=BUFFERING))))
    assert cause == "TERMS"
    assert "the job's rounds are buffered" in reason


# -- crashes ---------------------------------------------------------------------------------------


def test_an_upload_that_was_lost_on_its_way_is_sent_again_to_the_bit(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)
    ask = epoch.collect(epoch.aggregator.next_upload(0))
    first = reply(device.handle(ask))
    assert reply(device.handle(ask)) == first
    device = restarted(epoch, 0)
    epoch.invite(0)
    assert reply(device.handle(ask)) == first
    assert record(device).joined == [1]
    cause, reason = refused(device.handle(epoch.collect(epoch.aggregator.next_upload(0))))
    assert cause == "PARTICIPATION"
    assert "this device has already sent a vector in buffer 1" in reason


def test_a_crash_while_it_trains_costs_nothing(epoch: Epoch) -> None:
    epoch.train(epoch.devices.all[0])
    device = restarted(epoch, 0)
    epoch.invite(0)
    cause, reason = refused(device.handle(epoch.collect(epoch.aggregator.next_upload(0))))
    assert (cause, reason) == ("TRAINING", "")
    assert record(device).joined == []
    epoch.contribute(0, 1, 2)
    assert epoch.settle().included == (0, 1, 2)


def die(*_: object, **__: object) -> bytes:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["secure_agg.member.deal", "client.buffered.Agent.withdraw"])
def test_a_crash_around_an_upload_leaves_its_buffer_no_second_one(
    epoch: Epoch, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)
    monkeypatch.setattr(step, die)
    with pytest.raises(KeyboardInterrupt):
        epoch.upload(device, 0)
    monkeypatch.undo()
    device = restarted(epoch, 0)
    epoch.invite(0)
    assert record(device).joined == record(device).uploaded == [1]
    epoch.train(device)
    cause, reason = refused(device.handle(epoch.collect(epoch.aggregator.next_upload(0))))
    assert cause == "PARTICIPATION"
    assert "already sent a vector in buffer 1" in reason


def test_a_crash_between_count_and_upload_counts_and_goes_on(
    epoch: Epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)
    monkeypatch.setattr("client.buffered.privatize", die)
    with pytest.raises(KeyboardInterrupt):
        epoch.upload(device, 0)
    monkeypatch.undo()
    device = restarted(epoch, 0)
    epoch.invite(0)
    assert record(device).joined == [1]
    assert record(device).uploaded == []
    first, before = record(device).sent[1], epoch.assignment
    epoch.assignment = dataclasses.replace(before, weights=np.ones(D, dtype=np.float32))
    epoch.contribute(0)  # from another model, this time
    epoch.assignment = before
    sent = record(device).sent[1]
    assert sent.weights == hashlib.sha256(np.ones(D, dtype="<f4").tobytes()).hexdigest()
    assert (sent.nonce, sent.event) == (first.nonce, first.event)
    assert record(restarted(epoch, 0)).sent[1] == sent
    epoch.invite(0)
    epoch.contribute(1, 2)
    assert epoch.settle().included == (0, 1, 2)
    assert record(device).joined == [1]


def test_a_member_that_lost_its_keys_sits_the_epoch_out(epoch: Epoch) -> None:
    epoch.contribute(0)
    epoch.devices.reboot()
    device = restarted(epoch, 0)
    device.session.handle(epoch.model())
    cause, reason = refused(device.handle(epoch.invitation(0)))
    assert cause == "SECURE_AGGREGATION"
    assert "upload 0 has left in this round" in reason


def test_the_keys_of_an_epoch_that_is_over_are_gone(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    job = epoch.assignment.context.job_hash
    sealing = device.session._sealing
    bound = sealing.bound(job)
    assert bound is not None
    assert bound.private
    device.session.handle(epoch.outcome(committed=False, version=0, over=True))
    assert sealing.bound(job) is None
    assert record(device).over == 1


def test_who_disputes_a_ledger_trains_and_sends_nothing_more(epoch: Epoch) -> None:
    one, two = epoch.devices.all[:2]
    epoch.train(one)
    book = Book(epoch.terms)
    book.entries[0][1]["job"] = "00" * 32
    for device in (one, two):
        cause, _ = refused(device.session.handle(book.told()))
        assert cause == "LEDGER"
    cause, _ = refused(one.handle(epoch.collect(epoch.aggregator.next_upload(0))))
    assert cause == "LEDGER"
    assert two.session.handle(epoch.model(epoch.buffer)) is None
    cause, _ = refused(two.session.handle(epoch.begin()))
    assert cause == "LEDGER"
    assert two.session.take_work() is None
    assert not record(one).uploaded


def test_a_sum_is_opened_as_that_of_its_buffer_and_of_no_other(epoch: Epoch) -> None:
    """Noted under another number, it could be called aborted before anything was opened."""
    devices = epoch.devices.all
    epoch.contribute(0, 1, 2)
    messages = epoch.aggregator.settle()
    while messages:
        for client, message in messages.items():
            for buffer in (2, 3):
                down = epoch.duty(message)
                down.stage.round = buffer
                cause, reason = refused(devices[client].handle(down))
                assert cause == "PROTOCOL"
                assert f"another sum than that of buffer {buffer}" in reason
            epoch.aggregator.receive(client, reply(devices[client].handle(epoch.duty(message))))
        messages = epoch.aggregator.close_stage()
    assert {tuple(record(each).answered) for each in devices} == {(1,)}
    book = Book(epoch.terms)
    book.reserve(1)
    book.entries.append(("abort", {"round": 1, "before_unmask": True}))
    assert refused(devices[0].session.handle(book.told()))[0] == "LEDGER"
    assert record(devices[0]).dispute
