"""Devices of a small federation without sockets, and a coordinator's side of a round."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from client.answer_time import AnswerTime
from client.identity import Credentials
from client.policy import ApprovedTask, Policy
from client.session import Session
from client.volatile import VolatileStore
from fedsys.privacy import Entropy, PrivacyPlan, Signer, make_plan
from fedsys.privacy.ledger import Line
from fedsys.secret_files import write_secret
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.roster import RosterStatement, SignedStatement, signed_message
from fedsys.wire.round_params import round_params
from fedsys.wire.terms import Terms
from secure_agg import Aggregator, Identity, SealingKeys, SecAggParams, prekey_suite
from tests.fedsys.privacy.ledger.ledgers import SIGNER, chained

D = 6


def plan_of(count: int, **change: Any) -> PrivacyPlan:
    """So many devices, all in every round, of whom none may be lost. Of three none may collude, of
    more a tenth: without one of three there would be two, one of whom might."""
    values: dict[str, Any] = {
        "mechanism": "distributed-gaussian",
        "population": count,
        "expected_cohort": count,
        "rounds": 5,
        "dimension": D,
        "clip": 1.0,
        "delta": 1e-5,
        "noise_multiplier": 5.0,
        "cap": count,
        "min_survivors": 2,
        "dropout": 0.0,
        "corrupt": 0.1 if count > 3 else 0.0,
    }
    return make_plan(**{**values, **change})


PLAN = plan_of(3)
CODE = "c0de"


class ConstantWorker:
    """Every update is the same; nothing is read."""

    def __init__(self) -> None:
        self.sha256 = CODE
        self.update = np.full((1, D), 0.1, dtype=np.float32)
        self.trained = 0
        self.error: Exception | None = None

    def check(self, terms: Terms) -> None:
        """Anything can be trained."""

    def train(
        self, terms: Terms, assignment: Assignment, client: int, entropy: Entropy
    ) -> NDArray[np.float32]:
        self.trained += 1
        if self.error is not None:
            raise self.error
        return self.update


@dataclass
class Device:
    session: Session
    worker: ConstantWorker
    policy: list[Policy]

    def handle(self, message: fleet_pb2.Down) -> fleet_pb2.Up:
        answer = self.session.handle(message)
        assert answer is not None
        return answer


@dataclass
class Devices:
    """A few devices under one roster, and a place that stands for their tmpfs.

    Attributes:
        count: of those on the roster.
        plan: of their job.
        colluders: that the roster states.
        running: how many are started; all by default.
        prekeys: what each device's greeting, and later its consent, brought, oldest first.
    """

    root: Path
    count: int = 3
    plan: PrivacyPlan = PLAN
    colluders: int = 0
    running: int | None = None
    authority: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    slept: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.identities = [Identity.generate() for _ in range(self.count)]
        self.volatile = self.root / "volatile"
        self.volatile.mkdir()
        self.roster = RosterStatement(
            version=1,
            previous=b"",
            members={k + 1: each.public_bytes for k, each in enumerate(self.identities)},
            colluders=self.colluders,
        )
        self.prekeys: list[list[bytes]] = [[] for _ in range(self.count)]
        started = self.count if self.running is None else self.running
        self.all = [self.start(k) for k in range(started)]
        for k in range(started, self.count):
            self.prekeys[k] = SealingKeys(self.identities[k]).issue(8)

    def agree(self, **change: Any) -> Terms:
        """Have everybody consent to a job."""
        terms = self.terms(**change)
        for number, device in enumerate(self.all):
            answer = device.handle(offer(terms))
            assert answer.consent.terms == terms.digest, answer
            self.prekeys[number] += answer.consent.prekeys
        return terms

    def take(self, number: int, suite: int = 1) -> bytes:
        """The oldest key of a device and a suite, which is used up; empty if there is none."""
        held = self.prekeys[number]
        for place, prekey in enumerate(held):
            if prekey_suite(prekey) == suite:
                return held.pop(place)
        return b""

    def reboot(self) -> None:
        """What lies on tmpfs is gone."""
        for path in self.volatile.iterdir():
            path.unlink()

    def start(self, number: int) -> Device:
        """A device's process; again on the same folder after a crash."""
        folder = self.root / f"device{number}"
        first = not folder.exists()
        if first:
            folder.mkdir()
            write_secret(folder / "identity.ed25519", self.identities[number].private_bytes())
            Credentials(
                folder=folder,
                node=number + 1,
                name=f"device{number}",
                coordinator="localhost:1",
                identity=self.identities[number],
                ca=b"",
                roster_key=self.authority.public_key().public_bytes_raw(),
                signer=bytes.fromhex(SIGNER.public_hex),
            ).store()
        worker = ConstantWorker()
        fresh_policy = Policy.fresh(
            "digits", ApprovedTask(sha256=CODE), corrupt=self.plan.corrupt or 0.0
        )
        rules = dataclasses.replace(fresh_policy, explain=True)
        if not self.plan.protected:
            rules = dataclasses.replace(rules, epsilon=math.inf)
        policy = [rules]
        session = Session(
            credentials=Credentials.load(folder),
            worker=worker,
            policy=lambda: policy[0],
            volatile=VolatileStore(folder, self.volatile),
            answer_time=AnswerTime(sleep=self.slept.append),
            buffered=True,
        )
        fresh = list(session.hello().hello.prekeys)
        self.prekeys[number] = fresh or self.prekeys[number]
        device = Device(session=session, worker=worker, policy=policy)
        if first:
            device.session.handle(self.welcome(self.roster))
        return device

    def sign(self, statement: RosterStatement) -> fleet_pb2.SignedRoster:
        signed = SignedStatement(
            statement=statement.encoded,
            signature=self.authority.sign(signed_message(statement.encoded)),
        )
        return fleet_pb2.SignedRoster(statement=signed.statement, signature=signed.signature)

    def welcome(self, *statements: RosterStatement) -> fleet_pb2.Down:
        roster = [self.sign(each) for each in statements]
        return fleet_pb2.Down(welcome=fleet_pb2.Welcome(protocol=1, roster=roster))

    def terms(self, **change: Any) -> Terms:
        values: dict[str, Any] = {
            "job": b"j" * 32,
            "name": "job",
            "task": "digits",
            "options": {},
            "task_sha256": CODE,
            "local": {"epochs": 1},
            "path": "loop",
            "dimension": D,
            "example_clip": 1.0,
            "plan": self.plan,
            "seed": 0,
            "roster_version": self.roster.version,
            "roster_hash": self.roster.hash.hex(),
        }
        return Terms(**{**values, **change})


def offer(terms: Terms) -> fleet_pb2.Down:
    return fleet_pb2.Down(offer=fleet_pb2.Offer(terms=terms.encoded))


MODEL = hashlib.sha256(bytes(4 * D)).hexdigest()
"""Of the weights that a `Conversation` sends."""


@dataclass
class Book:
    """A coordinator's ledger of a job, of which it tells its devices.

    Attributes:
        terms: of the job.
        entries: kind and body of each line.
        signer: of the lines.
    """

    terms: Terms
    entries: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    signer: Signer = SIGNER

    def __post_init__(self) -> None:
        roster = {
            "roster_version": self.terms.roster_version,
            "roster_sha256": self.terms.roster_hash,
        }
        header = {
            "job": self.terms.job.hex(),
            "plan": self.terms.plan.to_json(),
            "population": roster,
            "initial_weights_sha256": MODEL,
        }
        self.entries = self.entries or [("header", header)]

    def reserve(self, round: int, **change: Any) -> None:
        event = {**self.terms.plan.event().to_json(), **change}
        self.entries.append(("reserve", {"round": round, "event": event}))

    def round(self, round: int, *, model: str = MODEL, kind: str = "commit") -> None:
        """A whole one."""
        self.reserve(round)
        self.entries.append((kind, {"round": round, "weights_sha256": model}))

    @property
    def lines(self) -> list[bytes]:
        return list(chained(self.entries, lambda _, digest: self.signer.sign(digest)))

    @property
    def head(self) -> bytes:
        return bytes.fromhex(Line.parse(self.lines[-1], 1).hash)

    def told(self, first: int = 0) -> fleet_pb2.Down:
        """The lines from one on."""
        raw = b"".join(line + b"\n" for line in self.lines[first:])
        return fleet_pb2.Down(lines=fleet_pb2.Lines(job=self.terms.job, lines=raw))

    def outcome(self, round: int, *, committed: bool = True) -> fleet_pb2.Down:
        return fleet_pb2.Down(
            outcome=fleet_pb2.Outcome(
                job=self.terms.job, round=round, committed=committed, ledger_head=self.head
            )
        )


def params_of(terms: Terms, roster: RosterStatement, size: int) -> SecAggParams:
    """What coordinator and devices compute for a cohort of so many."""
    mechanism = terms.plan.build_mechanism()
    return round_params(
        terms.plan,
        size,
        length=mechanism.length,
        modulus_bits=mechanism.modulus_bits,
        colluders=roster.colluders,
        suite=terms.secagg_suite,
    )


@dataclass
class Conversation:
    """One round of a coordinator with its devices.

    Attributes:
        devices: invited.
        terms: of the job.
        number: of the round.
        params: other ones than the terms give, for a coordinator that cheats.
        cohort: everybody by default.
        suite: of the sealing keys that it names; by default that of the terms.
    """

    devices: Devices
    terms: Terms
    number: int = 1
    params: SecAggParams | None = None
    cohort: tuple[int, ...] = ()
    suite: int = 0

    def __post_init__(self) -> None:
        self.suite = self.suite or self.terms.secagg_suite
        self.assignment = Assignment(
            job=self.terms.job,
            round=self.number,
            task=self.terms.task,
            weights=np.zeros(D, dtype=np.float32),
            local=self.terms.local,
            mechanism=self.terms.plan.event().to_json(),
            seed=self.terms.seed,
            terms=self.terms.digest,
        )
        devices = self.devices
        self.cohort = self.cohort or tuple(range(devices.count))
        keys = {k: devices.take(k, self.suite) for k in self.cohort}
        self.prekeys = {k: key for k, key in keys.items() if key}
        self.announced = self.params or params_of(self.terms, devices.roster, len(self.cohort))
        self.aggregator = self.another()
        self.messages: Mapping[int, bytes] = self.aggregator.begin()
        self.steps = itertools.count()
        self.step = next(self.steps)

    def another(self) -> Aggregator:
        """An aggregator of this very round; an honest coordinator has one."""
        return Aggregator(
            roster=self.devices.roster.roster,
            params=self.announced,
            context=self.assignment.context,
            cohort=self.cohort,
            prekeys=self.prekeys,
        )

    def model(self) -> fleet_pb2.Down:
        return fleet_pb2.Down(
            model=fleet_pb2.Model(
                job=self.assignment.job,
                round=self.number,
                weights=self.assignment.weights_bytes,
            )
        )

    def stage(self, client: int) -> fleet_pb2.Stage:
        return fleet_pb2.Stage(
            job=self.assignment.job,
            round=self.number,
            step=self.step,
            message=self.messages[client],
        )

    def invitation(self, client: int) -> fleet_pb2.Down:
        return fleet_pb2.Down(
            invitation=fleet_pb2.Invitation(
                job=self.assignment.job,
                round=self.number,
                assignment=self.assignment.head,
                params=self.announced.encode(),
                stage=self.stage(client),
            )
        )

    def invite(self, device: Device, client: int) -> fleet_pb2.Up:
        """Send model and invitation, as to a process that may have restarted."""
        device.session.handle(self.model())
        return device.handle(self.invitation(client))

    def close(self, answers: dict[int, fleet_pb2.Up]) -> None:
        """Take a stage's answers and go on."""
        for client, answer in answers.items():
            assert answer.HasField("answer"), answer
            self.aggregator.receive(client, answer.answer.message)
        self.messages = self.aggregator.close_stage()
        self.step = next(self.steps)
