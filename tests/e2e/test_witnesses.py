"""A deployed job under two witnesses: real processes, sockets and commands."""

from __future__ import annotations

import http.client
import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import tomli_w

from client.policy import Policy
from fedsys.privacy import Ledger, read_ledger
from fedsys.privacy.ledger.cosigned import read_cosigned, read_proof
from fedsys.transparency.submission import Submission
from fedsys.witness.folder import origin_hash
from server.home.folder import WitnessAddress
from tests.e2e.conftest import CommandLine
from tests.e2e.processes import Federation, federation, silos
from tests.fedsys.witness.processes import Running, command, running


def witness(root: Path, name: str, fed: Federation) -> Path:
    made = command(root, "init", root / name, "--name", name, "--log", fed.home.signer.public_hex)
    assert made.returncode == 0, made.stderr
    return root / name


def ask(fed: Federation, witnesses: list[Running], *, threshold: int, wait: float) -> None:
    """Put witnesses into ``coordinator.toml``, and start again."""
    addresses = [WitnessAddress(url=each.url, key=each.vkey) for each in witnesses]
    settings = fed.home.settings().model_copy(
        update={
            "witnesses": addresses,
            "witness_threshold": threshold,
            "witness_wait": wait,
        }
    )
    table = tomli_w.dumps(settings.model_dump(exclude_none=True))
    fed.home.settings_file.write_text(table)
    fed.restart_coordinator()


def submit(at: Running, submission: Submission) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", at.port, timeout=20)
    try:
        connection.request("POST", "/add-checkpoint", submission.encode())
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_job_is_cosigned_and_a_fork_of_it_is_not(tmp_path: Path, fedsys: CommandLine) -> None:
    with ExitStack() as stack:
        fed = stack.enter_context(federation(tmp_path / "fed", 3))
        folders = [witness(tmp_path, name, fed) for name in ("alice", "bob")]
        alice, bob = (stack.enter_context(running(each)) for each in folders)
        ask(fed, [alice, bob], threshold=2, wait=120)
        policy = Policy(witnesses=(alice.vkey, bob.vkey), witness_threshold=2)
        for number in range(3):
            (fed.root / f"a{number}" / "policy.toml").write_text(policy.dump())
            fed.start_agent(number, 3)
        job = fed.submit(silos("rounds.count=2", "privacy.epsilon=9"))
        row = fed.wait(job)
        assert row.status == "completed", row.reason
        assert sorted(fed.commits(job)) == [1, 2]
        run = fed.home.jobs / job
        view = read_ledger(run / "ledger.jsonl")
        assert view.closed is not None
        heads = read_cosigned(run / "cosigned.jsonl")
        assert {each.witness.name: each.checkpoint.size for each in heads} == {
            "alice": view.lines,
            "bob": view.lines,
        }
        assert len(read_proof(run / "ledger.tlog-proof").note.signatures) == 3

        keys: list[str | Path] = ["--witness", folders[0] / "witness.vkey", "--witness", bob.vkey]
        audited = fedsys.run("audit", run, *keys, "--json")
        assert audited.returncode == 0, audited.stderr
        assert json.loads(audited.stdout)["details"]["witnessed"] == {
            "alice": view.lines,
            "bob": view.lines,
        }
        public = tmp_path / "public"
        assert fedsys.run("publish", run, public).returncode == 0
        assert fedsys.run("audit", public, *keys).returncode == 0
        wrong = fedsys.run("audit", public, "--witness", "x")
        assert wrong.returncode == 2

        # The coordinator writes another history, and a shorter one, with its own key.
        fork = tmp_path / "fork"
        fork.mkdir()
        paths = fork / "ledger.jsonl", fork / "private.jsonl"
        signer, header = fed.home.signer, {**view.header, "cohort": "another"}
        name = bytes.fromhex(view.header["job"])
        with Ledger.create(*paths, signer=signer, header=header) as ledger:
            for number in range(1, view.lines):
                ledger.reserve(number, {"event": {}})
                ledger.abort(number, {}, sampled=[], before_unmask=True)
            tree = ledger.tree
        for each in (alice, bob):
            for size, old, status in (
                (len(tree), view.lines, 422),
                (view.lines, view.lines, 422),
                (view.lines - 1, view.lines - 1, 409),
            ):
                note = signer.sign_checkpoint(tree, size, job=name)
                proof = tuple(tree.consistency_proof(old, size))
                found, body = submit(each, Submission(old=old, proof=proof, note=note))
                assert found == status, body

        # A cut ledger against what the witness itself shows.
        connection = http.client.HTTPConnection("127.0.0.1", alice.port, timeout=20)
        connection.request("GET", f"/{origin_hash(view.origin)}/checkpoint")
        shown = tmp_path / "shown"
        shown.write_bytes(connection.getresponse().read())
        connection.close()
        assert fedsys.run("audit", public, "--checkpoint", shown).returncode == 0
        lines = (public / "ledger.jsonl").read_bytes().splitlines(keepends=True)
        (public / "ledger.jsonl").write_bytes(b"".join(lines[:-2]))
        (public / "cosigned.jsonl").unlink()
        (public / "ledger.tlog-proof").unlink()
        cut = fedsys.run("audit", public, "--checkpoint", shown, "--json")
        assert cut.returncode == 1
        claims = {each["name"]: each for each in json.loads(cut.stdout)["claims"]}
        assert claims["Checkpoint shown"]["holds"] is False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_threshold_that_cannot_be_met_asks_no_device(tmp_path: Path) -> None:
    with ExitStack() as stack:
        fed = stack.enter_context(federation(tmp_path / "fed", 3))
        folder = witness(tmp_path, "alice", fed)
        with running(folder) as alice:
            gone = alice
        ask(fed, [gone], threshold=1, wait=3)
        for number in range(3):
            fed.start_agent(number, 3)
        job = fed.submit(silos("rounds.count=2", "privacy.epsilon=9"))
        row = fed.wait(job)
        assert row.status == "failed"
        assert "0 of witness_threshold = 1" in row.reason
        kinds = [(line["kind"], line["body"].get("reason")) for line in fed.ledger(job)]
        assert kinds[1:] == [
            ("reserve", None),
            ("abort", "too few witnesses cosigned the reservation"),
            ("closed", "interrupted"),
        ]
        # Without a threshold the same dead witness costs a line in the log.
        ask(fed, [gone], threshold=0, wait=3)
        again = fed.submit(silos("rounds.count=2", "privacy.epsilon=9"))
        assert fed.wait(again).status == "completed"
        assert "witness alice: " in fed.log("coordinator")
