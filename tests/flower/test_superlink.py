"""A job over a real SuperLink and three real SuperNodes on the loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("flwr")

import fedsys
from client.local_data import DataSpec, LocalData
from client.policy import ApprovedTask, Policy
from fedsys.audit import audit_run
from fedsys.config import Config, dump, load, validate
from fedsys.privacy import read_ledger
from server.home.state import CountersignatureRow, State
from simulations import harness
from simulations.replay import replay
from tests.e2e.deployment import running_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(fedsys.__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SILOS = 3


def job() -> Config:
    """Without noise and with every device in every round: the simulator's model, to the bit."""
    return validate(
        {
            "job": {"name": "over-flower"},
            "task": {"name": "digits"},
            "population": {"partition": "iid", "clients": SILOS},
            "cohort": {"expected": SILOS, "cap": SILOS, "min_survivors": 2},
            "rounds": {"count": 2},
            "local": {"batch_size": 32, "learning_rate": 0.5},
            "server": {"strategy": "fedavg"},
            "privacy": {"mechanism": "none", "delta": 1e-5, "clip": 1.0},
            "aggregation": {"dropout": 0.0, "corrupt": 0.0},
            "engine": {"path": "loop", "chunk": 1},
        }
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Flower:
    """A SuperLink, its SuperNodes, and the command that runs an app on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        (root / "flwr").mkdir()
        (root / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "lo"\n\n[superlink.lo]\n'
            f'address = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(root / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *arguments: str) -> None:
        with (self.root / f"{name}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [BIN / arguments[0], *arguments[1:]],
                    env=self.environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def command(self, *arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [BIN / "flwr", *arguments, "--format", "json"],
            env=self.environment,
            capture_output=True,
            timeout=120,
            check=False,
        )
        try:
            answer: dict[str, object] = json.loads(done.stdout)
        except ValueError:
            return {"success": False, "said": (done.stdout + done.stderr).decode()}
        return answer

    def listens(self) -> bool:
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", self.port)) == 0

    def run(self, settings: str, *, seconds: float) -> str:
        """Run the app; how Flower says that it ended."""
        started = self.command("run", str(ROOT), "lo", "--run-config", settings)
        assert started.get("success"), started
        status = ""
        ends = time.monotonic() + seconds
        while not status.startswith("finished") and time.monotonic() < ends:
            time.sleep(2)
            runs = self.command("list", "lo").get("runs")
            if isinstance(runs, list):
                newest = max(runs, key=lambda each: each["pending-at"])
                status = newest["status"]
        return status


@contextmanager
def flower(root: Path) -> Iterator[Flower]:
    flower = Flower(root)
    try:
        flower.start(
            "superlink",
            "flower-superlink",
            *("--insecure", "--host", "127.0.0.1", "--port", str(flower.port)),
            "--disable-runtime-dependency-installation",
        )
        ends = time.monotonic() + 60
        while not flower.listens():
            assert time.monotonic() < ends, (root / "superlink.log").read_text()
            time.sleep(0.2)
        for number in range(SILOS):
            configuration = (
                f'fedsys-agent="{root / f"a{number}"}" fedsys-data="digits" '
                f'fedsys-shard="{number}/{SILOS}"'
            )
            flower.start(
                f"supernode-{number}",
                "flower-supernode",
                *("--insecure", "--superlink", f"127.0.0.1:{flower.port}"),
                *("--port", str(free_port()), "--node-config", configuration),
            )
        yield flower
    finally:
        for process in flower.processes:
            process.terminate()
        for process in flower.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait(20)


def prepare(root: Path, config: Config) -> Path:
    """A coordinator that three devices have joined, whose owners allow anything for digits."""
    worker = LocalData(DataSpec.parse("digits", None))
    approved = ApprovedTask(sha256=worker.sha256, options={})
    policy = Policy.fresh("digits", approved, corrupt=0.0).dump()
    home = root / "coordinator"
    with running_port(home) as port:
        for number in range(SILOS):
            port.enroll(f"silo-{number}", root / f"a{number}")
            path = root / f"a{number}" / "policy.toml"
            path.touch(mode=0o600)
            path.write_text(policy.replace("epsilon = 10.0", "epsilon = inf"))
    settings = home / "coordinator.toml"
    # a machine with two cores starts three processes for every stage
    settings.write_text(settings.read_text().replace("stage = 30.0", "stage = 90.0"))
    (root / "job.toml").write_text(dump(config))
    return home


def completed(federation: Flower, home: Path, job: Path) -> Path:
    """Run a job as a Flower run to its end; the folder of its run."""
    before = set((home / "jobs").glob("*"))
    settings = f'fedsys-home="{home}" fedsys-job="{job}"'
    status = federation.run(settings, seconds=800)
    log = (federation.root / "superlink.log").read_text()[-3000:]
    assert status == "finished:completed", log
    (run,) = set((home / "jobs").glob("*")) - before
    assert audit_run(run).passed
    return run


def countersigned(home: Path, run: Path) -> set[tuple[int, int]]:
    """Round and node."""
    state = State.open(home)
    with state.transaction() as session:
        rows = session.query(CountersignatureRow).filter_by(job=run.name).all()
    state.close()
    return {(row.round, row.node) for row in rows}


def digests(run: Path) -> list[str]:
    """Of each round's aggregate."""
    return [each.body["aggregate_sha256"] for each in read_ledger(run / "ledger.jsonl").rounds]


def test_jobs_over_superlink_and_supernodes(tmp_path: Path) -> None:
    config, everybody = job(), {(round, node) for round in (1, 2) for node in (1, 2, 3)}
    home = prepare(tmp_path, config)
    simulated = harness.run(config, out=tmp_path / "simulated").folder
    silo = tmp_path / "silo.toml"
    silo.write_text(dump(load("silo", ["rounds.count=2"])))
    with flower(tmp_path) as federation:
        plain = completed(federation, home, tmp_path / "job.toml")
        protected = completed(federation, home, silo)
    assert digests(plain) == digests(simulated)
    assert (plain / "model.pt").read_bytes() == (simulated / "model.pt").read_bytes()
    assert replay(plain).difference is None
    summary = json.loads((protected / "summary.json").read_text())
    assert summary["privacy"]["unit"] == "example"
    assert summary["rounds"] == 2
    for run in (plain, protected):
        assert countersigned(home, run) == everybody
