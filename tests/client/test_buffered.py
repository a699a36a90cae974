"""A device in buffered rounds: what it sends, what it counts, and a coordinator that cheats."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsys.wire import fleet_pb2
from fedsys.wire.terms import Buffering
from secure_agg import Kind
from secure_agg.messages import HEADER_SIZE, U32, frame, kind_of
from tests.client.devices import D, Device, Devices, offer
from tests.client.epochs import (
    BUFFERING,
    NONE,
    Epoch,
    buffered_plan,
    buffered_terms,
    refused,
    reply,
    trained,
)
from tests.client.test_session_fuzzing import dice


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    return Devices(tmp_path, count=5, plan=buffered_plan(**NONE))


@pytest.fixture
def epoch(devices: Devices) -> Epoch:
    """Everybody is in the first epoch."""
    found = Epoch(devices, buffered_terms(devices))
    found.invite()
    return found


def restarted(epoch: Epoch, client: int) -> Device:
    """A device's process after a crash, which was offered the job again and is not invited yet."""
    device = epoch.devices.start(client)
    epoch.devices.all[client] = device
    assert device.handle(offer(epoch.terms)).HasField("consent")
    return device


def record(device: Device) -> Any:
    return next(iter(device.session.journal.jobs.values()))


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
    assert "asked for the 2th time in 2 buffers: 1 were agreed to" in reason
    assert devices.all[0].session.take_work() is None


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
    assert "a vector has left this device in buffer 1 already" in reason


def test_a_crash_while_it_trains_costs_nothing(epoch: Epoch) -> None:
    epoch.train(epoch.devices.all[0])
    device = restarted(epoch, 0)
    epoch.invite(0)
    cause, reason = refused(device.handle(epoch.collect(epoch.aggregator.next_upload(0))))
    assert (cause, reason) == ("TRAINING", "")
    assert record(device).joined == []
    epoch.contribute(0, 1, 2)
    assert epoch.settle().included == (0, 1, 2)


def test_a_crash_between_count_and_upload_counts_and_goes_on(
    epoch: Epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)

    def die(*_: object, **__: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("secure_agg.member.deal", die)
    with pytest.raises(KeyboardInterrupt):
        epoch.upload(device, 0)
    monkeypatch.undo()
    device = restarted(epoch, 0)
    epoch.invite(0)
    assert record(device).joined == [1]
    assert record(device).uploaded == []
    epoch.contribute(0, 1, 2)
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
    assert "told of version 2" in reason
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
    assert "told of version 1" in reason
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
    assert "a vector has left this device in buffer 1 already; there is no second one" in reason


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


def test_an_upload_is_no_duty_of_the_committee(epoch: Epoch) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)
    for message in (epoch.aggregator.next_upload(0), epoch.openings[0]):
        cause, reason = refused(device.handle(epoch.duty(message)))
        assert cause == "PROTOCOL"
        assert "as if it were the committee's duty" in reason
    cause, reason = refused(device.handle(epoch.collect(epoch.openings[0])))
    assert "by another message than NEXT" in reason
    assert record(device).joined == []


@pytest.mark.parametrize("number", [0, 4, 9])
def test_a_buffer_is_one_of_the_epochs(epoch: Epoch, number: int) -> None:
    device = epoch.devices.all[0]
    epoch.train(device)
    message = epoch.aggregator.next_upload(0)
    cause, reason = refused(device.handle(epoch.collect(message, round=number)))
    assert cause == "TERMS"
    assert f"buffer {number} is not one of the epoch's, which are 1 to 3" in reason
    device.session.handle(epoch.model(number))
    assert refused(device.handle(epoch.begin(round=number)))[0] == "TERMS"


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
    """Hundreds of messages with numbers drawn anew: what leaves is of one buffer each, of the
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
    assert "not those that the agreed plan gives for a cohort of 5" in reason


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
    with pytest.raises(Exception, match="buffered rounds go with cohorts that are arrivals"):
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
