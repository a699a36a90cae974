"""A coordinator's side of an epoch of buffered rounds, message by message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy import PrivacyPlan
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.terms import Buffering, Terms
from secure_agg import EpochAggregator, SecAggParams, SumResult
from tests.client.devices import D, Device, Devices, offer, params_of, plan_of

BUFFERING = Buffering(concurrency=5, epoch=3, max_staleness=2)
NONE: dict[str, Any] = {"mechanism": "none", "noise_multiplier": 0.0}


def buffered_plan(count: int = 5, size: int = 3, **change: Any) -> PrivacyPlan:
    """So many devices, of whom so many fill a buffer."""
    values: dict[str, Any] = {
        "sampling": "arrivals",
        "expected_cohort": size,
        "cap": size,
        "min_survivors": size,
        "max_participations": 3,
        "rounds": 8,
        "corrupt": 0.0,
    }
    return plan_of(count, **{**values, **change})


@dataclass
class Epoch:
    """One epoch of a coordinator with its devices.

    Attributes:
        devices: on the roster.
        terms: of the job.
        number: of its first buffer.
        version: versions of the model so far.
        cohort: invited; everybody by default.
        params: other ones than the terms give, for a coordinator that cheats.
        buffers: of its sums; as agreed by default.
        weights: of the model that it begins with.
        keys: how many of each device's prekeys were named before.
    """

    devices: Devices
    terms: Terms
    number: int = 1
    version: int = 0
    cohort: tuple[int, ...] = ()
    params: SecAggParams | None = None
    buffers: int | None = None
    weights: NDArray[np.float32] = field(default_factory=lambda: np.zeros(D, dtype=np.float32))
    keys: Mapping[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        devices, terms, suite = self.devices, self.terms, self.terms.secagg_suite
        assert terms.buffering is not None
        self.assignment = Assignment(
            job=terms.job,
            round=self.number,
            task=terms.task,
            weights=self.weights,
            local=terms.local,
            mechanism=terms.plan.event().to_json(),
            seed=terms.seed,
            terms=terms.digest,
        )
        self.cohort = self.cohort or tuple(range(devices.count))
        self.keys = self.keys or {k: devices.take(k, suite) for k in self.cohort}
        self.announced = self.params or params_of(terms, devices.roster, len(self.cohort))
        self.aggregator = EpochAggregator(
            roster=devices.roster.roster,
            params=self.announced,
            context=self.assignment.epoch_context(self.buffers or terms.buffering.epoch),
            cohort=self.cohort,
            prekeys=self.keys,
            size=terms.plan.cap,
        )
        self.openings: Mapping[int, bytes] = self.aggregator.begin()
        self.buffer = self.number

    # -- messages ---------------------------------------------------------------------------------

    def model(self, number: int | None = None) -> fleet_pb2.Down:
        return fleet_pb2.Down(
            model=fleet_pb2.Model(
                job=self.terms.job,
                round=self.number if number is None else number,
                weights=self.assignment.weights_bytes,
            )
        )

    def invitation(self, client: int, **change: Any) -> fleet_pb2.Down:
        values: dict[str, Any] = {
            "job": self.terms.job,
            "round": self.number,
            "assignment": self.assignment.head,
            "params": self.announced.encode(),
            "version": self.version,
            "stage": fleet_pb2.Stage(
                job=self.terms.job, round=self.number, message=self.openings[client]
            ),
        }
        return fleet_pb2.Down(invitation=fleet_pb2.Invitation(**{**values, **change}))

    def begin(self, **change: Any) -> fleet_pb2.Down:
        values = {"job": self.terms.job, "round": self.buffer, "version": self.version}
        return fleet_pb2.Down(begin=fleet_pb2.Begin(**{**values, **change}))

    def collect(self, message: bytes, staleness: int = 0, **change: Any) -> fleet_pb2.Down:
        stage: dict[str, Any] = {"job": self.terms.job, "round": self.buffer, "message": message}
        collect = {"version": self.version, "staleness": staleness}
        for name, value in change.items():
            (collect if name in collect else stage)[name] = value
        return fleet_pb2.Down(collect=fleet_pb2.Collect(stage=fleet_pb2.Stage(**stage), **collect))

    def duty(self, message: bytes) -> fleet_pb2.Down:
        return fleet_pb2.Down(
            stage=fleet_pb2.Stage(job=self.terms.job, round=self.buffer, message=message)
        )

    def outcome(self, **change: Any) -> fleet_pb2.Down:
        values: dict[str, Any] = {
            "job": self.terms.job,
            "round": self.buffer,
            "committed": True,
            "version": self.version + 1,
            "prekeys": 8,
        }
        return fleet_pb2.Down(outcome=fleet_pb2.Outcome(**{**values, **change}))

    # -- what goes well ---------------------------------------------------------------------------

    def invite(self, *clients: int) -> None:
        """Some, or everybody, enter the epoch."""
        for client in clients or self.cohort:
            device = self.devices.all[client]
            assert device.session.handle(self.model()) is None
            assert device.session.handle(self.invitation(client)) is None, client

    def train(self, device: Device) -> fleet_pb2.Trained:
        """A device trains from the newest model."""
        assert device.session.handle(self.model(self.buffer)) is None
        assert device.session.handle(self.begin()) is None
        return trained(device)

    def upload(self, device: Device, client: int, staleness: int = 0) -> bytes:
        """A device's next upload, which it has trained for."""
        message = self.aggregator.next_upload(client)
        return reply(device.handle(self.collect(message, staleness)))

    def contribute(self, *clients: int) -> None:
        """Some train and upload."""
        for client in clients:
            device = self.devices.all[client]
            self.train(device)
            self.aggregator.receive(client, self.upload(device, client))

    def settle(self) -> SumResult:
        """The sum of the full buffer, of which everybody is told."""
        messages = self.aggregator.settle()
        while messages:
            for client in list(messages):
                answer = self.devices.all[client].handle(self.duty(messages[client]))
                self.aggregator.receive(client, reply(answer))
            messages = self.aggregator.close_stage()
        result = self.aggregator.results[-1]
        assert result is not None
        self.tell(self.cohort)
        self.next_buffer()
        return result

    def tell(self, clients: Iterable[int]) -> None:
        """A version more."""
        for client in clients:
            answer = self.devices.all[client].session.handle(self.outcome())
            assert answer is None or not answer.HasField("refusal"), answer

    def next_buffer(self) -> None:
        self.version, self.buffer = self.version + 1, self.buffer + 1


def trained(device: Device) -> fleet_pb2.Trained:
    """Run what a device is to train."""
    work = device.session.take_work()
    assert work is not None
    answer = work()
    assert answer is not None
    assert answer.HasField("trained"), answer
    return answer.trained


def reply(answer: fleet_pb2.Up) -> bytes:
    assert answer.HasField("answer"), answer
    return bytes(answer.answer.message)


def refused(answer: fleet_pb2.Up | None) -> tuple[str, str]:
    """Cause and reason."""
    assert answer is not None
    assert answer.HasField("refusal"), answer
    return fleet_pb2.Refusal.Cause.Name(answer.refusal.cause), answer.refusal.reason


def buffered_terms(devices: Devices, **change: Any) -> Terms:
    """Everybody agrees."""
    return devices.agree(**{"buffering": BUFFERING, **change})


def entered(devices: Devices) -> Epoch:
    """Everybody is in the first epoch of a job."""
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
