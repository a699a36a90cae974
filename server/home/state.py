"""State that survives a crash: nodes, tokens, rosters, jobs; SQLite in WAL mode.

Every change is committed, and flushed to disk, before the message that announces it is sent. Each
job's privacy ledger is kept not here but in the job's folder, in the form that auditors read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, ForeignKey, create_engine, event, func, inspect, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from fedsys.durable import write_new
from fedsys.errors import ConfigError

__all__ = [
    "ACTIVE_JOB",
    "PAUSED",
    "BlameRow",
    "CertificateRow",
    "CountersignatureRow",
    "HoldRow",
    "JobRow",
    "JobsSeen",
    "MarkRow",
    "NodeRow",
    "PrekeyRow",
    "RefusalRow",
    "RosterRow",
    "State",
    "TokenRow",
    "engine_of",
]

_FILE = "state.sqlite"
ACTIVE_JOB = ("submitted", "waiting", "running")
"""Statuses of jobs that are in the queue or run."""
PAUSED = "paused"
"""Status of a job that is not over, and goes on when its operator resumes it."""
_SCHEMA = 1
_SECONDS = 1.0


class Base(DeclarativeBase):
    """Base of the tables."""


class NodeRow(Base):
    """A device that enrolled; `status` is ``pending`` (not in the roster yet), ``active`` or
    ``revoked``, and `labels` are separated by blanks."""

    __tablename__ = "nodes"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    identity: Mapped[bytes] = mapped_column(unique=True)
    status: Mapped[str]
    enrolled_at: Mapped[float]
    last_seen: Mapped[float | None] = mapped_column(default=None)
    version: Mapped[str] = mapped_column(default="")
    labels: Mapped[str] = mapped_column(default="")


class CertificateRow(Base):
    """A certificate that a node holds or held."""

    __tablename__ = "certificates"
    serial: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[int] = mapped_column(ForeignKey("nodes.id"))
    der: Mapped[bytes]
    expires_at: Mapped[float]
    revoked: Mapped[bool] = mapped_column(default=False)


class TokenRow(Base):
    """A one-time token, by the serial number of its credential."""

    __tablename__ = "tokens"
    serial: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    expires_at: Mapped[float]
    labels: Mapped[str] = mapped_column(default="")
    node: Mapped[int | None] = mapped_column(default=None)
    csr: Mapped[bytes | None] = mapped_column(default=None)


class RosterRow(Base):
    """One version of the roster: `statement` is the whole list, or what it changes in the one
    before, and `signature` the authority's over the whole list in either case."""

    __tablename__ = "rosters"
    version: Mapped[int] = mapped_column(primary_key=True)
    statement: Mapped[bytes]
    signature: Mapped[bytes]


class JobRow(Base):
    """A job; `number` gives the order in which jobs run. `ledger` is its name in its ledger, as
    hex, by which devices know it, `start` the job whose model it starts from, and `members` the
    ids of the nodes that take part, separated by blanks; empty for all."""

    __tablename__ = "jobs"
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    config: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str] = mapped_column(default="")
    ledger: Mapped[str] = mapped_column(default="")
    start: Mapped[str] = mapped_column(default="")
    members: Mapped[str] = mapped_column(default="")
    roster_version: Mapped[int | None] = mapped_column(default=None)
    promised: Mapped[float | None] = mapped_column(default=None)
    spent: Mapped[float | None] = mapped_column(default=None)
    rounds: Mapped[int] = mapped_column(default=0)
    round: Mapped[int] = mapped_column(default=0)
    stage: Mapped[str] = mapped_column(default="")
    cancelled: Mapped[bool] = mapped_column(default=False)
    submitted_at: Mapped[float]
    started_at: Mapped[float | None] = mapped_column(default=None)
    ended_at: Mapped[float | None] = mapped_column(default=None)


class RefusalRow(Base):
    """Why a node declined, the last of `count` times; `round` 0 is the whole job."""

    __tablename__ = "refusals"
    job: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[int] = mapped_column(primary_key=True)
    cause: Mapped[str] = mapped_column(primary_key=True)
    round: Mapped[int]
    reason: Mapped[str]
    count: Mapped[int]
    at: Mapped[float]


class BlameRow(Base):
    """A node that was caught cheating in a round; no later round of the job invites it."""

    __tablename__ = "blamed"
    job: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[int] = mapped_column(primary_key=True)
    round: Mapped[int]
    reason: Mapped[str]


class PrekeyRow(Base):
    """A node's single-use sealing key that no round has taken yet; `number` orders keys by age."""

    __tablename__ = "prekeys"
    number: Mapped[int] = mapped_column(primary_key=True)
    node: Mapped[int] = mapped_column(index=True)
    statement: Mapped[bytes] = mapped_column(unique=True)


class HoldRow(Base):
    """A sign that this database is older than what its devices hold; no job runs while there is
    one. `node` is who said so, 0 for the operator, who restored a backup."""

    __tablename__ = "holds"
    key: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[int] = mapped_column(default=0)
    text: Mapped[str]
    job: Mapped[str] = mapped_column(default="")
    version: Mapped[int] = mapped_column(default=0)
    promised: Mapped[float | None] = mapped_column(default=None)
    at: Mapped[float]


class MarkRow(Base):
    """A moment that is kept: ``recovered``, when a restored database was last put to work."""

    __tablename__ = "marks"
    name: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[float]


class CountersignatureRow(Base):
    """A node's signed statement about a round; `line` is as in ``countersignatures.jsonl``."""

    __tablename__ = "countersignatures"
    job: Mapped[str] = mapped_column(primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    node: Mapped[int] = mapped_column(primary_key=True)
    line: Mapped[str]


def engine_of(url: str, **options: Any) -> Engine:
    """SQLAlchemy's engine for the coordinator's database.

    Args:
        url: of the database.
        options: for `sqlalchemy.create_engine`.
    """
    engine = create_engine(url, **options)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    return engine


class State:
    """The database.

    Args:
        database: as `engine_of` makes it, or the URL for that: ``sqlite:///PATH`` unless a larger
            one is wanted.

    Attributes:
        changes: how often this object may have changed it.

    Raises:
        ConfigError: it is damaged, or of another version.
    """

    def __init__(self, database: str | Engine) -> None:
        self._engine = engine_of(database) if isinstance(database, str) else database
        self.changes = 0
        try:
            Base.metadata.create_all(self._engine)
            self._check_version()
        except DBAPIError as error:
            raise ConfigError(
                f"{self._engine.url}: the database cannot be used: {error.orig}; restore it from "
                f"a backup"
            ) from None

    def _check_version(self) -> None:
        found, url = inspect(self._engine), self._engine.url
        for name, table in Base.metadata.tables.items():
            lacking = set(table.columns.keys()) - {each["name"] for each in found.get_columns(name)}
            if lacking:
                raise ConfigError(
                    f"{url}: made by another version of fedsys: its {name} lack "
                    f"{', '.join(sorted(lacking))}; go on with the version that made it"
                )

    @classmethod
    def create(cls, folder: Path) -> State:
        """A new database in a coordinator's folder, readable by its owner only because it reveals
        cohorts. SQLite gives its other files the mode of this one."""
        write_new(folder / _FILE, b"", mode=0o600)
        return cls(_url(folder))

    @classmethod
    def open(cls, folder: Path) -> State:
        """The database in a coordinator's folder.

        Raises:
            ConfigError: It is missing or not usable. An empty one in its place would know neither
                the devices nor what was spent.
        """
        if not (folder / _FILE).exists():
            raise ConfigError(
                f"{folder / _FILE}: missing; it holds nodes, tokens and jobs: restore it from a "
                f"backup of this folder"
            )
        return cls(_url(folder))

    def close(self) -> None:
        """Close the database's connections."""
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose changes are durable when the block ends, or undone if it raises."""
        try:
            with self.reading() as session:
                yield session
        finally:
            self.changes += 1

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that changes nothing."""
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    def check(self) -> None:
        """Read one value; raises SQLAlchemy's `DBAPIError` where the database cannot be used."""
        with self._engine.connect() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM nodes")

    def nodes(self) -> list[NodeRow]:
        """All nodes by id."""
        with self.reading() as session:
            return list(session.scalars(select(NodeRow).order_by(NodeRow.id)))

    def rosters(self, after: int = 0) -> list[RosterRow]:
        """Roster versions later than `after`, oldest first."""
        query = select(RosterRow).where(RosterRow.version > after).order_by(RosterRow.version)
        with self.reading() as session:
            return list(session.scalars(query))

    def roster_version(self) -> int:
        """Number of the newest roster version; 0 before the first."""
        with self.reading() as session:
            return session.scalar(select(func.max(RosterRow.version))) or 0

    def jobs(self) -> list[JobRow]:
        """All jobs, in order of submission."""
        with self.reading() as session:
            return list(session.scalars(select(JobRow).order_by(JobRow.number)))

    def job(self, id: str) -> JobRow:
        """One job.

        Raises:
            ConfigError: There is no job of that id.
        """
        with self.reading() as session:
            row = session.scalar(select(JobRow).where(JobRow.id == id))
        if row is None:
            raise ConfigError(f"job {id}: there is none; see `fedsys job list`")
        return row

    def update_job(self, id: str, **values: Any) -> JobRow:
        """Change columns of a job; durable when this returns."""
        with self.transaction() as session:
            row = session.scalar(select(JobRow).where(JobRow.id == id))
            if row is None:
                raise ConfigError(f"job {id}: there is none; see `fedsys job list`")
            for name, value in values.items():
                setattr(row, name, value)
        return row

    def cancel_job(self, id: str) -> JobRow:
        """Have the queue end a job after its current round. So it ends one that has not begun, too:
        a coordinator that crashed may have made its ledger, which is then to be closed.

        Raises:
            ConfigError: There is no job of that id, or it is over.
        """
        row = self.job(id)
        if row.status == PAUSED:  # the queue takes it up to end it
            return self.update_job(id, status="running", cancelled=True)
        if row.status not in ACTIVE_JOB:
            raise ConfigError(f"job {id}: is over already ({row.status})")
        return self.update_job(id, cancelled=True)

    def resume_job(self, id: str) -> JobRow:
        """Have a paused job go on.

        Raises:
            ConfigError: There is no job of that id, or it is not paused.
        """
        row = self.job(id)
        if row.status != PAUSED:
            more = (
                ""
                if row.status in ACTIVE_JOB
                else (f"; start another from what it reached with `fedsys job submit --from {id}`")
            )
            raise ConfigError(f"job {id}: is not paused but {row.status}{more}")
        return self.update_job(id, status="waiting", reason="", ended_at=None)

    def refuse(self, rows: Iterable[RefusalRow]) -> None:
        """Record refusals, replacing those of the same job, node and cause."""
        with self.transaction() as session:
            for row in rows:
                session.merge(row)

    def blame(self, *, job: str, round: int, node: int, reason: str) -> None:
        """Record that a node was caught cheating; the first reason is kept."""
        with self.transaction() as session:
            if session.get(BlameRow, (job, node)) is None:
                session.add(BlameRow(job=job, node=node, round=round, reason=reason[:500]))

    def blamed(self, job: str) -> dict[int, str]:
        """Why, for each node that was caught cheating in a job."""
        query = select(BlameRow).where(BlameRow.job == job)
        with self.reading() as session:
            return {row.node: row.reason for row in session.scalars(query)}

    def refusals_of(self, job: str) -> list[RefusalRow]:
        """A job's recorded refusals: one row for each node and cause."""
        query = select(RefusalRow).where(RefusalRow.job == job)
        with self.reading() as session:
            return list(session.scalars(query))

    def newest_refusals(self, job: str, most: int) -> list[tuple[str, RefusalRow]]:
        """The latest refusals of a job with their nodes' names, oldest first."""
        query = (
            select(NodeRow.name, RefusalRow)
            .join(NodeRow, NodeRow.id == RefusalRow.node)
            .where(RefusalRow.job == job)
            .order_by(RefusalRow.at.desc(), RefusalRow.node)
            .limit(most)
        )
        with self.reading() as session:
            return [(name, row) for name, row in reversed(session.execute(query).all())]


class JobsSeen:
    """The jobs for one who asks again and again: they are read once this process has changed
    anything, and each second besides, since another process may have.

    Args:
        state: the database.
        clock: monotonic seconds.
    """

    def __init__(self, state: State, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._clock = clock
        self._rows: dict[str, JobRow] = {}
        self._after = -1
        self._until = -math.inf

    def all(self) -> list[JobRow]:
        """In order of submission; not to be changed."""
        changes = self._state.changes  # before the query: what comes in between is read again
        if self._after != changes or self._clock() >= self._until:
            self._rows = {row.id: row for row in self._state.jobs()}
            self._after, self._until = changes, self._clock() + _SECONDS
        return list(self._rows.values())

    def cancelled(self, id: str) -> bool:
        """Whether a job is to end."""
        self.all()
        return self._rows[id].cancelled

    def forget(self) -> None:
        """Another process has probably changed them."""
        self._until = -math.inf


def _url(folder: Path) -> str:
    return f"sqlite:///{folder / _FILE}"


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
