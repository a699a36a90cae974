"""Coordinator and device over Flower's Grid and ClientApp, in one process and without sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict

from client import flower_host as device
from client import lock
from client.journal import Journal
from client.lock import exclusive
from client.task_model import TaskModel
from fedsys.audit import audit_run
from fedsys.config import Config, dump, load, validate
from fedsys.errors import Cause, ConfigError
from fedsys.privacy import read_ledger
from fedsys.wire.fleet_pb2 import Down, Refusal, RosterNews, Up
from fedsys.wire.flower import CHALLENGE, DOWN, NODE, PROOF, QUERY, RECORD, UP, hello_message
from secure_agg.committee import SUITE_NAMES
from server.deployed.round import Randomness
from server.flower_host import GridFleet, run_job
from server.home.folder import Home
from server.home.state import CountersignatureRow, JobRow, State
from server.metrics import Metrics
from simulations import harness
from simulations.randomness import SeededRandomness
from tests.client.devices import Devices
from tests.e2e.deployment import running_port
from tests.flower.grid import Handler, InProcessGrid, Node, Tamper, identity
from tests.server.test_metrics import Series, scrape

SILOS = 3


@pytest.fixture(autouse=True)
def task_identity() -> Iterator[None]:
    with identity():
        yield


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A coordinator's folder, which three devices have joined over its own port."""
    with running_port(tmp_path / "coordinator") as port:
        for number in range(SILOS):
            port.enroll(f"silo-{number}", tmp_path / f"a{number}")
        return port.home


def silo(rounds: int = 3, *, suite: str = "x25519") -> Config:
    """Three devices, each in every round."""
    return validate(
        {
            "job": {"name": "over-flower"},
            "task": {"name": "digits"},
            "population": {"partition": "iid", "clients": SILOS},
            "cohort": {"expected": SILOS, "cap": SILOS, "min_survivors": 2},
            "rounds": {"count": rounds},
            "local": {"batch_size": 32, "learning_rate": 0.5},
            "server": {"strategy": "fedavg"},
            "privacy": {"epsilon": 9.0, "delta": 1e-5, "clip": 1.0},
            "aggregation": {"dropout": 0.0, "corrupt": 0.0, "suite": suite},
            "engine": {"path": "loop", "chunk": 1},
        }
    )


def seeded(seed: bytes) -> Callable[..., device.RelaySession]:
    """Sessions that draw their noise from a seed, fresh for every message."""
    source = SeededRandomness(seed)

    def open_session(folder: str, data: str, shard: str, corrupt: float) -> device.RelaySession:
        session = device.open_session.__wrapped__(folder, data, shard, corrupt)
        client = int(shard.partition("/")[0])
        session._noise = lambda round: source.noise(round, client)
        return session

    return open_session


def nodes(tmp_path: Path, seed: bytes | None = None) -> dict[int, Node]:
    def handle(message: Message, context: Context) -> Message:
        if seed is None:
            return device.app(message, context)
        return device.answer(message, context, sessions=seeded(seed))

    return {
        1000 + number: Node(
            handler=handle,
            config={
                "fedsys-agent": str(tmp_path / f"a{number}"),
                "fedsys-data": "digits",
                "fedsys-shard": f"{number}/{SILOS}",
                "fedsys-corrupt": 0.0,
            },
        )
        for number in range(SILOS)
    }


def over_flower(
    home: Home,
    config: Config,
    present: dict[int, Node],
    *,
    tamper: Tamper | None = None,
    randomness: Randomness | None = None,
    metrics: Metrics | None = None,
) -> JobRow:
    grid = InProcessGrid(present, tamper)
    job = run_job(
        grid,
        home,
        dump(config),
        models=TaskModel,
        poll=0.02,
        randomness=randomness,
        metrics=metrics,
    )
    return asyncio.run(asyncio.wait_for(job, 280))


def commits(home: Home, job: str) -> dict[int, str]:
    view = read_ledger(home.jobs / job / "ledger.jsonl")
    return {each.round: each.body["weights_sha256"] for each in view.rounds}


@pytest.mark.parametrize(("suite", "rounds"), [("x25519", 3), ("x25519-mlkem768", 1)])
def test_in_process_and_over_flower_every_round_gives_the_same_model(
    home: Home, tmp_path: Path, suite: str, rounds: int
) -> None:
    seed = b"equal hosts"
    config = silo(rounds, suite=suite)
    simulated = harness.run(config, out=tmp_path / "run", randomness=SeededRandomness(seed))
    view = read_ledger(simulated.folder / "ledger.jsonl")
    expected = {each.round: each.body["weights_sha256"] for each in view.rounds}
    source = SeededRandomness(seed)
    randomness = Randomness(names=source.job(), seeds=source.sampling)
    row = over_flower(home, config, nodes(tmp_path, seed), randomness=randomness)
    assert row.status == "completed", row.reason
    assert len(expected) == rounds
    assert commits(home, row.id) == expected
    assert audit_run(home.jobs / row.id).passed
    state = State.open(home.path)
    kept = home.registry(state).prekeys.counts((1, 2, 3), suite=SUITE_NAMES["x25519-mlkem768"])
    state.close()
    assert all(kept.values()) is (suite == "x25519-mlkem768"), "devices have sent such keys"


def test_the_silo_recipe_passes_fresh_policies_and_every_round_is_countersigned(
    home: Home, tmp_path: Path
) -> None:
    row = over_flower(home, load("silo", ["rounds.count=2"]), nodes(tmp_path))
    assert row.status == "completed", row.reason
    run = home.jobs / row.id
    summary = json.loads((run / "summary.json").read_text())
    assert summary["privacy"]["unit"] == "example"
    assert summary["metrics"]["accuracy"] > 0.5
    assert audit_run(run).passed
    state = State.open(home.path)
    with state.transaction() as session:
        signed = {(each.round, each.node) for each in session.query(CountersignatureRow).all()}
    state.close()
    assert signed == {(round, node) for round in (1, 2) for node in (1, 2, 3)}


def test_flowers_own_client_app_answers_in_its_resident_process(home: Home, tmp_path: Path) -> None:
    present = nodes(tmp_path)
    row = over_flower(home, silo(rounds=1), present)
    assert row.status == "completed", row.reason
    for node in present.values():
        assert 6 <= node.asked <= 12, "a message for each stage, and few besides"
        assert RECORD in node.state.config_records


def test_every_byte_that_travels_is_counted_on_the_metrics_page(home: Home, tmp_path: Path) -> None:
    seen: dict[tuple[str, str], float] = {}

    def weigh(direction: str, raws: object, parse: type[Down] | type[Up]) -> None:
        assert isinstance(raws, list)
        for raw in raws:
            kind = str(parse.FromString(raw).WhichOneof("content"))
            seen[direction, kind] = seen.get((direction, kind), 0.0) + len(raw)

    present = nodes(tmp_path)
    for node in present.values():

        def handle(message: Message, context: Context, inner: Handler = node.handler) -> Message:
            weigh("out", message.content.config_records[RECORD].get(DOWN, []), Down)
            reply = inner(message, context)
            weigh("in", reply.content.config_records[RECORD][UP], Up)
            return reply

        node.handler = handle
    settings = home.settings_file.read_text("utf-8")
    assert 'metrics = ""' in settings
    home.settings_file.write_text(settings.replace('metrics = ""', 'metrics = "127.0.0.1:0"'))
    served: list[int] = []

    class Watched(Metrics):
        def serve(self, address: str) -> int:
            served.append(super().serve(address))
            return served[-1]

        def close(self) -> None:
            pages.append(scrape(served[-1]))
            super().close()

    pages: list[Series] = []
    row = over_flower(home, silo(rounds=2), present, metrics=Watched())
    assert row.status == "completed", row.reason
    (page,) = pages
    counted = {
        (dict(labels)["direction"], dict(labels)["kind"]): value
        for (name, labels), value in page.items()
        if name == "fedsys_serverside_bytes_total"
    }
    assert counted == seen
    assert {
        ("out", "model"),
        ("out", "invitation"),
        ("in", "hello"),
        ("in", "answer"),
    } <= counted.keys()
    assert page["fedsys_rounds_total", (("outcome", "committed"),)] == 2
    assert page["fedsys_jobs_total", (("status", "completed"),)] == 1


def test_a_device_that_vanishes_costs_a_round_not_the_job(home: Home, tmp_path: Path) -> None:
    settings = home.settings_file.read_text()
    settings = settings.replace("stage = 30.0", "stage = 2.0")
    home.settings_file.write_text(settings.replace("reconnect = 20.0", "reconnect = 1.0"))
    fails = {1001: 5}  # its fifth message: in the middle of the first round

    def tamper(node: int, reply: Message) -> Message | None:
        if present[node].asked != fails.get(node):
            return reply
        del fails[node]
        request = Message(RecordDict(), dst_node_id=node, message_type=f"query.{QUERY}")
        lost = Message(Error(code=3, reason="node unavailable"), reply_to=request)
        answered = reply.metadata.reply_to_message_id
        lost.metadata.__dict__["_reply_to_message_id"] = answered
        return lost

    present = nodes(tmp_path)
    row = over_flower(home, silo(rounds=2), present, tamper=tamper)
    assert not fails
    assert row.status == "completed", row.reason
    outcomes = [r.outcome for r in read_ledger(home.jobs / row.id / "ledger.jsonl").rounds]
    assert len(outcomes) == 2
    assert "commit" in outcomes


def test_a_lost_run_is_resumed_by_the_next(home: Home, tmp_path: Path) -> None:
    config = silo(rounds=2)
    state = State.open(home.path)

    async def until_first_commit() -> str:
        grid = InProcessGrid(nodes(tmp_path))
        job = asyncio.create_task(run_job(grid, home, dump(config), models=TaskModel, poll=0.02))
        while not (rows := state.jobs()) or rows[0].round < 2:
            await asyncio.sleep(0.02)
            assert not job.done(), job.result()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        return rows[0].id

    id = asyncio.run(asyncio.wait_for(until_first_commit(), 60))
    row = over_flower(home, config, nodes(tmp_path))
    state.close()
    assert (row.id, row.status) == (id, "completed"), row.reason
    rounds = read_ledger(home.jobs / id / "ledger.jsonl").rounds
    assert [each.round for each in rounds] == [1, 2]
    assert rounds[0].outcome == "commit"


def ask(folder: Path, by: Handler = device.answer) -> Message:
    """What a node answers to a coordinator that asks who it is."""
    record = ConfigRecord({CHALLENGE: bytes(32)})
    request = Message(RecordDict({RECORD: record}), dst_node_id=5, message_type=f"query.{QUERY}")
    config: dict[str, Any] = {"fedsys-agent": str(folder), "fedsys-data": "digits"}
    context = Context(run_id=1, node_id=5, node_config=config, state=RecordDict(), run_config={})
    return by(request, context)


def test_a_message_that_finds_an_agent_on_the_folder_says_nothing(
    home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a0"
    assert ask(folder).content.config_records[RECORD][NODE] == 1
    taken = lock._taken
    monkeypatch.setattr(lock, "_taken", lambda handle, _patience: taken(handle, 0.0))
    with exclusive(folder, "fedsys agent run"):
        with pytest.raises(ConfigError, match=r"a0: fedsys agent run \(process \d+\) is at work"):
            ask(folder)
        caplog.clear()
        refused = ask(folder, device.app)
    assert refused.has_error()
    (line,) = caplog.records
    assert "is at work in it; stop that" in line.getMessage()
    assert line.exc_info is None
    assert refused.error.reason == Cause.DEVICE.value
    assert not ask(folder).has_error()


def test_a_resident_process_sees_what_another_counted(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "a0"
    ask(folder)
    session = device.open_session(str(folder), "digits", "")
    ask(folder)
    assert device.open_session(str(folder), "digits", "") is session, "it stays open"
    terms = Devices(tmp_path).terms()
    with exclusive(folder, "fedsys agent run"):
        other = Journal(folder / "journal.json")
        other.agree(terms)
        other.join(terms.job, 1)
    assert not session.journal.jobs
    ask(folder)
    reopened = device.open_session(str(folder), "digits", "")
    assert reopened.journal.jobs[terms.job.hex()].joined == [1]


def test_a_device_that_has_left_answers_no_more(home: Home, tmp_path: Path) -> None:
    ask(tmp_path / "a0")
    (tmp_path / "a0" / "agent.toml").unlink()
    with pytest.raises(ConfigError, match="has not joined"):
        ask(tmp_path / "a0")


@pytest.mark.parametrize("name", ["journal.json", "roster.jsonl"])
def test_a_device_that_lost_its_count_or_roster_says_so(
    home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (tmp_path / "a0" / name).unlink()
    refused = ask(tmp_path / "a0", device.app)
    assert refused.has_error()
    (line,) = caplog.records
    assert f"{name}: is gone" in line.getMessage()
    assert refused.error.reason == Cause.DEVICE.value, "no path of the owner's leaves"
    assert not (tmp_path / "a0" / name).exists()


def test_one_coordinator_runs_on_a_folder(home: Home, tmp_path: Path) -> None:
    import fcntl
    import os

    handle = os.open(home.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConfigError, match="another coordinator is running"):
            over_flower(home, silo(), nodes(tmp_path))
    finally:
        os.close(handle)


@pytest.mark.parametrize("forgery", ["signature", "another node", "a stranger", "nothing"])
def test_who_cannot_prove_which_device_it_is_gets_no_link(
    forgery: str, home: Home, tmp_path: Path
) -> None:
    def forge(node: int, reply: Message) -> Message | None:
        record = reply.content.config_records[RECORD]
        if forgery == "signature":
            record[PROOF] = bytes(64)
        elif forgery == "another node":
            record[NODE] = int(str(record[NODE])) % SILOS + 1
        elif forgery == "a stranger":
            record[NODE] = 77
        else:
            reply.content[RECORD] = ConfigRecord({"x": 1})
        return reply

    fleet, steps = linked(home, InProcessGrid(nodes(tmp_path), forge))
    assert steps == 3
    assert not fleet


def test_devices_that_prove_themselves_get_their_links(home: Home, tmp_path: Path) -> None:
    found, _ = linked(home, InProcessGrid(nodes(tmp_path)))
    assert found == [1, 2, 3]


def test_what_is_being_handed_to_flower_is_on_its_way(home: Home, tmp_path: Path) -> None:
    """A job that ends just then still waits for its last countersignatures."""
    from server.deployed.fleet import Fleet

    busy: list[bool] = []

    class Watching(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            busy.append(carrier.busy)
            return super().push_messages(messages)

    state, fleet = State.open(home.path), Fleet()
    carrier = GridFleet(Watching(nodes(tmp_path)), fleet, home.registry(state), poll=0.0)

    async def greet_all_and_tell_one() -> None:
        for _ in range(3):
            await carrier.step()
        for link in fleet.links.values():
            while not link.outgoing.empty():
                link.outgoing.get_nowait()
        await carrier.step()
        assert not carrier.busy
        fleet.links[2].send(Down(roster=RosterNews()))
        busy.clear()
        await carrier.step()
        assert busy == [True]

    asyncio.run(greet_all_and_tell_one())
    state.close()


def test_one_reply_queues_no_flood(home: Home, tmp_path: Path) -> None:
    """What a device may say at once is what it may say over a stream of its own."""
    from server.deployed.fleet import Fleet, Said

    refusal = Up(refusal=Refusal(reason="\x1b[2J")).SerializeToString()
    flood: list[bytes] = [refusal] * 20_000

    def tamper(node: int, reply: Message) -> Message:
        record = reply.content.config_records[RECORD]
        if node == 1001 and NODE not in record:
            record[UP] = flood
        return reply

    async def scene() -> tuple[list[Said], list[int]]:
        state, fleet = State.open(home.path), Fleet()
        grid = InProcessGrid(nodes(tmp_path), tamper)
        carrier = GridFleet(grid, fleet, home.registry(state), poll=0.0)
        for _ in range(2):  # they prove who they are, and are told of the roster
            await carrier.step()
        present = sorted(fleet.links)
        state.close()
        events = [fleet.events.get_nowait() for _ in range(fleet.events.qsize())]
        return [each for each in events if isinstance(each, Said)], present

    said, present = asyncio.run(scene())
    assert not said
    assert present == [1, 3]
    del flood[20:]
    said, present = asyncio.run(scene())
    assert len(said) == 20
    assert present == [1, 2, 3]
    assert all(each.message.refusal.reason.isprintable() for each in said)


def linked(home: Home, grid: InProcessGrid) -> tuple[list[int], int]:
    from server.deployed.fleet import Fleet

    async def look() -> tuple[list[int], int]:
        state, fleet = State.open(home.path), Fleet()
        carrier = GridFleet(grid, fleet, home.registry(state), poll=0.0)
        steps = 0
        for _ in range(3):
            await carrier.step()
            steps += 1
        state.close()
        return sorted(fleet.links), steps

    return asyncio.run(look())


def test_a_proof_is_for_one_challenge_and_one_flower_node() -> None:
    messages = {
        hello_message(challenge, node)
        for challenge in (bytes(32), b"\1" * 32)
        for node in (0, 1, 2**64 - 1)
    }
    assert len(messages) == 6


def test_a_node_without_its_configuration_says_what_is_missing() -> None:
    request = Message(
        RecordDict({RECORD: ConfigRecord({})}), dst_node_id=5, message_type=f"query.{QUERY}"
    )
    config: dict[str, Any] = {"fedsys-agent": "somewhere"}
    context = Context(run_id=1, node_id=5, node_config=config, state=RecordDict(), run_config={})
    with pytest.raises(ConfigError, match="node-config lacks fedsys-data"):
        device.answer(request, context)
