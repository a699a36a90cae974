"""Devices of a small federation without sockets, and a coordinator's side of a round."""

from __future__ import annotations

import dataclasses
import itertools
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
from fedsys.privacy import Entropy, make_plan
from fedsys.secret_files import write_secret
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.roster import RosterStatement, SignedStatement, signed_message
from fedsys.wire.terms import Terms, encode_params
from secure_agg import Aggregator, Identity, SecAggParams

D = 6
PLAN = make_plan(
    mechanism="distributed-skellam",
    population=3,
    expected_cohort=3,
    rounds=5,
    dimension=D,
    clip=1.0,
    delta=1e-5,
    noise_multiplier=5.0,
    cap=3,
    min_survivors=2,
    dropout=0.0,
)
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
    """Three devices under one roster."""

    root: Path
    authority: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    identities: list[Identity] = field(
        default_factory=lambda: [Identity.generate() for _ in range(3)]
    )

    slept: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.roster = RosterStatement(
            version=1,
            previous=b"",
            members={k + 1: each.public_bytes for k, each in enumerate(self.identities)},
        )
        self.all = [self.start(k) for k in range(3)]

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
                signer=bytes(32),
            ).store()
        worker = ConstantWorker()
        fresh = Policy.fresh("digits", ApprovedTask(sha256=CODE))
        policy = [dataclasses.replace(fresh, explain=True)]
        session = Session(
            credentials=Credentials.load(folder),
            worker=worker,
            policy=lambda: policy[0],
            answer_time=AnswerTime(sleep=self.slept.append),
        )
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
            "plan": PLAN,
            "seed": 0,
            "roster_version": self.roster.version,
            "roster_hash": self.roster.hash.hex(),
        }
        return Terms(**{**values, **change})


def offer(terms: Terms) -> fleet_pb2.Down:
    return fleet_pb2.Down(offer=fleet_pb2.Offer(terms=terms.encoded))


@dataclass
class Conversation:
    """One round of a coordinator with its devices."""

    terms: Terms
    roster: RosterStatement
    number: int = 1

    def __post_init__(self) -> None:
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
        derived = SecAggParams.derive(n=3, corrupt=0.0, dropout=0.0)
        self.params = dataclasses.replace(derived, min_alive=2)
        self.aggregator = Aggregator(
            roster=self.roster.roster,
            params=self.params,
            context=self.assignment.context,
            length=D,
            cohort=range(3),
        )
        self.messages = self.aggregator.begin()
        self.steps = itertools.count()
        self.step = next(self.steps)

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
                params=encode_params(self.params),
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

    def outcome(self, head: bytes) -> fleet_pb2.Down:
        return fleet_pb2.Down(
            outcome=fleet_pb2.Outcome(
                job=self.assignment.job, round=self.number, committed=True, ledger_head=head
            )
        )
