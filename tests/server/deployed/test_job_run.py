"""Whole jobs of a deployment with real sessions, without sockets: who is blamed, who is served."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.answer_time import AnswerTime
from client.identity import Credentials, pem_of
from client.policy import Policy
from client.session import Session
from client.volatile import VolatileStore
from fedsys.audit import audit_run
from fedsys.config import Config, dump, validate
from fedsys.durable import DurableFile
from fedsys.errors import ConfigError
from fedsys.privacy import read_ledger
from fedsys.secret_files import write_secret
from fedsys.wire import fleet_pb2
from fedsys.wire.roster import SignedStatement, signed_message
from secure_agg import prekey_suite
from secure_agg.messages import HEADER_SIZE, Kind, Opening, kind_of
from server.deployed import disk_space
from server.deployed.fleet import Fleet, Link, Said
from server.deployed.queue import Deployment, submit
from server.home.folder import Home
from server.home.state import ACTIVE_JOB, JobRow, NodeRow, State
from simulations.testbed.crowd import Flat, Still
from simulations.testbed.joining import join

Spoil = Callable[[bytes], bytes]


@dataclass
class Party:
    """A coordinator's folder and devices that joined it, all in this process."""

    root: Path
    size: int
    colluders: int = 0
    corrupt: float = 0.1
    spoiled: dict[int, tuple[Kind, Spoil]] = field(default_factory=dict)
    asked: dict[int, list[int]] = field(default_factory=dict)
    ordinary_vanish: bool = False
    absent: set[int] = field(default_factory=set)
    vanished: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        authority = Ed25519PrivateKey.generate()
        self.home = Home.create(
            self.root / "c",
            hosts=["localhost"],
            roster_key=authority.public_key().public_bytes_raw(),
            colluders=self.colluders,
        )
        self.state = State.open(self.home.path)
        self.registry = self.home.registry(self.state)
        self.folders = [self._join(number) for number in range(self.size)]
        proposed = self.registry.propose().encoded
        signature = authority.sign(signed_message(proposed))
        self.registry.accept(SignedStatement(statement=proposed, signature=signature))
        (self.root / "tmpfs").mkdir()

    def _join(self, number: int) -> Path:
        folder = self.root / f"a{number}"
        folder.mkdir(mode=0o700)
        joined = join(self.registry, f"n{number}")
        write_secret(folder / "identity.ed25519", joined.identity.private_bytes())
        Credentials(
            folder=folder,
            node=joined.enrolled.node,
            name=joined.enrolled.name,
            coordinator="localhost:1",
            identity=joined.identity,
            ca=pem_of(joined.token.ca),
            roster_key=joined.token.roster_key,
            signer=bytes.fromhex(self.home.signer.public_hex),
        ).store()
        return folder

    def settle(self, **settings: float) -> None:
        """Change ``coordinator.toml``."""
        changed = self.home.settings().model_copy(update=settings)
        text = tomli_w.dumps(changed.model_dump(exclude_none=True, exclude={"witnesses"}))
        self.home.settings_file.write_text(text)

    def job(
        self, rounds: int, *, corrupt: float = 0.1, dropout: float = 0.1, suite: str = "x25519"
    ) -> str:
        """Everybody in every round, without noise; its id."""
        config = job_of(self.size, rounds, corrupt, dropout)
        chosen = config.aggregation.model_copy(update={"suite": suite})
        return submit(self.state, dump(config.model_copy(update={"aggregation": chosen}))).id

    def run(self, job: str, *, until_round: int | None = None) -> JobRow:
        """A coordinator's and all agents' processes, until the job is over or in that round."""

        def over() -> bool:
            row = self.state.job(job)
            return row.status not in ACTIVE_JOB or bool(until_round and row.round >= until_round)

        self.run_until(over)
        return self.state.job(job)

    def run_until(self, over: Callable[[], bool]) -> None:
        """The same, until a condition holds, which is looked at again and again."""
        asyncio.run(asyncio.wait_for(self._run(over), 240))

    async def _run(self, over: Callable[[], bool]) -> None:
        self.fleet = fleet = Fleet()
        self.deployment = deployment = Deployment(
            home=self.home,
            state=self.state,
            registry=self.registry,
            fleet=fleet,
            models=lambda _config: Flat(5),
        )
        there = [number for number in range(self.size) if number not in self.absent]
        tasks = [asyncio.create_task(self._serve(fleet, number)) for number in there]
        tasks.append(asyncio.create_task(deployment.serve()))

        def join_late(number: int) -> None:
            tasks.append(asyncio.create_task(self._serve(fleet, number)))

        self.join_late = join_late
        try:
            while not over():
                await asyncio.sleep(0.02)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, fleet: Fleet, number: int) -> None:
        """An agent's process, and what its host at the coordinator does with its messages."""
        folder = self.folders[number]
        session = Session(
            credentials=Credentials.load(folder),
            worker=Still(),
            policy=lambda: Policy(corrupt=self.corrupt if self.size > 3 else 0.0),
            volatile=VolatileStore(folder, self.root / "tmpfs"),
            answer_time=AnswerTime(sleep=lambda _seconds: None),
        )
        node = session.credentials.node
        self.registry.prekeys.keep(node, session.hello())
        link = Link(node=node)
        rosters = [
            fleet_pb2.SignedRoster(statement=each.statement, signature=each.signature)
            for each in self.registry.statements(session.chain.version)
        ]
        link.send(fleet_pb2.Down(welcome=fleet_pb2.Welcome(protocol=1, roster=rosters)))
        fleet.open(link)
        while (raw := await link.outgoing.get()) is not None:
            down = fleet_pb2.Down.FromString(raw)
            if down.HasField("invitation"):
                self.asked.setdefault(number, []).append(down.invitation.round)
            up = session.handle(down)
            if up is None:
                continue
            if up.HasField("answer"):
                up.answer.message = self._spoil(number, up.answer.message)
            self.registry.prekeys.keep(node, up)
            if not up.HasField("prekeys"):
                fleet.events.put_nowait(Said(node, up))
            if down.HasField("invitation") and self.ordinary_vanish:
                opening = Opening.parse(down.invitation.stage.message[HEADER_SIZE:])
                if number not in opening.committee:
                    self.vanished.add(number)
                    fleet.closed(link)
                    return

    def _spoil(self, number: int, message: bytes) -> bytes:
        kind, spoil = self.spoiled.get(number, (None, bytes))
        return spoil(message) if kind_of(message) is kind else message


def job_of(size: int, rounds: int, corrupt: float, dropout: float) -> Config:
    return validate(
        {
            "job": {"name": "small"},
            "population": {"clients": size},
            "cohort": {"sampling": "fixed", "expected": size, "cap": size, "min_survivors": 2},
            "rounds": {"count": rounds},
            "server": {"strategy": "fedavg"},
            "privacy": {"mechanism": "none"},
            "aggregation": {"dropout": dropout, "corrupt": corrupt},
            "engine": {"path": "loop", "chunk": 1},
            "evaluation": {"data": "none"},
        }
    )


@pytest.fixture
def party(tmp_path: Path) -> Iterator[Callable[..., Party]]:
    made: list[Party] = []

    def make(size: int, colluders: int = 0) -> Party:
        made.append(Party(tmp_path, size, colluders))
        return made[-1]

    yield make
    for each in made:
        each.state.close()


def outcomes(party: Party, job: str) -> list[str | None]:
    view = read_ledger(party.home.jobs / job / "ledger.jsonl", allow_torn=True)
    return [each.outcome for each in view.rounds]


def broken(message: bytes) -> bytes:
    """As long as it should be; what it signs is something else."""
    return message[:-1] + bytes([message[-1] ^ 1])


@pytest.mark.parametrize("size", [4, 5, 10])
def test_small_fleets_work_with_a_tenth_corrupt_and_a_tenth_lost(
    party: Callable[..., Party], size: int
) -> None:
    found = party(size)
    job = found.job(2)
    row = found.run(job)
    assert row.status == "completed", row.reason
    assert outcomes(found, job) == ["commit", "commit"]


def test_three_silos_whose_job_assumes_what_they_cannot_have_are_told(
    party: Callable[..., Party],
) -> None:
    found = party(3)
    row = found.run(found.job(1))
    assert row.status == "failed"
    assert "corrupt = 0" in row.reason
    assert "dropout = 0" in row.reason
    row = found.run(found.job(1, corrupt=0.0, dropout=0.0))
    assert row.status == "completed", row.reason


@pytest.mark.parametrize("kind", [Kind.UPLOAD, Kind.ENDORSEMENT, Kind.ANSWER])
def test_who_is_caught_cheating_is_invited_no_more(party: Callable[..., Party], kind: Kind) -> None:
    found = party(10)
    found.spoiled[3] = (kind, broken)
    job = found.job(4)
    row = found.run(job, until_round=2)
    assert row.status == "running"
    assert next(each.node for each in found.state.refusals_of(job)) == 4
    assert list(found.state.blamed(job)) == [4]
    found.spoiled.clear()
    row = found.run(job)  # the coordinator and the device were started again
    assert row.status == "completed", row.reason
    assert found.asked[3] == [1]
    assert {1, 3, 4} <= set(found.asked[2]), "the second round was cut off"
    assert found.state.blamed(job).keys() == {4}


def test_ordinary_members_may_vanish_after_their_upload(party: Callable[..., Party]) -> None:
    """Above a hundred members a committee is drawn; nobody else is asked a second time."""
    found = party(102)
    found.corrupt, found.ordinary_vanish = 0.05, True
    job = found.job(1, corrupt=0.05, dropout=0.02)
    row = found.run(job)
    assert row.status == "completed", row.reason
    assert len(found.vanished) == 102 - 40
    line = json.loads((found.home.jobs / job / "private.jsonl").read_text().splitlines()[-1])
    assert line["survivors"] == list(range(102))
    assert not any(line["dropped"].values())


def test_every_sealing_key_is_used_once(party: Callable[..., Party]) -> None:
    found = party(4)
    taken: list[bytes] = []
    take = found.registry.prekeys.take

    def noted(nodes: Iterable[int], *, suite: int = 1) -> dict[int, bytes]:
        given = take(nodes, suite=suite)
        taken.extend(given.values())
        return given

    found.registry.prekeys.take = noted  # type: ignore[method-assign]
    row = found.run(found.job(12, dropout=0.0))
    assert row.status == "completed", row.reason
    assert len(taken) == len(set(taken)) == 4 * 12
    assert all(count > 0 for count in found.registry.prekeys.counts([1, 2, 3, 4]).values())


def test_jobs_of_both_suites_run_on_one_fleet(party: Callable[..., Party]) -> None:
    """Each takes sealing keys of its own suite; devices send what is about to run out."""
    found = party(4)
    taken: list[bytes] = []
    take = found.registry.prekeys.take

    def noted(nodes: Iterable[int], *, suite: int = 1) -> dict[int, bytes]:
        given = take(nodes, suite=suite)
        taken.extend(given.values())
        return given

    found.registry.prekeys.take = noted  # type: ignore[method-assign]
    first = found.job(1, dropout=0.0)
    assert found.run(first).status == "completed"
    row = found.run(found.job(6, dropout=0.0, suite="x25519-mlkem768"))
    assert row.status == "completed", row.reason
    assert outcomes(found, row.id) == ["commit"] * 6
    assert [prekey_suite(each) for each in taken] == [1] * 4 + [2] * 4 * 6
    for suite in (1, 2):
        assert min(found.registry.prekeys.counts([1, 2, 3, 4], suite=suite).values()) > 0
    assert found.run(found.job(1, dropout=0.0)).status == "completed"


def test_a_rosters_colluders_are_in_every_devices_parameters(party: Callable[..., Party]) -> None:
    found = party(6, 2)
    row = found.run(found.job(1, dropout=0.0))
    assert row.status == "failed"
    assert "set privacy.max_colluders = 2" in row.reason
    config = job_of(6, 1, 0.1, 0.0)
    privacy = config.privacy.model_copy(update={"max_colluders": 2})
    job = submit(found.state, dump(config.model_copy(update={"privacy": privacy}))).id
    row = found.run(job)
    assert row.status == "completed", row.reason
    newest = found.registry.chain().newest
    assert newest is not None
    assert newest.colluders == 2


def test_a_job_without_enough_devices_says_for_whom_it_waits_is_paused_and_goes_on(
    party: Callable[..., Party], caplog: pytest.LogCaptureFixture
) -> None:
    found = party(5)
    found.settle(patience=0.6, reconnect=0.1)
    found.absent = {1, 2, 3}
    job = found.job(2)
    row = found.run(job)
    assert row.status == "paused"
    assert row.reason == (
        "2 of 5 connected (n1, n2, n3 away), needs 5: too few agreed and are connected within 0.6 s"
    )
    assert "waiting: 2 of 5 connected (n1, n2, n3 away), needs 5, until " in caplog.text
    assert "fedsys job resume" in caplog.text
    found.absent = set()
    found.state.resume_job(job)
    row = found.run(job)
    assert row.status == "completed", row.reason
    with pytest.raises(ConfigError, match=f"is not paused but completed.*--from {job}"):
        found.state.resume_job(job)


def test_all_refusals_are_named_at_once(party: Callable[..., Party]) -> None:
    found = party(4)
    found.settle(reconnect=5.0)
    found.corrupt = 0.5
    row = found.run(found.job(1))
    assert row.status == "failed"
    assert "Refused: n0, n1, n2, n3: its cohorts are too small" in row.reason


def test_a_job_starts_from_what_another_one_reached(party: Callable[..., Party]) -> None:
    found = party(4)
    first = found.job(2)
    assert found.run(first).status == "completed"
    config = dump(job_of(4, 1, 0.1, 0.1))
    second = submit(found.state, config, start=first).id
    row = found.run(second)
    assert row.status == "completed", row.reason
    reached = read_ledger(found.home.jobs / first / "ledger.jsonl").rounds[-1].body
    begun = read_ledger(found.home.jobs / second / "ledger.jsonl").header
    assert begun["initial_weights_sha256"] == reached["weights_sha256"]
    none = submit(found.state, config, start="nobody")
    assert "nobody: there is none" in found.run(none.id).reason


def test_a_full_disk_pauses_a_job_that_goes_on_when_there_is_space(
    party: Callable[..., Party], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = party(4)
    append, failures = DurableFile.append, [0]

    def full(self: DurableFile, data: bytes) -> None:
        if b'"commit"' in data and failures[0] < 2:
            failures[0] += 1
            self.give_up()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, data)

    monkeypatch.setattr(DurableFile, "append", full)
    monkeypatch.setattr(disk_space, "_SECONDS", 0.01)
    job = found.job(4)
    row = found.run(job)
    assert row.status == "completed", row.reason
    assert failures == [2]
    lines = [each for each in caplog.messages if "no space left" in each]
    assert len(lines) == 2
    assert f"job {job} pauses at round 1, and goes on when there is" in lines[0]
    assert "Traceback" not in caplog.text
    assert outcomes(found, job).count("commit") >= 2


def chosen(size: int, rounds: int, devices: str) -> str:
    """A job for some of the devices."""
    config = job_of(size, rounds, 0.1, 0.1)
    population = config.population.model_copy(update={"clients": None, "devices": devices})
    return dump(config.model_copy(update={"population": population}))


def label(party: Party, **labels: str) -> None:
    """What `fedsys coordinator enroll --label` does, for devices that joined."""
    with party.state.transaction() as session:
        for row in session.query(NodeRow):
            row.labels = labels.get(row.name, "")


def test_a_job_takes_the_devices_that_it_names_by_name_or_label(
    party: Callable[..., Party],
) -> None:
    found = party(7)
    label(found, n1="ward=east", n3="ward=east", n5="ward=west")
    job = submit(found.state, chosen(4, 3, "ward=* n6")).id
    row = found.run(job, until_round=2)
    row = found.run(job)  # the coordinator and the devices were started again
    assert row.status == "completed", row.reason
    assert set(found.asked) == {1, 3, 5, 6}
    assert outcomes(found, job).count("commit") >= 2
    run = found.home.jobs / job
    assert read_ledger(run / "ledger.jsonl").header["population"]["clients"] == 4
    claims = {each.name: each.holds for each in audit_run(run).claims}
    assert claims["Members"] is claims["Countersignatures"] is True
    none = submit(found.state, chosen(4, 1, "ward=north"))
    row = found.run(none.id)
    assert "population.devices = 'ward=north': no device on the roster" in row.reason


def test_a_job_that_waits_for_devices_does_not_block_the_queue(
    party: Callable[..., Party], caplog: pytest.LogCaptureFixture
) -> None:
    found = party(6)
    caplog.set_level("INFO")
    found.settle(patience=60.0, reconnect=0.1)
    found.absent = {4, 5}
    first = found.job(1)
    second = submit(found.state, chosen(4, 1, "n0 n1 n2 n3")).id
    row = found.run(second)
    assert row.status == "completed", row.reason
    assert found.state.job(first).status == "waiting"
    assert f"job {first}: waits, while another job runs" in caplog.text
