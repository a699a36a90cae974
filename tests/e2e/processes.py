"""The testbed's federation, by number, with what tests need: exact crashes and fixed randomness.

A party may be told to kill itself (SIGKILL) at a stage of a round, which is what ``kill -9`` does,
at an exact point.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from client.policy import Policy
from fedsys.config import Config, dump, load
from fedsys.wire import fleet_pb2
from server.deployed.queue import submit
from server.home.folder import Home
from server.home.state import State
from simulations.testbed import federation as testbed
from simulations.testbed.federation import COORDINATOR

Crash = tuple[str, int, str]
"""(stage, round, "before" | "after"): die before or after that stage of that round."""


def silos(*settings: str) -> Config:
    """The configuration next to this file, with some keys replaced."""
    return load(Path(__file__).with_name("silos.toml"), settings)


def prepare_coordinator(seed: bytes | None, crash: Crash | None) -> None:
    """In a coordinator's process, before it starts.

    Args:
        seed: for tests of equality; None for the operating system's entropy.
        crash: around the moment at which a stage is durable.
    """
    from server.deployed.round import Randomness
    from server.grpc_service import run_coordinator
    from simulations.randomness import SeededRandomness

    if crash is not None:
        _die_when(State, "update_job", crash, lambda values: values.get("stage"))
    if seed is not None:
        seeded = SeededRandomness(seed)
        randomness = Randomness(names=seeded.job(), seeds=seeded.sampling)
        _set_default(run_coordinator, "randomness", randomness)


def prepare_agent(
    client: int, seed: bytes | None, crash: Crash | None, gates: Path | None = None
) -> None:
    """In an agent's process, before it starts; `crash` is around its answer to a message.

    Args:
        client: its number.
        seed: for tests of equality; None for the operating system's entropy.
        crash: at what to die: a message of secure aggregation, or one of the fleet's by its name in
            small letters.
        gates: where it trains, it makes a file ``at-CLIENT-ROUND`` in this folder, and goes on once
            there is ``go-CLIENT-ROUND``, or ``go``.
    """
    from client.grpc_host import Backoff
    from client.session import Session
    from simulations.randomness import SeededRandomness

    os.nice = lambda _more: 0  # a busy machine would starve it
    _set_default(Backoff.__init__, "first", 0.05)
    _set_default(Backoff.__init__, "most", 0.5)
    if crash is not None and crash[0].islower():
        _die_when_told(crash)
    elif crash is not None:
        _die_at_message(crash)
    if gates is not None:
        _wait_at(gates, client)
    if seed is not None:
        seeded = SeededRandomness(seed)
        _set_default(Session.__init__, "noise", lambda round: seeded.noise(round, client))


def _set_default(function: Any, name: str, value: object) -> None:
    """Give a keyword that nobody gives another default."""
    assert name in function.__kwdefaults__
    function.__kwdefaults__[name] = value


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


def _die_when_told(crash: Crash) -> None:
    from client.session import Session

    kind, round_number, when = crash
    original = Session.handle

    def watched(self: Session, message: fleet_pb2.Down) -> fleet_pb2.Up | None:
        content = getattr(message, kind)
        about = content.stage.round if kind == "collect" else content.round
        hit = message.HasField(kind) and about == round_number
        if hit and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = original(self, message)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    Session.handle = watched  # type: ignore[method-assign]


def _wait_at(gates: Path, client: int) -> None:
    from client.local_data import LocalData

    original = LocalData.train

    def waiting(self: LocalData, terms: Any, assignment: Any, *rest: Any) -> Any:
        name = f"{client}-{assignment.round}"
        (gates / f"at-{name}").touch()
        while not (gates / f"go-{name}").exists() and not (gates / "go").exists():
            time.sleep(0.02)
        return original(self, terms, assignment, *rest)

    LocalData.train = waiting  # type: ignore[method-assign, assignment]


@dataclass
class Federation(testbed.Federation):
    """Processes on the loopback, by number.

    Attributes:
        seed: of randomness; None for the operating system's.
    """

    seed: bytes | None = None

    @property
    def coordinator(self) -> ForkServerProcess | None:
        """Its process."""
        return self.parties.get(COORDINATOR)

    @property
    def agents(self) -> dict[int, ForkServerProcess]:
        """Their processes."""
        return {int(name[1:]): each for name, each in self.parties.items() if name != COORDINATOR}

    def restart_coordinator(self) -> None:
        """Stop it gracefully and start it again."""
        assert self.stop(COORDINATOR, signal.SIGTERM) == 0, self.log(COORDINATOR)
        self.start_coordinator()

    def start_coordinator(self, crash: Crash | None = None) -> None:
        """Start it, at the port that it had before."""
        self.start(COORDINATOR, before=functools.partial(prepare_coordinator, self.seed, crash))

    def join(self, agents: int) -> None:
        """Let so many devices join; the coordinator must be running."""
        from client.enrollment import join

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
        crash: Crash | None = None,
        gates: Path | None = None,
    ) -> None:
        """Start one device; its shard has its number unless another is given."""
        part = number if shard is None else shard
        before = functools.partial(prepare_agent, part, self.seed, crash, gates)
        self.start(f"a{number}", data=data, shard=f"{part}/{of}", before=before)

    def allow_anything(self, number: int) -> None:
        """Write a policy without limits for one device."""
        (self.root / f"a{number}" / "policy.toml").write_text(Policy().dump())

    def submit(self, config: Config) -> str:
        """Queue a job, also where no coordinator runs; its id."""
        return submit(self.state, dump(config)).id

    def wait_for_death(self, process: ForkServerProcess | None, *, seconds: float = 120) -> None:
        """Wait until a party has killed itself."""
        assert process is not None
        process.join(seconds)
        assert process.exitcode == -signal.SIGKILL, self.log(COORDINATOR)

    def log(self, name: str) -> str:
        """The last lines of a party's log."""
        return super().log(COORDINATOR if name == "coordinator" else name)

    def ledger(self, job: str) -> list[dict[str, Any]]:
        """Lines of a job's ledger."""
        text = (self.home.jobs / job / "ledger.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


@contextmanager
def federation(
    root: Path, agents: int, *, epsilon: float | None = None, seed: bytes | None = None
) -> Iterator[Federation]:
    """A coordinator that runs, and devices that joined but do not run yet."""
    home = Home.create(root / COORDINATOR, hosts=["127.0.0.1"], epsilon=epsilon)
    found = Federation(root=root, size=agents, home=home, state=State.open(home.path), seed=seed)
    found.configure(patience=60.0, reconnect=8.0, stage=30.0, training=60.0)
    try:
        found.start_coordinator()
        found.join(agents)
        yield found
    finally:
        found.close()
