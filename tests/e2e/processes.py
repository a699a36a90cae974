"""A coordinator and agents as real processes, forked from one that has everything imported.

A party may be told to kill itself (SIGKILL) at a stage of a round, which is what ``kill -9`` does,
at an exact point.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import tomli_w

from fedsys.config import Config, dump, load
from fedsys.wire import fleet_pb2
from server.home import Home
from server.state import ACTIVE_JOB, JobRow, State
from server.submission import submit

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.e2e.processes", "tests.e2e.preloaded"])


def silos(*settings: str) -> Config:
    """The configuration beside this file, with some keys replaced."""
    return load(Path(__file__).with_name("silos.toml"), settings)


def coordinator_main(
    folder: Path, listen: str, ready: Any, seed: bytes | None, crash: tuple[str, int, str] | None
) -> None:
    """A coordinator's process.

    Args:
        folder: of the coordinator.
        listen: ``HOST:PORT``.
        ready: a connection that is told the port.
        seed: for tests of equality; None for the operating system's entropy.
        crash: (stage, round, "before" | "after"): die before or after that stage is durable.
    """
    from fedsys.cli.coordinator import model_of
    from fedsys.logs import configure
    from server.grpc_service import run_coordinator
    from server.round_cycle import Randomness
    from simulations.randomness import SeededRandomness

    _log_to(folder.parent / "coordinator.log")
    configure("text")
    if crash is not None:
        _die_when(State, "update_job", crash, lambda values: values.get("stage"))
    randomness = None
    if seed is not None:
        seeded = SeededRandomness(seed)
        randomness = Randomness(sampling=seeded.sampling, top_up=seeded.top_up)
    asyncio.run(
        run_coordinator(
            Home.open(folder),
            listen=listen,
            models=model_of,
            ready=ready.send,
            randomness=randomness,
        )
    )


def agent_main(
    folder: Path, data: str, shard: str, seed: bytes | None, crash: tuple[str, int, str] | None
) -> None:
    """An agent's process; `crash` as above, around its answer to that stage's message."""
    from client.grpc_host import Backoff, ConnectionHost
    from client.identity import Credentials
    from client.policy import ApprovedTask, Policy
    from client.session import Session
    from client.worker import DataSpec, LocalData
    from fedsys.logs import configure
    from simulations.randomness import SeededRandomness

    _log_to(folder.parent / f"{folder.name}.log")
    configure("text")
    worker = LocalData(DataSpec.parse(data, shard))
    path = folder / "policy.toml"
    if not path.exists():
        fresh = Policy.fresh(worker.spec.task, ApprovedTask(sha256=worker.sha256))
        path.write_text(fresh.dump())
    if crash is not None:
        _die_at_message(crash)
    client = int(shard.partition("/")[0])
    noise: dict[str, Any] = {}
    if seed is not None:
        seeded = SeededRandomness(seed)
        noise["noise"] = lambda round: seeded.noise(round, client)
    session = Session(
        credentials=Credentials.load(folder),
        worker=worker,
        policy=lambda: Policy.load(path),
        **noise,
    )
    host = ConnectionHost(session, backoff=Backoff(first=0.05, most=0.5))
    signal.signal(signal.SIGTERM, lambda *_: host.stop())
    host.run()


def _die_when(
    owner: Any, name: str, crash: tuple[str, int, str], stage_of: Callable[[Any], Any]
) -> None:
    stage, round_number, when = crash
    original = getattr(owner, name)
    seen = {"round": 0}

    def watched(self: Any, id: str, **values: Any) -> Any:
        if values.get("stage") == "reserved":
            seen["round"] = values["round"]
        hit = stage_of(values) == stage and seen["round"] == round_number
        if hit and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(self, id, **values)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, watched)


def _die_at_message(crash: tuple[str, int, str]) -> None:
    from client.session import Session
    from secure_agg.messages import kind_of

    kind, round_number, when = crash
    original = Session._stage

    def watched(self: Session, stage: fleet_pb2.Stage) -> fleet_pb2.Up:
        hit = kind_of(stage.message).name == kind and stage.round == round_number
        if hit and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = original(self, stage)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    Session._stage = watched  # type: ignore[method-assign]


def _log_to(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)


@dataclass
class Federation:
    """Processes on the loopback.

    Attributes:
        root: holds the coordinator's folder ``c`` and the agents' ``a0``, ``a1``, ...
    """

    root: Path
    home: Home
    state: State
    port: int = 0
    seed: bytes | None = None
    coordinator: ForkServerProcess | None = None
    agents: dict[int, ForkServerProcess] = field(default_factory=dict)

    def configure(self, **values: float) -> None:
        """Change ``coordinator.toml``; it counts at the coordinator's next start."""
        settings = self.home.settings().model_copy(update=values)
        text = tomli_w.dumps(settings.model_dump(exclude_none=True))
        self.home.settings_file.write_text(text)

    def restart_coordinator(self) -> None:
        """Stop it gracefully and start it again."""
        assert self.coordinator is not None
        self.coordinator.terminate()
        self.coordinator.join(30)
        assert self.coordinator.exitcode == 0, self.log("coordinator")
        self.start_coordinator()

    def start_coordinator(self, crash: tuple[str, int, str] | None = None) -> None:
        """Start it, at the port that it had before."""
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(
            target=coordinator_main,
            args=(self.home.path, f"127.0.0.1:{self.port}", theirs, self.seed, crash),
            daemon=True,
        )
        process.start()
        theirs.close()
        if not ours.poll(120):
            raise TimeoutError(self.log("coordinator"))
        self.port = int(ours.recv())
        self.coordinator = process

    def join(self, agents: int) -> None:
        """Let so many devices join; the coordinator must be running."""
        from client.grpc_channel import join

        registry = self.home.registry(self.state)
        for number in range(agents):
            token = registry.issue_token(f"silo-{number}")
            join(f"127.0.0.1:{self.port}", token, self.root / f"a{number}")

    def start_agent(
        self,
        number: int,
        of: int,
        *,
        data: str = "digits",
        shard: int | None = None,
        crash: tuple[str, int, str] | None = None,
    ) -> None:
        """Start one device; its shard has its number unless another is given."""
        part = f"{number if shard is None else shard}/{of}"
        process = _CONTEXT.Process(
            target=agent_main,
            args=(self.root / f"a{number}", data, part, self.seed, crash),
            daemon=True,
        )
        process.start()
        self.agents[number] = process

    def wait_connected(self, *, seconds: float = 120) -> None:
        """Wait until every started agent has been greeted."""
        end = time.monotonic() + seconds
        for number in self.agents:
            path = self.root / f"a{number}" / "status.json"
            while not path.exists() or json.loads(path.read_text())["connection"] != "connected":
                if time.monotonic() > end:
                    raise TimeoutError(self.log(f"a{number}"))
                time.sleep(0.05)

    def allow_anything(self, number: int) -> None:
        """Write a policy without limits for one device."""
        from client.policy import Policy

        (self.root / f"a{number}" / "policy.toml").write_text(Policy().dump())

    def submit(self, config: Config) -> str:
        """Queue a job; its id."""
        return submit(self.state, dump(config)).id

    def wait(self, job: str, *, seconds: float = 120, until: str | None = None) -> JobRow:
        """Wait until a job is over, or has this status."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            row = self.state.job(job)
            if row.status == until or (until is None and row.status not in ACTIVE_JOB):
                return row
            time.sleep(0.05)
        raise TimeoutError(f"job {self.state.job(job).status}: {self.log('coordinator')}")

    def wait_for_death(self, process: ForkServerProcess | None, *, seconds: float = 120) -> None:
        """Wait until a party has killed itself."""
        assert process is not None
        process.join(seconds)
        assert process.exitcode == -signal.SIGKILL, self.log("coordinator")

    def log(self, name: str) -> str:
        """The last lines of a party's log."""
        path = self.root / f"{name}.log"
        return path.read_text()[-3000:] if path.exists() else "no log"

    def ledger(self, job: str) -> list[dict[str, Any]]:
        """Lines of a job's ledger."""
        text = (self.home.jobs / job / "ledger.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def commits(self, job: str) -> dict[int, dict[str, Any]]:
        """Bodies of the committed rounds."""
        lines = [line["body"] for line in self.ledger(job) if line["kind"] == "commit"]
        return {body["round"]: body for body in lines}


@contextmanager
def federation(
    root: Path, agents: int, *, epsilon: float | None = None, seed: bytes | None = None
) -> Iterator[Federation]:
    """A coordinator that runs, and devices that joined but do not run yet."""
    home = Home.create(root / "c", hosts=["127.0.0.1"], epsilon=epsilon)
    found = Federation(root=root, home=home, state=State.open(home.path), seed=seed)
    found.configure(patience=60.0, reconnect=8.0, stage=30.0, training=60.0)
    try:
        found.start_coordinator()
        found.join(agents)
        yield found
    finally:
        for process in [*found.agents.values(), found.coordinator]:
            if process is not None and process.is_alive():
                process.kill()
                process.join(10)
        found.state.close()
