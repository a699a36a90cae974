"""A large number of agents on one machine: real sessions and secure aggregation, no data.

::

    python -m simulations.testbed --crowd 1000

Each agent has its own keys, folder, journal, certificate and connection, and answers as a real one
does. Its update is zero, so that the coordinator's work dominates. Hundreds share a process, with
one thread each. The coordinator is the real one; its model has any length and is never trained.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from client.answer_time import AnswerTime
from client.grpc_host import Backoff, ConnectionHost
from client.identity import Credentials, pem_of
from client.policy import Policy
from client.session import Session
from fedsys.config import Config, dump, validate
from fedsys.logs import configure
from fedsys.preprocessing import Preprocessing
from fedsys.privacy import Entropy
from fedsys.privacy.encoding.parts import Parts
from fedsys.secret_files import write_secret
from fedsys.wire import Assignment, fleet_pb2
from fedsys.wire.roster import SignedStatement, signed_message
from fedsys.wire.terms import Terms
from secure_agg import MemoryStore
from server.deployed.queue import submit
from server.grpc_service import run_coordinator
from server.home.enrollment import Registry
from server.home.folder import Home
from server.home.state import ACTIVE_JOB, JobRow, State
from simulations.testbed.federation import TestbedError
from simulations.testbed.joining import join

__all__ = ["Crowd", "Flat", "crowd_job", "survive"]

_CODE = "00" * 32
_CONTEXT = multiprocessing.get_context("spawn")
_PATIENCE = 600.0
_M_ARENA_MAX = -8
"""``M_ARENA_MAX`` of glibc's malloc.h."""


@dataclass(frozen=True)
class Flat:
    """A model of this many weights, all zeros, without a task."""

    dimension: int

    @property
    def layers(self) -> tuple[int, ...]:
        """One parameter."""
        return (self.dimension,)

    @property
    def parts(self) -> Parts:
        """The update alone."""
        return Parts(dimension=self.dimension)

    @property
    def task_sha256(self) -> str:
        """The same as the agents' `Still.sha256`."""
        return _CODE

    @property
    def preprocessing(self) -> Preprocessing:
        """Fixed, because there is no data."""
        return "fixed"

    @property
    def frozen_sha256(self) -> str:
        """Nothing is frozen."""
        from fedsys.model_state import digest_of

        return digest_of(self.state_dict(self.initial_weights()), self.dimension).frozen

    @property
    def frozen_compared(self) -> str:
        """Empty for the same reason."""
        return ""

    def initial_weights(self) -> NDArray[np.float32]:
        """(d,) zeros."""
        return np.zeros(self.dimension, np.float32)

    def evaluate(self, weights: NDArray[np.float32]) -> dict[str, float] | None:
        """None: there is nothing to evaluate on."""
        return None

    def state_dict(self, weights: NDArray[np.float32]) -> dict[str, Any]:
        """The content of ``model.pt``."""
        import torch

        return {"weights": torch.from_numpy(weights)}


class _InTurn(Session):
    """One of many devices in one process, which handle messages one at a time.

    They share an interpreter lock, which each would otherwise release at every call into numpy and
    get back a context switch later: fifty devices that do so spend a sixth of their time on it. A
    real device has a process of its own.
    """

    _turn = threading.Lock()

    def handle(self, message: fleet_pb2.Down) -> fleet_pb2.Up | None:
        """See `Session.handle`."""
        with self._turn:
            return super().handle(message)


class Still:
    """A worker whose update is zero."""

    sha256 = _CODE

    def check(self, terms: Terms) -> None:
        """Accepts any terms."""

    def train(
        self, terms: Terms, assignment: Assignment, client: int, entropy: Entropy
    ) -> NDArray[np.float32]:
        """(1, d) zeros."""
        return np.zeros((1, terms.dimension), np.float32)


def crowd_job(agents: int, cohort: int, *, rounds: int) -> Config:
    """A job for a crowd, without noise: a tenth of each cohort may be lost."""
    return validate(
        {
            "job": {"name": "crowd"},
            "task": {"name": "digits"},
            "population": {"clients": agents},
            "cohort": {
                "expected": cohort,
                "cap": min(agents, 2 * cohort),
                "min_survivors": max(2, cohort // 2),
            },
            "rounds": {"count": rounds},
            "server": {"strategy": "fedavg"},
            "privacy": {"mechanism": "none"},
            "aggregation": {"dropout": 0.1, "corrupt": 0.1},
            "engine": {"path": "loop", "chunk": 1},
            "evaluation": {"data": "none"},
        }
    )


@dataclass
class Crowd:
    """A coordinator and many agents.

    Attributes:
        root: Folder with the coordinator's folder ``c`` and the agents' ``a0``, ``a1``, ...
        size: Number of agents.
        dimension: Number of weights of the model.
        home: The coordinator's folder.
        state: The coordinator's database.
        port: The coordinator's port.
        coordinator: The coordinator's process.
        holders: Processes that run the agents.
    """

    root: Path
    size: int
    dimension: int
    home: Home
    state: State
    port: int
    coordinator: SpawnProcess
    holders: list[SpawnProcess]

    @classmethod
    @contextmanager
    def make(cls, root: Path, size: int, *, dimension: int, processes: int = 2) -> Iterator[Crowd]:
        """A crowd that is enrolled and running; every process is killed at the end."""
        authority = Ed25519PrivateKey.generate()
        home = Home.create(
            root / "c",
            hosts=["127.0.0.1"],
            roster_key=authority.public_key().public_bytes_raw(),
        )
        patient = {"patience": _PATIENCE, "stage": 600.0, "training": 600.0, "reconnect": 60.0}
        settings = home.settings().model_copy(update=patient)
        home.settings_file.write_text(tomli_w.dumps(settings.model_dump(exclude_none=True)))
        coordinator, port = _start_coordinator(home, 0, dimension)
        crowd = cls(
            root=root,
            size=size,
            dimension=dimension,
            home=home,
            state=State.open(home.path),
            port=port,
            coordinator=coordinator,
            holders=[],
        )
        try:
            folders = crowd._enroll(authority)
            for number in range(processes):
                holder = _CONTEXT.Process(
                    target=_hold, args=(folders[number::processes], root / "crowd.log"), daemon=True
                )
                holder.start()
                crowd.holders.append(holder)
            yield crowd
        finally:
            for process in [*crowd.holders, crowd.coordinator]:
                process.kill()
                process.join()
            crowd.state.close()

    def restart_coordinator(self) -> None:
        """``kill -9`` the coordinator, and start it again at the same port."""
        self.coordinator.kill()
        self.coordinator.join()
        self.coordinator, _ = _start_coordinator(self.home, self.port, self.dimension)

    def wait_connected(self, *, seconds: float = _PATIENCE) -> float:
        """Wait until every agent reports that it is connected to the running coordinator.

        Returns:
            Seconds that it took.

        Raises:
            TestbedError: It took too long.
        """
        started, waiting = time.monotonic(), set(range(self.size))
        since = psutil.Process(self.coordinator.pid).create_time()
        while waiting:
            waiting = {each for each in waiting if not self._connected(each, since)}
            if time.monotonic() - started > seconds:
                raise TestbedError(f"{len(waiting)} of {self.size} agents do not connect")
            time.sleep(0.1)
        return time.monotonic() - started

    def run(self, config: Config, *, seconds: float = 3600) -> JobRow:
        """Submit a job and wait until it is over."""
        row = submit(self.state, dump(config))
        return self.wait(row.id, seconds=seconds)

    def wait(self, job: str, *, seconds: float = 3600, round: int | None = None) -> JobRow:
        """Wait until a job is over, or has reached a round."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            row = self.state.job(job)
            if row.status not in ACTIVE_JOB or (round is not None and row.round >= round):
                return row
            time.sleep(0.05)
        raise TestbedError(f"job {self.state.job(job).status} after {seconds:g} s")

    def seconds(self, job: str) -> list[dict[str, float]]:
        """Seconds that each stage of each committed round took, by the coordinator's clock."""
        lines = (self.home.jobs / job / "private.jsonl").read_bytes().splitlines()
        bodies: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [body["seconds"] for body in bodies if "seconds" in body]

    def _connected(self, number: int, since: float) -> bool:
        path = self.root / f"a{number}" / "status.json"
        try:
            body = json.loads(path.read_bytes())
        except OSError:
            return False
        return bool(body["connection"] == "connected" and body["at"] > since)

    def _enroll(self, authority: Ed25519PrivateKey) -> list[Path]:
        """Enrol every agent, as `client.enrollment.join` does; sign one roster of them all."""
        registry = self.home.registry(self.state)
        found = [self._join(registry, number) for number in range(self.size)]
        statement = registry.propose().encoded
        signature = authority.sign(signed_message(statement))
        registry.accept(SignedStatement(statement=statement, signature=signature))
        return found

    def _join(self, registry: Registry, number: int) -> Path:
        folder = self.root / f"a{number}"
        folder.mkdir(mode=0o700)
        joined = join(registry, f"n{number}")
        enrolled = joined.enrolled
        credentials = Credentials(
            folder=folder,
            node=enrolled.node,
            name=enrolled.name,
            coordinator=f"127.0.0.1:{self.port}",
            identity=joined.identity,
            ca=pem_of(joined.token.ca),
            roster_key=joined.token.roster_key,
            signer=bytes.fromhex(self.home.signer.public_hex),
        )
        write_secret(folder / "identity.ed25519", joined.identity.private_bytes())
        credentials.store_tls(joined.key, enrolled.certificate)
        credentials.store()
        return folder


def survive(root: Path, agents: int, *, cohort: int = 20, rounds: int = 6) -> dict[str, float]:
    """Kill the coordinator during a crowd's job: all agents must return, the job must complete.

    Returns:
        Seconds until all agents were connected, at first and again; memory and CPU share of the
        idle coordinator.

    Raises:
        TestbedError: Agents do not return, or the job does not complete.
    """
    with Crowd.make(root, agents, dimension=1000) as crowd:
        found = {"agents": float(agents), "connect_seconds": crowd.wait_connected()}
        found |= idle(crowd)
        job = submit(crowd.state, dump(crowd_job(agents, cohort, rounds=rounds))).id
        crowd.wait(job, round=rounds // 2)
        crowd.restart_coordinator()
        found["reconnect_seconds"] = crowd.wait_connected()
        row = crowd.wait(job)
        if row.status != "completed":
            raise TestbedError(f"the crowd's job {row.status}: {row.reason}")
        found["rounds"] = row.round
        return {key: round(value, 2) for key, value in found.items()}


def idle(crowd: Crowd, *, seconds: float = 5.0) -> dict[str, float]:
    """Resources of a coordinator that is connected to every agent and otherwise idle."""
    process = psutil.Process(crowd.coordinator.pid)
    before, start = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after = process.cpu_times()
    busy = after.user + after.system - before.user - before.system
    return {
        "idle_cpu_percent": 100 * busy / (time.monotonic() - start),
        "rss_mb": process.memory_info().rss / 1e6,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
    }


# -- the processes ---------------------------------------------------------------------------------


def _start_coordinator(home: Home, port: int, dimension: int) -> tuple[SpawnProcess, int]:
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(
        target=_coordinate, args=(home.path, port, dimension, theirs), daemon=True
    )
    process.start()
    theirs.close()
    if not ours.poll(_PATIENCE):
        raise TestbedError("the crowd's coordinator does not start")
    return process, int(ours.recv())


def _coordinate(folder: Path, port: int, dimension: int, ready: Connection) -> None:
    import torch  # noqa: F401  # now, as a task's model would, not first when a job is over

    _log_to(folder.parent / "coordinator.log")
    asyncio.run(
        run_coordinator(
            Home.open(folder),
            listen=f"127.0.0.1:{port}",
            models=lambda _config: Flat(dimension),
            ready=ready.send,
        )
    )


def _hold(folders: list[Path], log: Path) -> None:
    _log_to(log)
    policy, worker = Policy(), Still()
    _share_one_heap()
    threadpool_limits(policy.threads, user_api="blas")  # as `fedsys agent run` does
    for folder in folders:
        session = _InTurn(
            credentials=Credentials.load(folder),
            worker=worker,
            policy=lambda: policy,
            volatile=MemoryStore(),  # agents here are never restarted
            answer_time=AnswerTime(sleep=lambda _seconds: None),  # agents here never train
        )
        host = ConnectionHost(session, backoff=Backoff(first=1.0, most=10.0))
        threading.Thread(target=host.run, daemon=True).start()
    signal.pause()


def _share_one_heap() -> None:
    """Have all threads use one heap, where the C library is glibc.

    A real device works in one thread and reuses the memory of its last round. Fifty devices that
    share a process would have a heap each, and the kernel would clear pages for all of them.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_ARENA_MAX, 1)


def _log_to(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    configure("text")
