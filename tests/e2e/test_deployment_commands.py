"""What a new user types: coordinator, devices, a job, `kill -9` of both sides, the result."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
AGENTS = 5


class Shell:
    """Runs ``fedsys`` as a user does, in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.running: list[subprocess.Popen[str]] = []
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "FEDSYS_HOME": str(root / "home"),
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command to its end; what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "fedsys", *words],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout + (done.stderr if code else "")

    def start(self, name: str, *words: str) -> subprocess.Popen[str]:
        """Start a command that stays; its lines go to ``name.out``."""
        with (self.root / f"{name}.out").open("a") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedsys", *words],
                cwd=self.root,
                env=self.environment,
                stdout=out,
                stderr=out,
                text=True,
            )
        self.running.append(process)
        return process

    def wait_for(self, name: str, pattern: str, *, seconds: float = 60) -> str:
        """Wait until a started command has printed this."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            text = (self.root / f"{name}.out").read_text()
            found = list(re.finditer(pattern, text))
            if found:
                return found[-1].group(1)
            time.sleep(0.1)
        raise TimeoutError((self.root / f"{name}.out").read_text())


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    found = Shell(tmp_path)
    yield found
    for process in found.running:
        if process.poll() is None:
            process.kill()
        process.wait(20)


def test_a_federation_by_hand(shell: Shell) -> None:
    run, start = shell.run, shell.start
    run("coordinator", "init", "hq", "--host", "localhost", "--host", "127.0.0.1")
    settings = shell.root / "hq" / "coordinator.toml"
    text = settings.read_text()
    settings.write_text(text.replace('metrics = ""', 'metrics = "127.0.0.1:19464"'))
    coordinator = start("hq", "coordinator", "run", "hq", "--listen", "127.0.0.1:0")
    port = shell.wait_for("hq", r"listening on \S+:(\d+)")
    listen = f"127.0.0.1:{port}"
    agents = []
    for number in range(AGENTS):
        token = run("coordinator", "enroll", "hq", f"ward-{number}", "--quiet").strip()
        run("agent", "join", listen, "--token", token, f"ward{number}")
        assert "used already" in run(
            "agent", "join", listen, "--token", token, f"thief{number}", code=2
        )
        shard = f"{number}/{AGENTS}"
        agents.append(
            start(
                f"w{number}", "agent", "run", f"ward{number}", "--data", "digits", "--shard", shard
            )
        )
    job = run(
        *("job", "submit", "hq", "silo", "--quiet"),
        *("--set", "population.clients=5", "--set", "cohort.expected=5"),
        *("--set", "cohort.cap=5", "--set", "cohort.min_survivors=3"),
        *("--set", "rounds.count=30", "--set", "privacy.noise_multiplier=3.6"),
        *("--set", "aggregation.corrupt=0.1"),
    ).strip()
    socket = shell.root / "hq" / "operator.sock"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    page = urllib.request.urlopen("http://127.0.0.1:19464/metrics", timeout=10).read().decode()
    assert "fedsys_connected_agents" in page

    watcher = start("watch", "job", "watch", "hq", job)
    shell.wait_for("watch", r"(round [2-9]/30)")
    agents[4].send_signal(signal.SIGKILL)
    agents[4].wait(20)
    agents[4] = start("w4", "agent", "run", "ward4", "--data", "digits", "--shard", "4/5")
    shell.wait_for("watch", r"(round 1[0-9]/30)")  # of quick rounds it does not see every one
    coordinator.send_signal(signal.SIGKILL)
    coordinator.wait(20)
    assert "no coordinator answers" in run("job", "list", "hq", code=2)
    start("hq", "coordinator", "run", "hq", "--listen", listen)
    shell.wait_for("hq", rf"listening on \S+:({port})(?s:.*)listening on \S+:{port}")
    assert watcher.wait(120) == 0, "who watches is told of the job's end by the next coordinator"
    run("job", "watch", "hq", job)
    assert "completed" in run("job", "show", "hq", job)
    assert "connected" in run("coordinator", "nodes", "hq")

    assert "audit passes" in run("job", "fetch", "hq", job, "result")
    run("audit", "result")
    summary = json.loads((shell.root / "result" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["rounds"] == 30
    assert (shell.root / "result" / "report.html").exists()

    status = run("agent", "status", "ward0")
    assert re.search(r"silo: (2[0-9]|30) rounds", status), status
    assert "ok" in run("agent", "doctor", "ward0")
    run("agent", "pause", "ward0")
    assert "paused" in run("agent", "status", "ward0")
    run("agent", "resume", "ward0")
    assert "is at work in it; stop that" in run("agent", "leave", "ward1", code=2)
    agents[1].send_signal(signal.SIGTERM)
    assert agents[1].wait(60) == 0
    run("agent", "leave", "ward1")
    assert "revoked" in run("coordinator", "nodes", "hq")
    assert "has not joined" in run("agent", "status", "ward1", code=2)
    refused = run("job", "submit", "hq", "silo", "--quiet", code=2)
    assert "population.clients = 3, but 4 nodes" in refused


def test_an_independent_authority_signs_the_roster(shell: Shell) -> None:
    run = shell.run
    public = run("coordinator", "sign-roster", "authority.key").strip()
    run("coordinator", "init", "hq", "--roster-key", public, "--host", "127.0.0.1")
    shell.start("hq", "coordinator", "run", "hq", "--listen", "127.0.0.1:0")
    port = shell.wait_for("hq", r"listening on \S+:(\d+)")
    token = run("coordinator", "enroll", "hq", "a", "--quiet").strip()
    run("agent", "join", f"127.0.0.1:{port}", "--token", token, "a")
    assert "pending" in run("coordinator", "nodes", "hq")
    run("coordinator", "roster", "hq", "--propose", "next.json")
    run("coordinator", "sign-roster", "other.key", "next.json")
    assert "not signed by the pinned authority" in run(
        "coordinator", "roster", "hq", "--accept", "next.signed", code=2
    )
    shown = run("coordinator", "sign-roster", "authority.key", "next.json")
    identity = run("agent", "status", "a")
    fingerprints = re.findall(r"\+ node 1 +([0-9a-f-]{39})", shown)
    assert len(fingerprints) == 1
    assert fingerprints[0] in identity
    assert "version 1 is in force" in run("coordinator", "roster", "hq", "--accept", "next.signed")
    assert "active" in run("coordinator", "nodes", "hq")
    forked = json.loads((shell.root / "next.json").read_text())
    forked["colluders"] = 1
    (shell.root / "fork.json").write_text(json.dumps(forked, sort_keys=True, separators=(",", ":")))
    refused = run("coordinator", "sign-roster", "authority.key", "fork.json", code=2)
    assert "signed another list with that version" in refused
    assert not (shell.root / "fork.signed").exists()


def test_mistakes_are_one_line(shell: Shell) -> None:
    run = shell.run
    assert "no coordinator here" in run("job", "list", ".", code=2)
    run("coordinator", "init", "hq")
    assert "not empty" in run("coordinator", "init", "hq", code=2)
    assert "no coordinator answers" in run("job", "submit", "hq", "silo", code=2)
    assert "has not joined" in run("agent", "run", "x", "--data", "digits", code=2)
    assert "damaged or incomplete" in run(
        "agent", "join", "127.0.0.1:1", "--token", "fedsys1.abc", "x", code=2
    )
    assert "not a public key" in run("coordinator", "init", "y", "--roster-key", "z", code=2)
