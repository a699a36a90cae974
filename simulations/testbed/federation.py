"""A coordinator and agents as real processes on the loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import tomli_w

from client.policy import Policy
from client.volatile import volatile_folder
from fedsys.config import Config, dump
from fedsys.errors import FedsysError
from server.home.folder import Home
from server.home.state import ACTIVE_JOB, JobRow, State
from simulations.testbed import commands
from simulations.testbed.proxy import Proxy

__all__ = ["COORDINATOR", "Federation", "TestbedError"]

COORDINATOR = "c"
"""The coordinator's name here; agents are ``a0``, ``a1``, ..."""
_POLL = 0.05
_PATIENCE = 60.0


class TestbedError(FedsysError):
    """A party of the testbed misbehaves; the message ends with the end of its log."""

    __test__ = False  # for pytest


@dataclass
class Federation:
    """Processes on the loopback; each party's folder and log have its name.

    Attributes:
        root: Folder with the coordinator's folder ``c`` and the agents' ``a0``, ``a1``, ...
        size: Number of agents.
        home: The coordinator's folder.
        state: The coordinator's database, which is read here too.
        port: The coordinator's port; 0 until its first start.
        proxy: Proxy that agents dial through; None where they dial directly.
        parties: Running processes, by name.
        spared: Names of parties that no fault may strike.
        runtime: Stands in for systemd's ``RUNTIME_DIRECTORY``: a folder on tmpfs, where possible.
        overstayed: Parties that had to be killed because a signal to stop did not end them.
    """

    root: Path
    size: int
    home: Home
    state: State
    port: int = 0
    proxy: Proxy | None = None
    parties: dict[str, ForkServerProcess] = field(default_factory=dict)
    spared: frozenset[str] = frozenset()
    overstayed: list[str] = field(default_factory=list)
    runtime: str = field(default_factory=lambda: _runtime())

    @classmethod
    @contextmanager
    def make(
        cls, root: Path, size: int, *, proxied: bool = False, seed: int = 0
    ) -> Iterator[Federation]:
        """A running coordinator, and devices that have joined but not started; every process is
        killed at the end.

        Args:
            root: An existing folder.
            size: Number of agents.
            proxied: Whether agents dial through a `Proxy`.
            seed: Seed of the proxy's random draws.
        """
        home = Home.create(root / COORDINATOR, hosts=["127.0.0.1"])
        found = cls(root=root, size=size, home=home, state=State.open(home.path))
        found.configure(patience=60.0, reconnect=2.0, stage=5.0, training=10.0)
        try:
            found.start(COORDINATOR)
            if proxied:
                found.proxy = Proxy(lambda: ("127.0.0.1", found.port), seed=seed)
                found.proxy.__enter__()
            for number in range(size):
                found._join(number)
            yield found
        finally:
            found.close()

    def close(self) -> None:
        """Kill every party."""
        for process in self.parties.values():
            process.kill()
            process.join()
        if self.proxy is not None:
            self.proxy.__exit__()
        self.state.close()
        shutil.rmtree(self.runtime, ignore_errors=True)

    @property
    def names(self) -> list[str]:
        """Names of all agents."""
        return [f"a{number}" for number in range(self.size)]

    def configure(self, **values: float) -> None:
        """Change ``coordinator.toml``, which the coordinator reads at its next start."""
        settings = self.home.settings().model_copy(update=values)
        self.home.settings_file.write_text(tomli_w.dumps(settings.model_dump(exclude_none=True)))

    # -- processes ---------------------------------------------------------------------------------

    def command(self, *words: str | Path) -> str:
        """Run a ``fedsys`` command to its end; returns its output.

        Raises:
            TestbedError: The command failed.
        """
        code, text = commands.run(
            [str(word) for word in words],
            output=self.root / "command.log",
            folder=self.root,
            environment=self._environment,
        )
        if code != 0:
            raise TestbedError(f"fedsys {' '.join(map(str, words))}: exit {code}: {text[-2000:]}")
        return text

    def start(
        self,
        name: str,
        *,
        clock: float = 0.0,
        data: str = "digits",
        shard: str | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        """Start a party.

        Args:
            name: Name of the coordinator or of an agent.
            clock: Seconds by which its wall clock is wrong.
            data: An agent's ``--data``.
            shard: An agent's ``--shard``; by default its number of all agents.
            before: Called in its process before the command; for tests.

        Raises:
            TestbedError: The coordinator does not listen.
        """
        log = self.root / f"{name}.log"
        if name == COORDINATOR:
            words = ["coordinator", "run", COORDINATOR, "--listen", f"127.0.0.1:{self.port}"]
        else:
            part = f"{name[1:]}/{self.size}" if shard is None else shard
            words = ["agent", "run", name, "--data", data, "--shard", part, "--corrupt", "0"]
        written = log.stat().st_size if log.exists() else 0
        process = commands.start(
            words,
            output=log,
            folder=self.root,
            environment=self._environment,
            clock=clock,
            before=before,
        )
        self.parties[name] = process
        if name != COORDINATOR:
            return
        found = self._wait_for(log, rb"listening on \S+:(\d+)\n", written, process)
        self.port = int(found)

    def stop(self, name: str, number: signal.Signals = signal.SIGKILL) -> int | None:
        """End a party by a signal, and wait until it is gone; returns its exit code."""
        process = self.parties.pop(name)
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)
        process.join(_PATIENCE)
        if process.is_alive():
            self.overstayed.append(name)
            process.kill()
            process.join()
        return process.exitcode

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a party."""
        pid = self.parties[name].pid
        if pid is not None:
            os.kill(pid, number)

    @property
    def dead(self) -> dict[str, int | None]:
        """Parties that ended by themselves, with their exit codes."""
        return {n: p.exitcode for n, p in self.parties.items() if not p.is_alive()}

    def log(self, name: str) -> str:
        """The last lines of a party's log."""
        path = self.root / f"{name}.log"
        return path.read_text("utf-8", "replace")[-3000:] if path.exists() else "no log"

    @property
    def _environment(self) -> Mapping[str, str]:
        return {
            "FEDSYS_HOME": str(self.root / "home"),
            "OMP_NUM_THREADS": "1",
            "RUNTIME_DIRECTORY": self.runtime,
        }

    def _join(self, number: int) -> None:
        name = f"a{number}"
        port = self.port if self.proxy is None else self.proxy.port
        token = self.command("coordinator", "enroll", COORDINATOR, f"silo-{number}", "--quiet")
        self.command("agent", "join", f"127.0.0.1:{port}", "--token", token.strip(), name)
        (self.root / name / "policy.toml").write_text(Policy(nice=0).dump())

    def _wait_for(
        self, log: Path, pattern: bytes, offset: int, process: ForkServerProcess
    ) -> bytes:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.is_alive():
            if log.exists():
                found = re.search(pattern, log.read_bytes()[offset:])
                if found is not None:
                    return found[1]
            time.sleep(_POLL)
        raise TestbedError(f"{log.stem} does not start: {self.log(log.stem)}")

    # -- jobs --------------------------------------------------------------------------------------

    def wait_connected(self, *, seconds: float = 120) -> None:
        """Wait until every started agent has been greeted."""
        end = time.monotonic() + seconds
        for name in self.parties.keys() - {COORDINATOR}:
            path = self.root / name / "status.json"
            while not path.exists() or json.loads(path.read_text())["connection"] != "connected":
                if time.monotonic() > end:
                    raise TestbedError(f"{name} does not connect: {self.log(name)}")
                time.sleep(_POLL)

    def submit(self, config: Config) -> str:
        """Submit a job; returns its id."""
        path = self.root / "job.toml"
        path.write_text(dump(config))
        return self.command("job", "submit", COORDINATOR, path, "--quiet").strip()

    def wait(self, job: str, *, seconds: float = 120, until: str | None = None) -> JobRow:
        """Wait until a job is over, or has this status.

        Raises:
            TestbedError: It took too long, or the job ended with another status.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            row = self.state.job(job)
            over = row.status not in ACTIVE_JOB
            if row.status == until or (until is None and over):
                return row
            if over:
                break
            time.sleep(_POLL)
        raise TestbedError(
            f"job {self.state.job(job).status}, not {until or 'over'}: {self.log(COORDINATOR)}"
        )

    def commits(self, job: str) -> dict[int, dict[str, Any]]:
        """Bodies of the ledger's commits so far, by round."""
        path = self.home.jobs / job / "ledger.jsonl"
        found = {}
        if path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:  # the last may not be complete
                body = json.loads(line)
                if body["kind"] == "commit":
                    found[int(body["body"]["round"])] = body["body"]
        return found

    def survivors(self, job: str) -> dict[int, list[int]]:
        """Clients whose vectors each committed round sums, by position in the roster."""
        path = self.home.jobs / job / "private.jsonl"
        lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_bytes().splitlines()]
        return {line["round"]: line["survivors"] for line in lines if "survivors" in line}


def _runtime() -> str:
    place = volatile_folder(candidates=("/dev/shm",))
    return tempfile.mkdtemp(prefix="testbed-", dir=place)
