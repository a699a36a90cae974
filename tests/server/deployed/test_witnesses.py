"""The coordinator's witnesses: what is on disk is cosigned, and nothing waits that need not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedsys.privacy import Ledger, Signer
from fedsys.privacy.ledger.cosigned import read_cosigned, read_proof
from fedsys.run_folder import RunFolder
from fedsys.transparency import Checkpoint, cosignatures_of, leaf_hash
from fedsys.transparency.submission import Submission
from fedsys.witness.cosigning import Witness
from fedsys.witness.folder import WitnessFolder
from server.deployed import witnesses
from server.deployed.witnesses import Answer, JobWitnesses, WitnessesMissing
from server.home.folder import Settings, WitnessAddress
from server.job import Job

JOB = bytes(range(32))
SIGNER = Signer.generate(entropy=lambda n: b"s" * n)


class Network:
    """Witnesses by URL, reached without sockets; each may be down, or slow."""

    def __init__(self, root: Path, names: str = "ab") -> None:
        self.witnesses = {name: self.make(root / name, name) for name in names}
        self.down: set[str] = set()
        self.sent: list[tuple[str, int, int]] = []
        self.answers: dict[str, Answer] = {}

    @staticmethod
    def make(path: Path, name: str) -> Witness:
        return Witness(WitnessFolder.create(path, name=name, logs=[SIGNER.public_hex]))

    async def post(self, url: str, body: bytes) -> Answer:
        name = url.split("/")[2]
        submission = Submission.parse(body)
        size = Checkpoint.parse(submission.note.text).size
        self.sent.append((name, submission.old, size))
        if name in self.down:
            raise ConnectionRefusedError("connection refused")
        if name in self.answers:
            return self.answers[name]
        reply = await asyncio.to_thread(self.witnesses[name].add_checkpoint, body)
        kind = reply.content_type.partition(";")[0]
        return Answer(status=reply.status, content_type=kind, body=reply.body)

    def settings(self, **more: Any) -> Settings:
        addresses = [
            WitnessAddress(url=f"http://{name}/", key=str(each.vkey))
            for name, each in self.witnesses.items()
        ]
        return Settings(hosts=["localhost"], witnesses=addresses, **more)


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return Network(tmp_path)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    run = tmp_path / "run"
    run.mkdir()
    with Ledger.create(
        run / "ledger.jsonl",
        run / "private.jsonl",
        signer=SIGNER,
        header={"job": JOB.hex()},
    ) as ledger:
        yield job_of(run, ledger)


def job_of(run: Path, ledger: Ledger) -> Job:
    terms = SimpleNamespace(job=JOB)
    found = SimpleNamespace(
        folder=RunFolder(run),
        ledger=ledger,
        signer=SIGNER,
        coordinator=SimpleNamespace(terms=terms),
    )
    return cast("Job", found)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witnesses, "_ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(witnesses, "_BACK_OFF", (0.01, 0.02))


def following(
    job: Job, network: Network, work: Callable[[JobWitnesses], Awaitable[None]], **settings: Any
) -> JobWitnesses:
    """Does something while the witnesses follow a job."""

    async def main() -> JobWitnesses:
        found = JobWitnesses(job=job, settings=network.settings(**settings), post=network.post)
        async with found.followed():
            await work(found)
        return found

    return asyncio.run(main())


def sizes(job: Job) -> dict[str, int]:
    """By witness, of the newest kept cosignature, which is verified."""
    found = {}
    for head in read_cosigned(job.folder.cosigned):
        assert head.cosignature is not None
        assert head.checkpoint.root == job.ledger.tree.root(head.checkpoint.size)
        found[head.witness.name] = head.checkpoint.size
    return found


def test_rounds_are_cosigned_from_reservation_to_close(job: Job, network: Network) -> None:
    async def rounds(found: JobWitnesses) -> None:
        for number in (1, 2):
            job.ledger.reserve(number, {"event": {}})
            await found.require_reservation()
            proof = found.proof_of(len(job.ledger.tree) - 1)
            assert proof is not None
            raw = job.folder.ledger.read_bytes().splitlines()[-1]
            assert proof.require(leaf_hash(raw)).size == len(job.ledger.tree)
            keys = [each.vkey for each in network.witnesses.values()]
            assert len(cosignatures_of(proof.note, keys)) == 2
            job.ledger.commit(number, {}, sampled=[1], survivors=[1])
            await found.advance()
        job.ledger.close("completed")
        await found.finish()

    following(job, network, rounds, witness_threshold=2)
    assert sizes(job) == {"a": 6, "b": 6}
    kept = read_proof(job.folder.proof)
    closing = job.folder.ledger.read_bytes().splitlines()[-1]
    assert kept.require(leaf_hash(closing)).size == 6
    assert len(cosignatures_of(kept.note, [w.vkey for w in network.witnesses.values()])) == 2


def test_only_what_is_on_disk_is_shown(job: Job, network: Network) -> None:
    """A commit that waits for the next line is not there yet."""

    async def hold(found: JobWitnesses) -> None:
        job.ledger.reserve(1, {"event": {}})
        job.ledger.commit(1, {}, sampled=[1], survivors=[1], after=lambda: None)
        await found.require_reservation()
        assert max(size for _, _, size in network.sent) == 2
        job.ledger.settle()
        await found.require_reservation()

    following(job, network, hold, witness_threshold=2)
    assert sizes(job) == {"a": 3, "b": 3}


def test_a_dead_witness_is_reported_once_and_stops_nobody(
    job: Job, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    network.down = {"a"}

    async def rounds(found: JobWitnesses) -> None:
        for number in range(1, 4):
            job.ledger.reserve(number, {"event": {}})
            await found.require_reservation()  # one of two is enough
            job.ledger.commit(number, {}, sampled=[1], survivors=[1])
            await found.advance()
            await asyncio.sleep(0.05)
        network.down = set()
        await found.finish()

    following(job, network, rounds, witness_threshold=1)
    assert sizes(job) == {"a": 7, "b": 7}
    said = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    assert said == ["witness a: connection refused"]


def test_without_a_threshold_nothing_is_waited_for(job: Job, network: Network) -> None:
    network.down = {"a", "b"}

    async def reserve(found: JobWitnesses) -> None:
        job.ledger.reserve(1, {"event": {}})
        async with asyncio.timeout(0.5):
            await found.require_reservation()

    following(job, network, reserve)
    assert not job.folder.cosigned.exists()


def test_a_threshold_that_is_not_met_stops_the_round(job: Job, network: Network) -> None:
    network.down = {"a"}

    async def reserve(found: JobWitnesses) -> None:
        job.ledger.reserve(1, {"event": {}})
        with pytest.raises(WitnessesMissing, match="1 of witness_threshold = 2"):
            await found.require_reservation()

    following(job, network, reserve, witness_threshold=2, witness_wait=0.3)


def test_a_restart_goes_on_where_the_witnesses_are(job: Job, network: Network) -> None:
    async def reserve(found: JobWitnesses) -> None:
        job.ledger.reserve(1, {"event": {}})
        await found.require_reservation()

    following(job, network, reserve, witness_threshold=2)
    network.sent.clear()
    job.ledger.abort(1, {}, sampled=[], before_unmask=True)

    async def again(found: JobWitnesses) -> None:
        await found.require_reservation()

    following(job, network, again, witness_threshold=2)
    assert network.sent == [("a", 2, 3), ("b", 2, 3)]
    job.folder.cosigned.unlink()  # then the witnesses say what they have
    network.sent.clear()
    job.ledger.reserve(2, {"event": {}})
    following(job, network, again, witness_threshold=2)
    assert sorted(network.sent) == [("a", 0, 4), ("a", 3, 4), ("b", 0, 4), ("b", 3, 4)]
    job.folder.cosigned.write_text("spoilt\n")
    job.ledger.commit(2, {}, sampled=[1], survivors=[1])
    following(job, network, again, witness_threshold=2)
    assert sizes(job) == {"a": 5, "b": 5}


def test_a_forked_ledger_gets_no_cosignature(
    tmp_path: Path, job: Job, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    """Two histories of one job: both witnesses see them, and neither cosigns the second."""

    async def advance(found: JobWitnesses) -> None:
        await found.require_reservation()

    job.ledger.reserve(1, {"event": {}})
    following(job, network, advance, witness_threshold=2)
    other = tmp_path / "fork"
    other.mkdir()
    with Ledger.create(
        other / "ledger.jsonl",
        other / "private.jsonl",
        signer=SIGNER,
        header={"job": JOB.hex(), "rewritten": True},
    ) as ledger:
        fork = job_of(other, ledger)

        async def refused(found: JobWitnesses) -> None:
            with pytest.raises(WitnessesMissing, match="0 of witness_threshold = 1"):
                await found.require_reservation()

        limits = {"witness_threshold": 1, "witness_wait": 0.3}
        following(fork, network, refused, **limits)  # shorter: a rollback
        assert "the ledger was rolled back" in caplog.text
        for number in (1, 2, 3):
            ledger.reserve(number, {"event": {}})
            ledger.abort(number, {}, sampled=[], before_unmask=True)
        following(fork, network, refused, **limits)
        assert "status 422" in caplog.text
        assert not fork.folder.cosigned.exists()


def test_a_witness_that_forgot_is_named(
    tmp_path: Path, job: Job, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    async def advance(found: JobWitnesses) -> None:
        await found.require_reservation()
        (tmp_path / "a" / "checkpoints").rename(tmp_path / "forgotten")
        (tmp_path / "a" / "checkpoints").mkdir()
        job.ledger.reserve(1, {"event": {}})
        await found.require_reservation()

    following(job, network, advance, witness_threshold=2)
    assert "witness a forgot what it cosigned: 1 lines, and it states 0" in caplog.text
    assert sizes(job) == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("status", "kind", "body", "words"),
    [
        (200, "", b"", "signature lines"),
        (200, "", "— a AAAAAAA=\n".encode(), "no cosignature of its key"),
        (409, "text/plain", b"1\n", "status 409"),
        (409, "text/x.tlog.size", b"-1\n", "states no size"),
        (409, "text/x.tlog.size", b"9" * 30, "states no size"),
        (409, "text/x.tlog.size", b"0\n", "another size at every try"),
        (302, "", b"elsewhere", "status 302"),
        (500, "", b"\x1b[2Joops", "status 500: \ufffd[2Joops"),
    ],
)
def test_whatever_a_witness_answers(
    job: Job,
    network: Network,
    caplog: pytest.LogCaptureFixture,
    status: int,
    kind: str,
    body: bytes,
    words: str,
) -> None:
    network.answers["a"] = Answer(status=status, content_type=kind, body=body)

    async def advance(found: JobWitnesses) -> None:
        await found.require_reservation()
        await asyncio.sleep(0.02)

    following(job, network, advance, witness_threshold=1)
    assert sizes(job) == {"b": 1}
    assert words in caplog.text


def test_another_witnesses_cosignature_is_not_taken(job: Job, network: Network) -> None:
    """Under its name, but by another key."""
    impostor = Network.make(job.folder.path.parent / "impostor", "a")
    network.witnesses["a"], real = impostor, network.witnesses["a"]
    addresses = [WitnessAddress(url="http://a/", key=str(real.vkey))]
    settings = Settings(hosts=["h"], witnesses=addresses, witness_threshold=1, witness_wait=0.2)

    async def main() -> None:
        found = JobWitnesses(job=job, settings=settings, post=network.post)
        async with found.followed():
            with pytest.raises(WitnessesMissing):
                await found.require_reservation()

    asyncio.run(main())
    assert not job.folder.cosigned.exists()


def test_no_witness_no_work(job: Job) -> None:
    async def main() -> None:
        found = JobWitnesses(job=job, settings=Settings(hosts=["h"]))
        async with found.followed():
            await found.require_reservation()
            await found.finish()
        assert found.proof_of(0) is None

    asyncio.run(main())
    assert not job.folder.proof.exists()
