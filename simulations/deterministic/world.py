"""One schedule, from the first boot to the end of its job."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sqlalchemy.exc import DBAPIError

from client.policy import Policy
from client.session import Dismissed
from fedsys.errors import FedsysError
from fedsys.privacy import read_ledger
from fedsys.wire import fleet_pb2
from secure_agg import Identity, SecureAggError
from secure_agg.messages import kind_of
from server.checkpoint import sha256_of_weights
from server.home.state import ACTIVE_JOB, PAUSED
from simulations.deterministic.agent import AgentParty, found, roster_of
from simulations.deterministic.clock import Clock
from simulations.deterministic.coordinator import CoordinatorParty
from simulations.deterministic.database import job_of
from simulations.deterministic.dice import Dice
from simulations.deterministic.invariants import (
    Violation,
    Witness,
    countersigned,
    recorded,
)
from simulations.deterministic.job import INITIAL, describe, small_rounds
from simulations.deterministic.network import Connection, Network
from simulations.deterministic.observers import observed
from simulations.deterministic.schedule import Schedule
from simulations.deterministic.storage import Crashed, Disk, FlushFate, Storage

__all__ = ["Outcome", "World", "run"]

COORDINATOR = "coordinator"
EVENTS = 50_000
_FRAGILE = 6.0
_SICK = 0.12
_NAP = 0.6
_NOTICED = 2.5
"""Longest time in seconds until somebody finds out that a connection is broken."""
_REDIAL = 1.0
_LOOKS = 20.0
_SOON = 0.3
_CALM = FlushFate()
_REPORTED = (FedsysError, SecureAggError, OSError, DBAPIError)
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
    doomed: bool = False


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
        self._failed = False
        self._stops = list(schedule.stops)
        self._relapses = list(schedule.relapses)
        self._setbacks = {each[:3]: each[3] for each in schedule.setbacks}
        self._setback: tuple[Connection, int] | None = None
        """In hand: the connection of the agent that answers, and flushes before the one that fails.
        """
        self._declines_for_its_disk = self._server_disk_failed = False
        seed = schedule.seed
        self._clock = Clock()
        self._dice = Dice(seed, "faults")
        self._storage = Storage(root, seed, self._fate)
        self._network = Network(
            self._clock, schedule.weather, schedule.calm_at, Dice(seed, "network")
        )
        job = describe(schedule)
        self.witness = Witness(
            job.plan,
            sha256_of_weights(INITIAL),
            dict.fromkeys(schedule.frugal, 1),
            schedule.cheats,
        )
        keys = Dice(seed, "identities")
        identities = [Identity.generate(keys.bytes) for _ in range(schedule.population)]
        roster = roster_of(identities)
        self._lines: dict[int, Connection] = {}
        self._agents = {
            id: AgentParty(
                id=id,
                policy=_policy(schedule, id),
                disk=self._storage.disk(f"agent-{id}"),
                dice=Dice(seed, f"agent {id}"),
                dial=self._dial,
                say=self._said,
            )
            for id in range(schedule.population)
        }
        for id, agent in self._agents.items():
            found(agent.disk, id, identities[id], roster, seed)
        self.coordinator = CoordinatorParty(
            text=job.text,
            disk=self._storage.disk(COORDINATOR),
            roster=roster,
            seed=seed,
            clock=self._clock,
            act=lambda action: self._act(self._lives[COORDINATOR], action),
            send=self._sent,
            hung_up=self._broken,
            stopped=self._stopped,
        )
        self._lives: dict[str, _Life] = {}
        parties: list[tuple[_Party, float]] = [(self.coordinator, schedule.server_crash / 20)]
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
        schedule, coordinator = self.schedule, self._lives[COORDINATOR]
        with (
            self._storage.watched(),
            small_rounds(schedule),
            observed(
                self.witness,
                dead=lambda: coordinator.disk.dead,
                ended=self._end,
                note=self._note,
            ),
        ):
            try:
                for life in self._lives.values():
                    self._boot(life)
                if schedule.cancelled_at is not None:
                    self._clock.after(schedule.cancelled_at, self._cancel)
                for _ in range(EVENTS):
                    if self.status is not None or not self._clock.step():
                        break
            finally:
                self.coordinator.bury()
        if self.status is None:
            raise Violation(f"the job has not ended after {self._clock.now:.0f} s")
        self._check_end()

    @property
    def seconds(self) -> float:
        """Virtual time since the start."""
        return self._clock.now

    @property
    def rounds(self) -> tuple[int, int]:
        """How many were reserved by now, and how many of them gave a model."""
        folder = self.coordinator.folder
        records = read_ledger(folder.ledger, allow_torn=True).rounds if folder.begun else ()
        return len(records), sum(record.outcome == "commit" for record in records)

    def _check_end(self) -> None:
        """What was closed must have been certain, not merely written."""
        coordinator, disk = self.coordinator, self.coordinator.disk
        row = job_of(disk.durable(coordinator.database) or b"")
        if row is None or row.status != self.status:
            raise Violation("the job ended, but a loss of power could take that from the database")
        folder = coordinator.folder
        if folder.begun:
            self.witness.survives(recorded(folder.ledger, folder.private))
        if self._failed or not folder.begun:
            return
        for path in (folder.ledger, folder.private, folder.model, folder.config, folder.summary):
            if not path.exists():
                raise Violation(f"the job ended without {path.name}")
            if disk.durable(path) != path.read_bytes():
                raise Violation(f"the job ended, but a loss of power could take {path.name}")
        view = read_ledger(folder.ledger)
        if view.closed is None:
            raise Violation("the job ended, but its ledger is not closed")
        wrong = countersigned(folder.path, view)
        if wrong is not None:
            raise Violation(f"the run contradicts what its agents countersigned: {wrong}")

    # -- events ----------------------------------------------------------------------------------

    def _dial(self, agent: int) -> None:
        """A new connection; the agent greets, if somebody takes the call."""
        older = self._lines.get(agent)
        if older is not None:
            older.left = older.broken = True
        line = self._lines[agent] = Connection(agent)
        if self._lives[COORDINATOR].up:
            self._agents[agent].greet()
        else:
            line.broken = True
            self._redial(line)

    def _sent(self, line: Connection, message: fleet_pb2.Down) -> None:
        """The coordinator sends a message."""
        if self.coordinator.disk.dead:
            return
        agent, stage = line.agent, _stage_of(message)
        what = f"{_named(message, stage)} to agent {agent}"
        folder = self.coordinator.folder
        self.witness.leaves(agent, message, self.coordinator.disk.durable(folder.ledger))
        if stage is not None:
            self._network.opens(*stage)
            if stage in self._stops:
                self._stops.remove(stage)
                self._clock.after(self._dice.uniform(0.0, _SOON), self._stop)
        self._carry(line, what, lambda: self._at_agent(line, message, what), inbound=False)

    def _at_agent(self, line: Connection, message: fleet_pb2.Down, what: str) -> None:
        party, stage = self._agents[line.agent], _stage_of(message)

        def take() -> None:
            if self._lines.get(line.agent) is not line:
                self._note(f"{what}: of a connection that is gone")
                return
            flushes = None if stage is None else self._setbacks.pop((*stage, line.agent), None)
            self._setback = None if flushes is None else (line, flushes)
            try:
                self._note(f"{what}: {party.take(message)}")
            except Dismissed as farewell:
                self._note(f"{what}: {farewell}")
                line.broken = True
                self._redial(line)
            finally:
                self._setback = None

        self._act(self._lives[party.disk.name], take)

    def _said(self, agent: int, message: fleet_pb2.Up) -> None:
        """An agent sends a message."""
        line, kind = self._lines[agent], str(message.WhichOneof("content"))
        what = f"{kind} from agent {agent}"
        if kind == "refusal":
            what += f", which refused: {message.refusal.reason}"
        elif kind == "answer":
            answer = message.answer
            self.witness.says(self._agents[agent], answer.round, answer.message)
            reply = kind_of(answer.message).name
            what = f"round {answer.round} {reply} from agent {agent}"
            if (answer.round, reply, agent) in self._relapses:
                self._relapses.remove((answer.round, reply, agent))
                self._lives[self._agents[agent].disk.name].doomed = True
            if agent in self.schedule.cheats:
                answer.message = answer.message[:-1]
        sent = message.SerializeToString()
        seen = sent.replace(self._root.encode(), b"")  # an error may name the file
        what += f" ({hashlib.sha256(seen).hexdigest()[:8]})"

        def take() -> None:
            self.witness.hears(agent, message)
            self._note(f"{what}: {self.coordinator.take(line, sent)}")

        self._carry(
            line,
            what,
            lambda: self._at_coordinator(line, what, take),
            inbound=True,
            doubles=kind != "hello",
        )

    def _at_coordinator(self, line: Connection, what: str, take: Callable[[], None]) -> None:
        life = self._lives[COORDINATOR]
        if line.torn:
            self._note(f"{what}: lost with its sender")
        elif life.up:
            self._act(life, take)
        else:
            self._note(f"{what}: nobody is there")
            self._broken(line)

    def _carry(
        self,
        line: Connection,
        what: str,
        arrive: Callable[[], None],
        *,
        inbound: bool,
        doubles: bool = False,
    ) -> None:
        gone = line.broken
        fate = self._network.carry(line, inbound=inbound, doubles=doubles, arrive=arrive)
        self._note(f"{what}: {fate}")
        if line.broken and not gone:
            self._broken(line)

    def _broken(self, line: Connection) -> None:
        """A connection carries nothing more; both ends find out."""
        line.broken = True
        life = self._lives[COORDINATOR]
        number = life.life

        def noticed() -> None:
            if life.life == number:
                self._act(life, lambda: self.coordinator.hang_up(line))

        self._clock.after(self._dice.uniform(0.0, _NOTICED), noticed)
        self._clock.after(self._dice.uniform(0.0, _NOTICED), lambda: self._redial(line))

    def _redial(self, line: Connection) -> None:
        """An agent has found out that its connection is gone."""
        if line.left or self._lines.get(line.agent) is not line:
            return
        line.left = True
        life = self._lives[self._agents[line.agent].disk.name]
        number = life.life

        def dial() -> None:
            if life.life == number and self._lines.get(line.agent) is line:
                self._act(life, lambda: self._dial(line.agent))

        self._clock.after(self._dice.uniform(0.1, _REDIAL), dial)

    def _cancel(self) -> None:
        """The operator cancels the job; again a while later, where nobody was there."""

        def cancel() -> None:
            refused = self.coordinator.cancel()
            self._note(f"the operator cancels the job: {refused or 'noted'}")
            done.append(True)
            self._clock.after(_LOOKS, self._look)

        done: list[bool] = []
        self._act(self._lives[COORDINATOR], cancel)
        if not done and self.status is None:
            self._clock.after(0.5, self._cancel)

    def _look(self) -> None:
        """The operator looks at a cancelled job: one that had not begun was over at once, and no
        run of it had an end."""

        def look() -> None:
            if self.status is None and self.coordinator.status not in ACTIVE_JOB:
                self._note("the job did not begin")
                self.status = self.coordinator.status

        if self.status is None:
            self._act(self._lives[COORDINATOR], look)
            self._clock.after(_LOOKS, self._look)

    def _stop(self) -> None:
        """The operator stops the coordinator's process, if there is one."""

        def stop() -> None:
            self._note("the operator stops the coordinator")
            self.witness.stops()
            self.coordinator.stop()

        self._act(self._lives[COORDINATOR], stop)

    def _stopped(self, error: BaseException | None) -> None:
        """The coordinator's process has come to its end, which may have been asked of it."""
        life = self._lives[COORDINATOR]
        if error is not None and not life.disk_failed:
            raise self._unexpected(life, error)
        if not life.disk.dead:
            life.disk.die(power_lost=False)

    def _end(self, status: str, reason: str, raised: BaseException | None) -> None:
        """The end of the job is in the database."""
        self._note(f"the job ended: {status}" + (f" ({reason})" if reason else ""))
        self.status, self._failed = status, raised is not None
        if raised is not None:
            if not self._lives[COORDINATOR].disk_failed:
                raise self._unexpected(self._lives[COORDINATOR], raised)
            return
        self._fails_for_cause(reason)
        self.witness.refusals_are(self.coordinator.refusals)

    def _boot_coordinator(self) -> None:
        """One that died as the end of its job became durable told nobody; the next has no job.

        Where the end can be read but is not certain yet, the machine loses power: the
        process that starts after that ends the job again.
        """
        life = self._lives[COORDINATOR]
        certain = life.disk.durable(self.coordinator.database)
        certain_row = job_of(certain or b"")  # before the process opens its own
        life.boot()
        status = self.coordinator.status
        if self.status is None and status not in (*ACTIVE_JOB, PAUSED, None):
            self._note(f"the job had ended: {status}")
            if certain_row is None or certain_row.status != status:
                life.disk.die(power_lost=True)
                raise Crashed(life.disk, power_lost=True)
            self.status, self._failed = status, status == "failed"
            if not self._server_disk_failed:
                self._fails_for_cause(self.coordinator.reason)
            self.witness.refusals_are(self.coordinator.refusals)

    def _fails_for_cause(self, reason: str) -> None:
        """A job fails for what its agents did, or their disks."""
        schedule = self.schedule
        excused = schedule.unwilling or schedule.cheats or self._declines_for_its_disk
        if self.status == "failed" and not excused:
            raise self.witness.broke(f"the job failed: {reason}")

    # -- life and death --------------------------------------------------------------------------

    def _act(self, life: _Life, action: Callable[[], None]) -> None:
        """Let a party do something, unless it is dead; it may die before, while or after."""
        if not life.up:
            return
        self._storage.acting = life.disk
        if life.name != COORDINATOR:
            life.disk_failed = False
        try:
            self._maybe_die(life)
            action()
            self._maybe_die(life)
        except Crashed:
            pass
        except Violation:
            raise
        except Exception as error:
            if not life.disk_failed or not isinstance(error, _REPORTED):
                raise self._unexpected(life, error) from error
            # A process whose disk failed stops, as the product tells its host to.
            life.disk.die(power_lost=False)
        finally:
            self._storage.acting = None
        if self.witness.broken is not None:
            raise self.witness.broken
        if life.disk.dead:
            self._bury(life)

    def _unexpected(self, life: _Life, error: BaseException) -> Violation:
        return self.witness.broke(f"{life.name} failed: {type(error).__name__}: {error}")

    def _maybe_die(self, life: _Life) -> None:
        if self.status is not None or life.disk.dead:
            return
        if life.doomed or self._dice.chance(self._rate(life)):
            power_lost = self._takes_power(life)
            life.disk.die(power_lost=power_lost)
            raise Crashed(life.disk, power_lost=power_lost)

    def _fate(self, disk: Disk) -> FlushFate:
        life, dice, schedule = self._lives[disk.name], self._dice, self.schedule
        if self._clock.now >= schedule.calm_at:
            return _CALM
        failure = schedule.disk_failure / (40 if life.name == COORDINATOR else 1)
        if self._is_set_back() or dice.chance(failure):
            life.disk_failed = True
            self._declines_for_its_disk |= life.name != COORDINATOR
            self._server_disk_failed |= life.name == COORDINATOR
            self._note(f"{life.name}: the disk failed")
            return FlushFate(fails=True)
        if dice.chance(self._rate(life)):
            return FlushFate(
                dies=dice.one_of(("before", "after")),
                power_lost=self._takes_power(life),
            )
        return _CALM

    def _is_set_back(self) -> bool:
        """Whether this is the flush that fails as an agent answers, unheard."""
        if self._setback is None:
            return False
        line, left = self._setback
        self._setback = (line, left - 1) if left else None
        if not left:
            self._broken(line)
        return not left

    def _takes_power(self, life: _Life) -> bool:
        sick = life.crash_rate >= _SICK
        return self._dice.chance(0.5 if sick else self.schedule.power_loss)

    def _rate(self, life: _Life) -> float:
        """Misfortunes come in groups: one that has just restarted dies more easily."""
        if self._clock.now >= self.schedule.calm_at:
            return 0.0
        recent = self._clock.now - life.died < 2 * self.schedule.outage
        return min(life.crash_rate * (_FRAGILE if recent else 1.0), 0.25)

    def _bury(self, life: _Life) -> None:
        power_lost = life.disk.without_power
        life.up, life.died = False, self._clock.now
        life.life += 1
        self.crashes += 1
        self._note(f"{life.name} {'lost power' if power_lost else 'was killed'}")
        if life.name == COORDINATOR:
            self._storage.acting = life.disk  # what it still does is done on a dead disk
            self.coordinator.bury()
            self._storage.acting = None
            for line in self._lines.values():
                self._broken(line)
        else:
            agent = int(life.name.rpartition("-")[2])
            if power_lost:
                self.witness.lost_power(agent)
            if agent in self._lines:
                self._lines[agent].torn = life.doomed or self._dice.chance(0.5)
                self._broken(self._lines[agent])
        short = life.doomed or life.crash_rate >= _SICK
        life.doomed = False
        longest = _NAP if short else self.schedule.outage
        outage = self._dice.uniform(0.05, longest)
        self._clock.after(outage, lambda: self._boot(life))

    def _boot(self, life: _Life) -> None:
        life.disk.restart()
        life.up, life.disk_failed = True, False
        self._note(f"{life.name} starts")
        if life.name == COORDINATOR:
            self.witness.begins()
            folder = self.coordinator.folder
            if folder.begun:
                self.witness.survives(recorded(folder.ledger, folder.private))
            self._act(life, self._boot_coordinator)
        else:
            self._act(life, life.boot)

    def _note(self, line: str) -> None:
        self.trace.append(f"{self._clock.now:9.3f} {line}".replace(self._root, ""))


def _policy(schedule: Schedule, agent: int) -> Policy:
    """What an agent's owner allows."""
    return Policy(
        tasks={} if agent in schedule.unwilling else None,
        max_participations=1 if agent in schedule.frugal else None,
        explain=True,
    )


def _stage_of(message: fleet_pb2.Down) -> tuple[int, str] | None:
    """The round and the kind of a message of secure aggregation."""
    kind = message.WhichOneof("content")
    if kind not in ("stage", "invitation"):
        return None
    stage = message.stage if kind == "stage" else message.invitation.stage
    return stage.round, kind_of(stage.message).name


def _named(message: fleet_pb2.Down, stage: tuple[int, str] | None) -> str:
    """For the trace."""
    return str(message.WhichOneof("content")) if stage is None else f"round {stage[0]} {stage[1]}"


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
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # what the parties log is in the trace
        try:
            world.run()
        except Violation as error:
            violation = str(error).replace(folder, "")
        finally:
            logging.disable(before)
        rounds, commits = (0, 0) if violation else world.rounds
        return Outcome(
            seed=seed,
            status=None if violation else world.status,
            violation=violation,
            rounds=rounds,
            commits=commits,
            crashes=world.crashes,
            seconds=world.seconds,
            trace=tuple(world.trace),
        )
