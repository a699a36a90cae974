"""One schedule, from the first boot to the end of its job."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

from numpy.typing import NDArray

from client.agent import Agent
from fedsys.errors import FedsysError
from fedsys.privacy import read_ledger
from fedsys.wire import fleet_pb2
from secure_agg import Identity, SecureAggError
from secure_agg.messages import kind_of
from server.checkpoint import sha256_of_weights
from simulations.deterministic.agent import AgentParty, found, roster_of
from simulations.deterministic.clock import Clock
from simulations.deterministic.coordinator import CoordinatorParty
from simulations.deterministic.dice import Dice
from simulations.deterministic.invariants import Violation, Witness, recorded
from simulations.deterministic.job import committees_of, describe
from simulations.deterministic.network import Network
from simulations.deterministic.schedule import Schedule
from simulations.deterministic.storage import Crashed, Disk, FlushFate, Storage

__all__ = ["Outcome", "World", "run"]

COORDINATOR = "coordinator"
EVENTS = 20_000
_FRAGILE = 6.0
_SICK = 0.12
_NAP = 0.6
_CALM = FlushFate()
_REPORTED = (FedsysError, SecureAggError, OSError)
"""What a party raises of its own when its disk has failed."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a schedule went.

    Attributes:
        seed: of it.
        status: how its job ended; None where an invariant broke.
        violation: which invariant broke, and how.
        rounds: reserved by the end; 0 where an invariant broke.
        commits: of them, those that gave a model.
        crashes: of any party.
        seconds: of virtual time.
        trace: what happened, a line an event.
    """

    seed: int
    status: str | None
    violation: str | None
    rounds: int
    commits: int
    crashes: int
    seconds: float
    trace: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the trace: equal for two runs of one seed."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


class _Party(Protocol):
    """What has a disk and starts."""

    disk: Disk

    def boot(self) -> None: ...


@dataclass
class _Life:
    """Whether a party lives, and which of its lives this is."""

    name: str
    disk: Disk
    boot: Callable[[], None]
    crash_rate: float
    up: bool = False
    life: int = 0
    died: float = -1e9
    disk_failed: bool = False


class World:
    """All parties of a schedule, and what happens to them.

    Args:
        schedule: what is to happen.
        root: an empty real folder for the disks.
    """

    def __init__(self, schedule: Schedule, root: Path) -> None:
        self.schedule = schedule
        self.trace: list[str] = []
        self.crashes = 0
        self.status: str | None = None
        self._root = str(root)
        seed = schedule.seed
        self._clock = Clock()
        self._dice = Dice(seed, "faults")
        self._storage = Storage(root, seed, self._fate)
        self._network = Network(
            self._clock, schedule.weather, schedule.calm_at, Dice(seed, "network")
        )
        job = describe(schedule)
        self.witness = Witness(
            job.plan, sha256_of_weights(job.weights), dict.fromkeys(schedule.frugal, 1)
        )
        keys = Dice(seed, "identities")
        identities = [Identity.generate(keys.bytes) for _ in range(schedule.population)]
        roster = roster_of(identities)
        self._agents = {
            id: AgentParty(
                id=id,
                most=1 if id in schedule.frugal else None,
                disk=self._storage.disk(f"agent-{id}"),
                dice=Dice(seed, f"agent {id}"),
                say=self._said,
            )
            for id in range(schedule.population)
        }
        for id, agent in self._agents.items():
            found(agent.disk, id, identities[id], roster, seed)
        self.coordinator = CoordinatorParty(
            job=job,
            disk=self._storage.disk(COORDINATOR),
            roster=roster,
            dice=Dice(seed, COORDINATOR),
            witness=self.witness,
            send=self._sent,
            later=self._later,
            ended=self._end,
        )
        self._lives: dict[str, _Life] = {}
        parties: list[tuple[_Party, float]] = [(self.coordinator, schedule.server_crash)]
        parties += [
            (agent, _SICK if id in schedule.sick else schedule.agent_crash)
            for id, agent in self._agents.items()
        ]
        for party, rate in parties:
            name = party.disk.name
            self._lives[name] = _Life(name=name, disk=party.disk, boot=party.boot, crash_rate=rate)

    def run(self) -> None:
        """Until the job has ended.

        Raises:
            Violation: an invariant broke.
        """
        with self._storage.watched(), committees_of(self.schedule.committee), self._inputs_seen():
            for life in self._lives.values():
                self._boot(life)
            for _ in range(EVENTS):
                if self.status is not None or not self._clock.step():
                    break
        if self.status is None:
            raise Violation(f"the job has not ended after {self._clock.now:.0f} s")
        self._check_end()

    @property
    def seconds(self) -> float:
        """Virtual time since the start."""
        return self._clock.now

    def _check_end(self) -> None:
        """What was closed must have been certain, not merely written."""
        folder, disk = self.coordinator.folder, self.coordinator.disk
        self.witness.survives(recorded(folder.ledger, folder.private))
        for path in (folder.ledger, folder.private, folder.model, folder.config):
            if disk.durable(path) != path.read_bytes():
                raise Violation(f"the job ended, but a loss of power could take {path.name}")
        view = read_ledger(folder.ledger)
        if view.closed is None:
            raise Violation("the job ended, but its ledger is not closed")

    # -- events ----------------------------------------------------------------------------------

    def _sent(self, agent: int, messages: tuple[fleet_pb2.Down, ...]) -> None:
        """The coordinator sends messages that arrive together."""
        what = f"{_named(messages)} to agent {agent}"
        for number, kind in filter(None, map(_stage_of, messages)):
            self._network.opens(number, kind)
        fate = self._network.carry(
            agent, inbound=False, arrive=lambda: self._at_agent(agent, messages, what)
        )
        self._note(f"{what}: {fate}")

    def _at_agent(self, agent: int, messages: tuple[fleet_pb2.Down, ...], what: str) -> None:
        def take() -> None:
            self._note(f"{what}: {party.take(messages)}")

        party = self._agents[agent]
        self._act(self._lives[party.disk.name], take)

    def _said(self, agent: int, message: fleet_pb2.Up) -> None:
        """An agent sends a message."""

        def take() -> None:
            self._note(f"{what}: {self.coordinator.take(agent, message)}")

        kind = str(message.WhichOneof("content"))
        what, sent = f"{kind} from agent {agent}", message.SerializeToString()
        if kind == "answer":
            answer = message.answer
            self.witness.says(self._agents[agent], answer.round, answer.message)
            what = f"round {answer.round} {kind_of(answer.message).name} from agent {agent}"
            sent = answer.message
        fate = self._network.carry(
            agent, inbound=True, arrive=lambda: self._act(self._lives[COORDINATOR], take)
        )
        digest = hashlib.sha256(sent).hexdigest()[:8]
        self._note(f"{what} ({digest}): {fate}")

    @contextmanager
    def _inputs_seen(self) -> Iterator[None]:
        """While this lasts, the witness sees every vector before it is encrypted."""
        provide, witness = Agent.provide, self.witness

        def seen(agent: Agent, vector: NDArray[Any]) -> None:
            provide(agent, vector)
            witness.provides(agent.id, vector)

        with mock.patch.object(Agent, "provide", seen):
            yield

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        """A timer of the coordinator's process; it dies with it."""
        life = self._lives[COORDINATOR]
        number = life.life

        def ring() -> None:
            if life.life == number:
                self._act(life, action)

        self._clock.after(seconds, ring)

    def _end(self, status: str) -> None:
        self._note(f"the job ended: {status}")
        self.status = status

    # -- life and death --------------------------------------------------------------------------

    def _act(self, life: _Life, action: Callable[[], None]) -> None:
        """Let a party do something, unless it is dead; it may die before, while or after."""
        if not life.up:
            return
        self._storage.acting, life.disk_failed = life.disk, False
        try:
            self._maybe_die(life)
            action()
            self._maybe_die(life)
        except Crashed as crash:
            self._bury(life, power_lost=crash.power_lost)
        except Violation:
            raise
        except Exception as error:
            if not life.disk_failed or not isinstance(error, _REPORTED):
                raise Violation(f"{life.name} failed: {type(error).__name__}: {error}") from error
            # A process whose disk failed stops, as the product tells its host to.
            life.disk.die(power_lost=False)
            self._bury(life, power_lost=False)
        finally:
            self._storage.acting = None

    def _maybe_die(self, life: _Life) -> None:
        if self.status is None and self._dice.chance(self._rate(life)):
            power_lost = self._takes_power(life)
            life.disk.die(power_lost=power_lost)
            raise Crashed(life.disk, power_lost=power_lost)

    def _fate(self, disk: Disk) -> FlushFate:
        life, dice = self._lives[disk.name], self._dice
        if self._clock.now >= self.schedule.calm_at:
            return _CALM
        if dice.chance(self.schedule.disk_failure):
            life.disk_failed = True
            self._note(f"{life.name}: the disk failed")
            return FlushFate(fails=True)
        if dice.chance(self._rate(life)):
            return FlushFate(
                dies=dice.one_of(("before", "after")),
                power_lost=self._takes_power(life),
            )
        return _CALM

    def _takes_power(self, life: _Life) -> bool:
        sick = life.crash_rate >= _SICK
        return self._dice.chance(0.5 if sick else self.schedule.power_loss)

    def _rate(self, life: _Life) -> float:
        """Misfortunes come in groups: one that has just restarted dies more easily."""
        if self._clock.now >= self.schedule.calm_at:
            return 0.0
        recent = self._clock.now - life.died < 2 * self.schedule.outage
        return min(life.crash_rate * (_FRAGILE if recent else 1.0), 0.25)

    def _bury(self, life: _Life, *, power_lost: bool) -> None:
        life.up, life.died = False, self._clock.now
        if power_lost and life.name != COORDINATOR:
            self.witness.lost_power(int(life.name.rpartition("-")[2]))
        life.life += 1
        self.crashes += 1
        self._note(f"{life.name} {'lost power' if power_lost else 'was killed'}")
        longest = _NAP if life.crash_rate >= _SICK else self.schedule.outage
        outage = self._dice.uniform(0.05, longest)
        self._clock.after(outage, lambda: self._boot(life))

    def _boot(self, life: _Life) -> None:
        life.disk.restart()
        life.up = True
        self._note(f"{life.name} starts")
        self._act(life, life.boot)

    def _note(self, line: str) -> None:
        self.trace.append(f"{self._clock.now:9.3f} {line}".replace(self._root, ""))


def _stage_of(message: fleet_pb2.Down) -> tuple[int, str] | None:
    """The round and the kind of a message of secure aggregation."""
    kind = message.WhichOneof("content")
    if kind not in ("stage", "invitation"):
        return None
    stage = message.stage if kind == "stage" else message.invitation.stage
    return stage.round, kind_of(stage.message).name


def _named(messages: tuple[fleet_pb2.Down, ...]) -> str:
    """For the trace."""
    for message in messages:
        if (found := _stage_of(message)) is not None:
            return f"round {found[0]} {found[1]}"
    return "+".join(str(message.WhichOneof("content")) for message in messages)


def run(seed: int, *, root: Path | None = None) -> Outcome:
    """Run one schedule.

    Args:
        seed: which.
        root: folder below which the disks lie while it runs; by default a fast one.
    """
    where = root or next((p for p in (Path("/dev/shm"),) if p.is_dir()), None)
    with tempfile.TemporaryDirectory(dir=where, prefix="fedsys-schedule-") as folder:
        world = World(Schedule.of(seed), Path(folder))
        violation: str | None = None
        try:
            world.run()
        except Violation as error:
            violation = str(error).replace(folder, "")
        ledger = world.coordinator.folder.ledger
        rounds = () if violation else read_ledger(ledger).rounds
        return Outcome(
            seed=seed,
            status=None if violation else world.status,
            violation=violation,
            rounds=len(rounds),
            commits=sum(record.outcome == "commit" for record in rounds),
            crashes=world.crashes,
            seconds=world.seconds,
            trace=tuple(world.trace),
        )
