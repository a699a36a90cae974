"""When an upload leaves does not tell how much it was trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.answer_time import Answer, AnswerTime, stricter, unit_seconds
from fedsys.errors import ProtocolError
from fedsys.wire import fleet_pb2
from fedsys.wire.terms import Terms
from tests.client.devices import Conversation, Devices, offer


class Clock:
    """Time that passes when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def terms(tmp_path: Path) -> Terms:
    return Devices(tmp_path).terms(dimension=300_000, local={"epochs": 2})


def answered(
    terms: Terms, seconds: list[float], answer: Answer = "at-once", deadline: float = 600.0
) -> list[float]:
    """After how long a device's answers leave whose trainings take these times."""
    clock = Clock()
    held, found = AnswerTime(clock, clock.sleep), []
    for each in seconds:
        asked = clock.now
        clock.now += each
        held.hold(terms, answer, asked=asked, deadline=deadline)
        found.append(clock.now - asked)
    return found


def test_a_thousand_devices_answer_at_a_few_times_that_the_job_alone_sets(terms: Terms) -> None:
    examples = np.arange(1, 1001)
    training = 1.8e-3 * 2 * examples
    times = [answered(terms, [0.0, each])[1] for each in training]
    assert terms.answer == "bucketed"
    assert all(time >= each for time, each in zip(times, training, strict=True))
    buckets = {round(time / unit_seconds(terms), 9) for time in times}
    assert buckets == {1.0, 2.0, 4.0}
    plain = dataclasses.replace(terms, answer="at-once")
    assert [answered(plain, [0.0, each])[1] for each in training] == pytest.approx(training)


def test_the_unit_is_public(terms: Terms) -> None:
    unit = unit_seconds(terms)
    assert unit == pytest.approx(0.05 + 6e-9 * 300_000 * 2 * 256)
    assert unit_seconds(dataclasses.replace(terms, local={})) < unit
    hostile: Any
    for hostile in (-1, 10**400, "many", None, True):
        assert unit_seconds(dataclasses.replace(terms, local={"epochs": hostile})) < unit


def test_a_device_near_the_end_of_a_bucket_does_not_show_how_near(terms: Terms) -> None:
    unit = unit_seconds(terms)
    near = [0.0] + [unit * (0.99 if number % 3 else 1.01) for number in range(60)]
    times = {round(time / unit, 9) for time in answered(terms, near)[2:]}
    assert times == {2.0}


def test_after_a_busy_spell_it_comes_down_again(terms: Terms) -> None:
    unit = unit_seconds(terms)
    times = answered(terms, [0.0, unit * 7] + [unit * 0.5] * 5)
    assert [round(time / unit, 9) for time in times][1:] == [8.0] * 4 + [1.0] * 2


def test_a_slow_start_holds_up_no_later_round(terms: Terms) -> None:
    unit = unit_seconds(terms)
    times = answered(terms, [unit * 30, unit * 0.1])
    assert [round(time / unit, 9) for time in times] == [32.0, 1.0]


def test_at_the_deadline_nothing_is_to_be_seen(terms: Terms) -> None:
    times = answered(terms, [0.1, 3.0, 500.0], "at-deadline")
    assert times == pytest.approx([540.0] * 3)


@pytest.mark.parametrize("answer", ["bucketed", "at-deadline"])
def test_a_deadline_is_no_way_to_ask_how_long_it_took(terms: Terms, answer: Answer) -> None:
    """A coordinator that announces a short one learns a bucket, not a time."""
    unit = unit_seconds(terms)
    times = {
        round(answered(terms, [0.0, each * unit], answer, deadline=0.001)[1] / unit, 9)
        for each in np.linspace(0.01, 3.9, 50)
    }
    assert times == {1.0, 2.0, 4.0}
    clock = Clock()
    held = AnswerTime(clock, clock.sleep)
    for announced in (600.0, 10.0, 0.5):
        asked = clock.now
        clock.now += 1.0
        held.hold(terms, "at-deadline", asked=asked, deadline=announced)
        assert clock.now - asked == pytest.approx(540.0)


def test_the_stricter_of_job_and_owner_holds() -> None:
    assert stricter("at-once", "at-once") == "at-once"
    assert stricter("at-deadline", "bucketed") == stricter("bucketed", "at-deadline")
    assert stricter("at-deadline", "bucketed") == "at-deadline"


def test_a_session_holds_its_upload_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Devices(tmp_path)
    clock = Clock()
    device = devices.all[0]
    device.session._answer_time = AnswerTime(clock, clock.sleep)
    train = device.worker.train

    def slow(*arguments: Any) -> Any:
        clock.now += 0.02
        return train(*arguments)

    monkeypatch.setattr(device.worker, "train", slow)
    terms = devices.terms()
    for each in devices.all:
        each.handle(offer(terms))
    talk, passed, before = Conversation(devices, terms), [], clock.now
    answers = {k: talk.invite(each, k) for k, each in enumerate(devices.all)}
    passed.append(clock.now - before)
    while True:
        talk.close(answers)
        if not talk.messages:
            break
        stages = {k: fleet_pb2.Down(stage=talk.stage(k)) for k in talk.messages}
        before = clock.now
        answers = {k: devices.all[k].handle(stage) for k, stage in stages.items()}
        passed.append(clock.now - before)
    assert sorted(passed)[-1] == pytest.approx(unit_seconds(terms))
    assert sum(each > 0 for each in passed) == 1


def test_terms_name_a_time_that_is_known(tmp_path: Path) -> None:
    text = Devices(tmp_path).terms().encoded
    with pytest.raises(ProtocolError, match="wrong type"):
        Terms.decode(text.replace(b'"bucketed"', b'"sometimes"'))
