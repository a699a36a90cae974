"""The coordinator of a schedule: the product's `Deployment` and devices' port, on failing disks.

What `fedsys coordinator run` puts together is put together here once for each life of the process:
database, registry, fleet, queue of jobs, and for each agent that dials a session of the port. Only
TLS is missing: a connection comes with the certificate that TLS would have verified.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedsys.durable import flush_names, make_folder, write_atomically
from fedsys.errors import FedsysError
from fedsys.privacy import Signer
from fedsys.run_folder import RunFolder
from fedsys.wire import fleet_pb2
from fedsys.wire.frames import Assembler, split
from fedsys.wire.roster import RosterStatement
from fedsys.wire.services import MAX_PARCEL
from server.deployed.fleet import Fleet
from server.deployed.queue import Deployment, submit
from server.deployed.round import Randomness
from server.grpc_host import DevicePort
from server.home.enrollment import Registry
from server.home.folder import Home, Settings
from server.home.pki import Authority, Peer, ServerIdentity, pem
from server.home.state import CertificateRow, NodeRow, RefusalRow, RosterRow, State
from simulations.deterministic.agent import ledger_signer, roster_key, signed_roster
from simulations.deterministic.clock import Clock
from simulations.deterministic.database import FILE, open_state
from simulations.deterministic.dice import Dice
from simulations.deterministic.job import ScheduleModel
from simulations.deterministic.loop import Loop, Step
from simulations.deterministic.network import Connection
from simulations.deterministic.storage import Disk

__all__ = ["CoordinatorParty"]

SETTINGS = Settings(hosts=["localhost"], patience=600.0, reconnect=3.0, stage=6.0, training=6.0)
_MOST_AGENTS = 8
_DAY = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)

Send = Callable[[Connection, fleet_pb2.Down], None]


class _Refused(Exception):
    """The port did not let a connection in."""


@dataclass(frozen=True)
class _Pki:
    """What TLS would work with; the same in all schedules, for no message depends on it."""

    authority: Authority
    certificates: Mapping[int, x509.Certificate]


@functools.cache
def _pki() -> _Pki:
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.create(Path(folder), now=_DAY)
    certificates = {}
    for node in range(1, _MOST_AGENTS + 1):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([])
        request = x509.CertificateSigningRequestBuilder().subject_name(name)
        csr = request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
        certificates[node] = authority.issue_agent(csr, node=node, now=_DAY)
    return _Pki(authority, certificates)


@dataclass(eq=False)
class _Session:
    """One agent's stream at this end: the frames that come, and the call's context."""

    line: Connection
    send: Send
    came: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    _parcels: int = 0
    _assembler: Assembler = field(default_factory=lambda: Assembler(limit=MAX_PARCEL))

    async def frames(self) -> AsyncIterator[bytes]:
        while (message := await self.came.get()) is not None:
            for frame in split(self._parcels, message):
                yield frame
            self._parcels += 1

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return {"x509_pem_cert": [pem(_pki().certificates[self.line.agent + 1])]}

    def peer(self) -> str:
        return f"agent {self.line.agent}"

    async def write(self, frame: bytes) -> None:
        whole = self._assembler.add(frame)
        if whole is not None:
            self.send(self.line, fleet_pb2.Down.FromString(whole))

    async def abort(self, code: object, text: str) -> None:
        raise _Refused(text)


class CoordinatorParty:
    """The coordinator over its restarts; `boot` is what its process does when it starts.

    Args:
        text: configuration of the job to be run.
        disk: keeps its folder.
        roster: the population; client k is its k-th node.
        seed: of the schedule.
        clock: virtual time.
        act: lets this process do something, unless it is dead.
        send: to an agent.
        hung_up: called when this end has closed a connection.
        stopped: called when the process ended, and with what, where that was an error.
    """

    def __init__(
        self,
        *,
        text: str,
        disk: Disk,
        roster: RosterStatement,
        seed: int,
        clock: Clock,
        act: Step,
        send: Send,
        hung_up: Callable[[Connection], None],
        stopped: Callable[[BaseException | None], None],
    ) -> None:
        self.disk = disk
        self.home = Home(disk.root / "home")
        self.job = ""
        self._text = text
        self._roster = roster
        self._seed = seed
        self._clock = clock
        self._dice = Dice(seed, disk.name)
        self._threads = Dice(seed, f"{disk.name}'s threads")
        self._act = act
        self._send = send
        self._hung_up = hung_up
        self._stopped = stopped
        self._loop: Loop | None = None
        self._state: State | None = None
        self._fleet: Fleet | None = None
        self._main: asyncio.Task[None] | None = None
        self._sessions: dict[Connection, _Session] = {}

    @property
    def folder(self) -> RunFolder:
        """Of the job's run."""
        return RunFolder(self.home.jobs / self.job)

    @property
    def database(self) -> Path:
        """What `State` is kept in."""
        return self.home.path / FILE

    @property
    def status(self) -> str | None:
        """Of the job, in the database; None where there is no process."""
        return None if self._state is None else self._state.job(self.job).status

    @property
    def reason(self) -> str:
        """Why the job ended, as the database has it."""
        return "" if self._state is None else self._state.job(self.job).reason

    @property
    def refusals(self) -> list[RefusalRow]:
        """That the database counts."""
        return [] if self._state is None else self._state.refusals_of(self.job)

    def boot(self) -> None:
        """A fresh process: take up what the disk has, or make it."""
        if not self.home.settings_file.exists():
            self._found()
        self._state = state = open_state(self.database)
        self.job = state.jobs()[-1].id
        registry = self._registry(state)
        self._fleet = Fleet(clock=lambda: self._clock.now)
        deployment = Deployment(
            home=self.home,
            state=state,
            registry=registry,
            fleet=self._fleet,
            models=ScheduleModel,
            randomness=Randomness(
                names=self._dice.bytes,
                seeds=lambda _round: self._dice.bytes,
            ),
            now=lambda: _DAY.timestamp() + self._clock.now,
        )
        self._port = DevicePort(
            identity=ServerIdentity(private_key=b"", certificate=b""),
            authority=_pki().authority,
            registry=registry,
            fleet=self._fleet,
            signer_key=bytes.fromhex(ledger_signer(self._seed).public_hex),
        )
        self._loop = Loop(  # type: ignore[abstract]
            self._clock, self._threads, act=self._act, alive=lambda: not self.disk.dead
        )
        self._main = self._loop.create_task(deployment.serve())
        self._main.add_done_callback(self._ended)

    def _found(self) -> None:
        """What ``fedsys coordinator init``, enrolment and ``fedsys job submit`` leave behind. A
        folder whose making was cut short has no settings, and is made again."""
        home, agents = self.home, len(self._roster.members)
        shutil.rmtree(home.path, ignore_errors=True)
        make_folder(home.path, mode=0o700)
        Signer.load_or_create(home.path, entropy=Dice(self._seed, "ledger").bytes)
        authority = roster_key(self._seed).public_key().public_bytes_raw()
        write_atomically(home.path / "roster.pub", authority.hex().encode() + b"\n")
        make_folder(home.jobs)
        state, signed = open_state(self.database), signed_roster(self._roster, self._seed)
        with state.transaction() as session:
            for node in range(1, agents + 1):
                session.add(_node(node, self._roster.members[node]))
            session.flush()
            for node in range(1, agents + 1):
                session.add(_certificate(node))
            session.add(
                RosterRow(
                    version=self._roster.version,
                    statement=signed.statement,
                    signature=signed.signature,
                )
            )
        submit(state, self._text, entropy=self._dice.bytes)
        state.close()
        table = tomli_w.dumps(SETTINGS.model_dump(exclude_none=True))
        write_atomically(home.settings_file, table.encode())
        flush_names(home.path.parent)

    def _registry(self, state: State) -> Registry:
        return Registry(
            state=state,
            authority=_pki().authority,
            roster_key=self.home.roster_key,
            roster_signer=None,
            clock=lambda: _DAY.timestamp() + self._clock.now,
        )

    # -- while it lives ----------------------------------------------------------------------------

    def take(self, line: Connection, message: bytes) -> str:
        """A message arrives; says what became of it, for the trace."""
        session = self._sessions.get(line)
        if session is None:
            if line.left or fleet_pb2.Up.FromString(message).WhichOneof("content") != "hello":
                return "of a connection that is gone"
            session = self._accept(line)
            session.came.put_nowait(message)
            if line.noticed:  # who greeted had gone before the greeting came
                session.came.put_nowait(None)
            return "taken"
        session.came.put_nowait(message)
        return "taken"

    def hang_up(self, line: Connection) -> None:
        """It finds out that a connection is broken."""
        line.noticed = True
        session = self._sessions.get(line)
        if session is not None:
            session.came.put_nowait(None)

    def cancel(self) -> str | None:
        """The operator cancels the job; says why that is refused."""
        if self._state is None:
            return "nobody is there"
        try:
            self._state.cancel_job(self.job)
        except FedsysError as error:
            return str(error)
        return None

    def stop(self) -> None:
        """The operator stops the process, which has time to end."""
        if self._main is None or self._fleet is None:
            return
        for link in list(self._fleet.links.values()):
            link.close(fleet_pb2.Goodbye.SHUTTING_DOWN, "the coordinator is shutting down")
        self._main.cancel()

    def bury(self) -> None:
        """The process is dead."""
        if self._loop is not None:
            self._loop.drop()
        if self._state is not None:
            self._state.close()
        self._loop = self._state = self._fleet = self._main = None
        self._sessions = {}

    def _accept(self, line: Connection) -> _Session:
        session = self._sessions[line] = _Session(line, self._send)

        def over(task: asyncio.Task[None]) -> None:
            self._sessions.pop(line, None)
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, _Refused):
                self._stopped(error)
            else:
                self._hung_up(line)

        if self._loop is not None:
            task = self._loop.create_task(self._port.session(session.frames(), session))
            task.add_done_callback(over)
        return session

    def _ended(self, main: asyncio.Task[None]) -> None:
        self._stopped(None if main.cancelled() else main.exception())


def _node(node: int, identity: bytes) -> NodeRow:
    return NodeRow(
        id=node,
        name=f"agent-{node - 1}",
        identity=identity,
        status="active",
        enrolled_at=_DAY.timestamp(),
        version="",
    )


def _certificate(node: int) -> CertificateRow:
    peer = Peer.of(pem(_pki().certificates[node]))
    return CertificateRow(
        serial=peer.serial, node=node, der=peer.der, expires_at=peer.expires.timestamp()
    )
