"""What a coordinator announces of versions, epochs and buffers, against real devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.journal import JobRecord
from fedsys.wire.terms import Buffering
from secure_agg import Kind
from secure_agg.messages import HEADER_SIZE, U32, frame, kind_of
from tests.client.devices import D, Devices, offer
from tests.client.epochs import (
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
from tests.client.test_session_fuzzing import dice


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    return Devices(tmp_path, count=5, plan=buffered_plan(**NONE))


@pytest.fixture
def epoch(devices: Devices) -> Epoch:
    return entered(devices)


# -- a coordinator that says something else about versions -----------------------------------------


@pytest.mark.parametrize("version", [0, 1, 3])
def test_a_version_that_was_not_the_newest_cannot_be_trained_from(
    epoch: Epoch, version: int
) -> None:
    device = epoch.devices.all[0]
    for _ in range(2):
        epoch.tell([0])
        epoch.next_buffer()
    device.session.handle(epoch.model(3))
    cause, reason = refused(device.handle(epoch.begin(version=version)))
    assert cause == "STALE"
    assert f"version {version} of the model is announced as the newest" in reason
    assert "knows of version 2" in reason
    device.session.handle(epoch.model(3))
    assert device.session.handle(epoch.begin()) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 0, "staleness": 0}, "version 0 of the model is announced as the newest"),
        ({"version": 2, "staleness": 2}, "version 2 of the model is announced as the newest"),
        ({"staleness": 0}, "a staleness of 0 is announced for an update of version 0"),
        ({"staleness": 2}, "a staleness of 2 is announced for an update of version 0"),
        ({"staleness": 2**32 - 1}, "a staleness of 4294967295 is announced"),
    ],
)
def test_a_wrong_staleness_is_refused_and_counts_nothing(
    epoch: Epoch, change: dict[str, int], says: str
) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)
    epoch.tell([0])
    epoch.next_buffer()
    message = epoch.aggregator.next_upload(0)
    cause, reason = refused(device.handle(epoch.collect(message, **change)))
    assert cause == "STALE"
    assert says in reason
    assert record(device).joined == []
    assert kind_of(reply(device.handle(epoch.collect(message, 1)))) is Kind.UPLOAD


def test_an_update_that_is_too_old_never_leaves(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)
    for _ in range(3):
        epoch.tell([0])
        epoch.next_buffer()
    again = Epoch(epoch.devices, epoch.terms, number=4, version=3)
    again.invite(0)
    message = again.aggregator.next_upload(0)
    cause, reason = refused(device.handle(again.collect(message, 3)))
    assert cause == "STALE"
    assert "an update that is 3 versions old, where 2 were agreed to" in reason
    assert record(device).joined == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 0}, "version 0 of the model is announced after version 0"),
        ({"version": 2}, "version 2 of the model is announced after version 0"),
        ({"committed": False}, "version 1 of the model is announced after version 0"),
    ],
)
def test_a_buffer_makes_one_version_or_none(
    epoch: Epoch, change: dict[str, Any], says: str
) -> None:
    device = epoch.devices.all[0]
    cause, reason = refused(device.handle(epoch.outcome(**change)))
    assert cause == "STALE"
    assert says in reason
    assert record(device).version == 0


def test_versions_are_not_rolled_back_over_a_restart(epoch: Epoch) -> None:
    epoch.tell([0])
    device = restarted(epoch, 0)
    device.session.handle(epoch.model())
    cause, reason = refused(device.handle(epoch.invitation(0)))
    assert cause == "STALE"
    assert "version 0 of the model is announced in epoch 1" in reason
    assert "knows of version 1" in reason
    device.session.handle(epoch.model())
    assert device.session.handle(epoch.invitation(0, version=1)) is None


def test_versions_are_not_more_than_there_were_buffers(epoch: Epoch) -> None:
    device = restarted(epoch, 0)
    device.session.handle(epoch.model())
    cause, _ = refused(device.handle(epoch.invitation(0, version=4)))
    assert cause == "STALE"


# -- a coordinator that replays, or asks twice -----------------------------------------------------


def test_an_epoch_that_is_over_is_not_entered_again(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    device.session.handle(epoch.outcome(committed=False, version=0, over=True))
    for again in (device, restarted(epoch, 0)):
        again.session.handle(epoch.model())
        cause, reason = refused(again.handle(epoch.invitation(0)))
        assert cause == "PARTICIPATION"
        assert "epoch 1 is asked for again" in reason


def test_an_epoch_before_the_newest_is_not_entered_again(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    later = Epoch(epoch.devices, epoch.terms, number=3)
    later.invite(0)
    device.session.handle(epoch.model())
    cause, reason = refused(device.handle(epoch.invitation(0)))
    assert cause == "PARTICIPATION"
    assert "epoch 1 is asked for again: epoch 3 was entered" in reason


def test_an_epoch_has_one_session(epoch: Epoch) -> None:
    """The same number with another cohort is another committee, and other keys."""
    fork = Epoch(epoch.devices, epoch.terms, cohort=(0, 1, 2, 3))
    device = restarted(epoch, 0)
    epoch.devices.reboot()  # what is not known from memory is known from the disk
    device = restarted(epoch, 0)
    device.session.handle(fork.model())
    cause, reason = refused(device.handle(fork.invitation(0)))
    assert cause == "SECURE_AGGREGATION"
    assert "was entered in another session" in reason


def test_other_weights_are_another_epoch(epoch: Epoch) -> None:
    other = Epoch(epoch.devices, epoch.terms, weights=np.ones(D, np.float32), keys=epoch.keys)
    device = epoch.devices.all[0]
    device.session.handle(other.model())
    cause, reason = refused(device.handle(other.invitation(0)))
    assert cause == "SECURE_AGGREGATION"
    assert "was entered in another session" in reason


def test_two_buffers_are_not_closed_over_one_upload(epoch: Epoch) -> None:
    """The uploads of the first sum, delivered as those of a second: nobody endorses them."""
    epoch.contribute(0, 1, 2)
    kept = dict(epoch.aggregator._full[0]._uploads)
    delivered = dict(epoch.aggregator._full[0]._sealed)
    epoch.settle()
    second = epoch.aggregator._filling
    second._uploads.update(kept)
    second._sealed.update(delivered)
    for device, client in ((each, k) for k, each in enumerate(epoch.devices.all)):
        deliveries = second.deliveries(epoch.cohort)
        second._sealed.update(delivered)
        reply(device.handle(epoch.duty(deliveries[client])))
        bits = bytes([0b111]).ljust(-(-len(epoch.cohort) // 8), b"\0")
        proposal = frame(Kind.PROPOSAL, epoch.aggregator.session.hash, U32.pack(1), bits)
        cause, reason = refused(device.handle(epoch.duty(proposal)))
        assert cause == "SECURE_AGGREGATION"
        assert "upload" in reason
        assert "already" in reason or "after" in reason, reason


def test_a_second_upload_into_one_buffer_is_refused(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)
    epoch.upload(device, 0)
    device.session.handle(epoch.model(1))
    assert device.session.handle(epoch.begin()) is None
    trained(device)
    cause, reason = refused(device.handle(epoch.collect(epoch.aggregator.next_upload(0))))
    assert cause == "PARTICIPATION"
    assert "has already sent a vector in buffer 1; it does not send a second one" in reason


def test_one_update_is_uploaded_once(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)
    epoch.upload(device, 0)
    epoch.tell([0])
    epoch.next_buffer()
    cause, _ = refused(device.handle(epoch.collect(epoch.aggregator.next_upload(0), 1)))
    assert cause == "TRAINING"


def test_an_upload_number_is_used_once(epoch: Epoch) -> None:
    """Whatever the buffer is called, no number asks for two uploads."""
    device = epoch.devices.all[0]
    epoch.train(device)
    message = epoch.aggregator.next_upload(0)
    reply(device.handle(epoch.collect(message)))
    epoch.tell([0])
    epoch.next_buffer()
    device.session.handle(epoch.duty(b"\x00" * HEADER_SIZE))
    epoch.train(device)
    other = frame(Kind.NEXT, epoch.aggregator.session.hash, U32.pack(0))
    cause, reason = refused(device.handle(epoch.collect(other)))
    assert cause == "SECURE_AGGREGATION"
    assert "upload 0 has left" in reason


def test_a_vector_that_could_not_leave_leaves_in_no_other_buffer(epoch: Epoch) -> None:
    """Asked for under a number that was used, it would else wait for a buffer that has its own, and
    the one that was counted for it could be asked for another."""
    device = epoch.devices.all[0]
    epoch.contribute(0)
    epoch.tell([0])
    epoch.next_buffer()
    epoch.train(device)

    def asked(number: int, buffer: int) -> tuple[str, str]:
        message = frame(Kind.NEXT, epoch.aggregator.session.hash, U32.pack(number))
        return refused(device.handle(epoch.collect(message, round=buffer)))

    assert "upload 0 has left in this round" in asked(0, 2)[1]
    for buffer in (1, 2):
        assert f"has already sent a vector in buffer {buffer}" in asked(2, buffer)[1]
    assert record(device).joined == record(device).uploaded == [1, 2]


def test_an_upload_is_no_duty_of_the_committee(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)
    for message in (epoch.aggregator.next_upload(0), epoch.openings[0]):
        cause, reason = refused(device.handle(epoch.duty(message)))
        assert cause == "PROTOCOL"
        assert "as if it were the committee's duty" in reason
    cause, reason = refused(device.handle(epoch.collect(epoch.openings[0])))
    assert "by a message other than NEXT" in reason
    assert record(device).joined == []


@pytest.mark.parametrize("number", [0, 4, 9])
def test_a_buffer_is_one_of_the_epochs(epoch: Epoch, number: int) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)
    message = epoch.aggregator.next_upload(0)
    cause, reason = refused(device.handle(epoch.collect(message, round=number)))
    assert cause == "TERMS"
    assert f"buffer {number} is outside the epoch's, which are 1 to 3" in reason
    device.session.handle(epoch.model(number))
    assert refused(device.handle(epoch.begin(round=number)))[0] == "TERMS"


def test_buffers_end_where_the_budget_does(tmp_path: Path) -> None:
    plan = buffered_plan()
    budget = JobRecord(job="", name="", terms="", plan=plan).after(1, "guarantee") * 1.01
    epoch = entered(Devices(tmp_path, count=5, plan=plan.changed(budget=budget)))
    epoch.contribute(0, 1, 2)
    epoch.settle()
    device = epoch.devices.all[0]
    device.session.handle(epoch.model(2))
    cause, reason = refused(device.handle(epoch.begin()))
    assert cause == "TERMS"
    assert "the job ends after 1 rounds" in reason


def test_buffers_do_not_go_back(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    epoch.tell([0])
    epoch.next_buffer()
    epoch.train(device)
    epoch.upload(device, 0)
    device.session.handle(epoch.model(1))
    cause, reason = refused(device.handle(epoch.begin(round=1)))
    assert cause == "PARTICIPATION"
    assert "buffer 1 comes after buffer 2" in reason


def test_whatever_is_announced_an_upload_is_one_that_was_agreed_to(
    epoch: Epoch,
) -> None:
    """Hundreds of messages with numbers drawn again: what leaves is of one buffer each, of the
    newest version that was told, as old as it is, and not more often than agreed."""
    numbers = dice("announced")

    def draw(most: int) -> int:
        return next(numbers) % (most + 1)

    device, left = epoch.devices.all[0], list[tuple[int, int, int, int]]()
    known = base = 0
    for _ in range(400):
        number, version, staleness = draw(4), draw(4), draw(3)
        what = draw(3)
        if what == 0:
            device.session.handle(epoch.model(number))
            answer = device.session.handle(epoch.begin(round=number, version=version))
            work = device.session.take_work()
            if work is not None:
                assert answer is None
                assert version == known < number
                assert work() is not None
                base = version
        elif what == 1 and known < 3:
            change = {"version": version, "committed": bool(draw(1)), "round": number}
            answer = device.session.handle(epoch.outcome(**change))
            if answer is None or not answer.HasField("refusal"):
                assert version == known + change["committed"]
                known = version
        else:
            message = epoch.aggregator.next_upload(0)
            change = {"version": version, "round": number}
            answer = device.handle(epoch.collect(message, staleness, **change))
            if answer.HasField("answer"):
                assert kind_of(answer.answer.message) is Kind.UPLOAD
                assert version == known
                assert staleness == known - base <= 2
                left.append((number, version, base, staleness))
    rounds = [each[0] for each in left]
    assert rounds == sorted(set(rounds))
    assert len(rounds) <= 3
    assert left, "nothing was tried that was right"
    assert record(device).joined == record(device).uploaded == rounds


# -- what was not agreed to ------------------------------------------------------------------------


def test_other_parameters_than_the_plan_gives_are_refused(devices: Devices) -> None:
    terms = buffered_terms(devices)
    honest = Epoch(devices, terms)
    weaker = dataclasses.replace(honest.announced, min_included=2)
    cheat = Epoch(devices, terms, params=weaker, keys=honest.keys)
    devices.all[0].session.handle(cheat.model())
    cause, reason = refused(devices.all[0].handle(cheat.invitation(0)))
    assert cause == "SECURE_AGGREGATION"
    assert "differ from those that the agreed plan gives for a cohort of 5" in reason


def test_an_epoch_has_as_many_buffers_as_was_agreed(devices: Devices) -> None:
    terms = buffered_terms(devices)
    cheat = Epoch(devices, terms, buffers=4)
    devices.all[0].session.handle(cheat.model())
    cause, reason = refused(devices.all[0].handle(cheat.invitation(0)))
    assert cause == "SECURE_AGGREGATION"
    assert "buffers" in reason


def test_an_epoch_is_not_larger_than_was_agreed(tmp_path: Path) -> None:
    devices = Devices(tmp_path, count=8, plan=buffered_plan(8, size=2, **NONE))
    for device in devices.all:
        device.policy[0] = dataclasses.replace(device.policy[0], min_cohort=2)
    terms = buffered_terms(devices, buffering=Buffering(concurrency=2, epoch=2, max_staleness=2))
    cheat = Epoch(devices, terms)
    devices.all[0].session.handle(cheat.model())
    cause, reason = refused(devices.all[0].handle(cheat.invitation(0)))
    assert cause == "COHORT"
    assert "an epoch of 8 members, where at least 2 and at most 6 were agreed to" in reason


def test_terms_say_how_they_buffer_or_are_none(devices: Devices) -> None:
    terms = devices.terms(plan=buffered_plan(**NONE))
    with pytest.raises(Exception, match="buffered rounds require arrivals as cohorts"):
        devices.all[0].session.handle(offer(terms))
    few = devices.terms(buffering=Buffering(concurrency=2, epoch=2, max_staleness=2))
    cause, reason = refused(devices.all[0].handle(offer(few)))
    assert cause == "TERMS"
    assert "2 devices train at a time, where a buffer takes 3" in reason


def test_a_paused_device_begins_nothing_and_sends_nothing(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)
    device.session.paused.touch()
    answer = device.handle(epoch.collect(epoch.aggregator.next_upload(0)))
    assert refused(answer)[0] == "PAUSED"
    assert answer.refusal.passing
    device.session.handle(epoch.model())
    assert refused(device.handle(epoch.begin()))[0] == "PAUSED"
    device.session.paused.unlink()
    assert kind_of(epoch.upload(device, 0)) is Kind.UPLOAD


def test_nothing_is_done_outside_an_epoch(devices: Devices) -> None:
    terms = buffered_terms(devices)
    outside = Epoch(devices, terms)
    device = devices.all[0]
    message = outside.aggregator.next_upload(0)
    for down in (outside.begin(), outside.collect(message), outside.duty(message)):
        assert refused(device.handle(down)) == (
            "PROTOCOL",
            "this device is in no epoch of that job",
        )
