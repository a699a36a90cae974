"""What the operator's page shows, read from the database, the open sessions and the runs' folders.

Everything is in the server's view: who is connected, who refused, what each view has spent. A page
that somebody else may see is the report of a published folder, not this one.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
from sqlalchemy import func, select

from fedsys import __version__
from fedsys.config import parse
from fedsys.errors import FedsysError
from fedsys.printable import printable
from fedsys.report import figures
from fedsys.report.views import tier
from fedsys.run_folder import RunFolder
from fedsys.runs.progress import Progress, ProgressReader
from fedsys.web.run_section import RunSections
from server.deployed.fleet import Fleet
from server.deployed.spending import Promises, Spending
from server.home.folder import Home, Settings
from server.home.state import (
    ACTIVE_JOB,
    PAUSED,
    CertificateRow,
    HoldRow,
    JobRow,
    NodeRow,
    RefusalRow,
    RosterRow,
    State,
)

__all__ = ["OperatorSections"]

_MOST_DEVICES = 2000
_MOST_JOBS = 100
_MOST_REFUSALS = 500
_JOBS_REFUSALS = 20
_EXPIRES_SOON = 30 * 86_400.0
_DISK_STEP = 1 << 24
"""Sizes are rounded, so that the page does not change with every write."""


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """What one transaction read."""

    nodes: list[NodeRow]
    jobs: list[JobRow]
    expires: Mapping[int, float]
    refusals: list[RefusalRow]
    holds: list[str]
    roster: int


class OperatorSections:
    """Reads the sections; called in a thread, one call at a time.

    Args:
        home: the coordinator's folder.
        state: its database.
        fleet: the open sessions.
        now: seconds since 1970.
    """

    def __init__(
        self, home: Home, state: State, fleet: Fleet, *, now: Callable[[], float] = time.time
    ) -> None:
        self._home = home
        self._state = state
        self._fleet = fleet
        self._now = now
        self._settings = home.settings()
        self._spending = Spending(home, state)
        self._promises = Promises(home, state)
        self._readers: dict[str, ProgressReader] = {}
        self._sections = RunSections()
        self._tasks: dict[str, str] = {}
        self._process = psutil.Process()

    def read(self) -> dict[str, Any]:
        """All sections by name, as JSON values."""
        rows = self._rows()
        jobs = list(reversed(rows.jobs))[:_MOST_JOBS]
        names = {row.id: row.name for row in rows.nodes}
        found = {row.id: self._progress(row) for row in jobs}
        devices = self._devices(rows)
        return {
            "page": self._page(rows, jobs, found, devices),
            "fleet": {
                "devices": devices[:_MOST_DEVICES],
                "more": max(0, len(devices) - _MOST_DEVICES),
            },
            **{
                f"job/{row.id}": self._job(row, found[row.id], rows.refusals, names) for row in jobs
            },
        }

    def _rows(self) -> _Rows:
        newest = func.max(CertificateRow.expires_at)
        expiry = select(CertificateRow.node, newest).group_by(CertificateRow.node)
        with self._state.transaction() as session:
            return _Rows(
                nodes=list(session.scalars(select(NodeRow).order_by(NodeRow.id))),
                jobs=list(session.scalars(select(JobRow).order_by(JobRow.number))),
                expires={row[0]: row[1] for row in session.execute(expiry)},
                refusals=list(
                    session.scalars(
                        select(RefusalRow).order_by(RefusalRow.at.desc()).limit(_MOST_REFUSALS)
                    )
                ),
                holds=[row.text for row in session.scalars(select(HoldRow))],
                roster=session.scalar(select(func.max(RosterRow.version))) or 0,
            )

    def _progress(self, row: JobRow) -> Progress | None:
        folder = RunFolder(self._home.jobs / row.id)
        if not folder.begun:
            return None
        reader = self._readers.setdefault(row.id, ProgressReader(folder.path))
        try:
            return reader.read()
        except (FedsysError, OSError):  # the folder is being made, or was removed
            return None

    # -- the whole ---------------------------------------------------------------------------------

    def _page(
        self,
        rows: _Rows,
        jobs: list[JobRow],
        found: Mapping[str, Progress | None],
        devices: list[dict[str, Any]],
    ) -> dict[str, Any]:
        free = shutil.disk_usage(self._home.path).free
        return {
            "kind": "operator",
            "name": printable(self._home.path.resolve().name, 100),
            "version": __version__,
            "hosts": [printable(host, 100) for host in self._settings.hosts],
            "population": self._spending.population,
            "roster": rows.roster,
            "held": [printable(text, 500) for text in rows.holds],
            "order": [row.id for row in jobs],
            "older": max(0, len(rows.jobs) - len(jobs)),
            "queue": dict(Counter(row.status for row in rows.jobs)),
            "counts": _counts(devices),
            "spent": self._spent(rows, found),
            "free": free // _DISK_STEP * _DISK_STEP,
            "memory": self._process.memory_info().rss // _DISK_STEP * _DISK_STEP,
            "started": round(self._process.create_time()),
            "threshold": self._settings.witness_threshold,
        }

    def _spent(self, rows: _Rows, found: Mapping[str, Progress | None]) -> dict[str, Any]:
        """Over all jobs: by view, and in the promised views against the budget, as it is counted
        before a job starts."""
        for row in rows.jobs:
            progress = found.get(row.id)
            if progress is not None and progress.standings:
                self._spending.note(row.id, progress.standings)
        total, promised = self._spending.total(), self._promises.total()
        budget = self._settings.epsilon
        return {
            "views": [
                {"view": view, "epsilon": figures.epsilon(value), "tone": tier(value)[1]}
                for view, value in (
                    ("outsider", total.outsider),
                    ("participant", total.participant),
                    ("server", total.server),
                )
            ],
            "promised": figures.epsilon(promised),
            "budget": "" if budget is None else figures.epsilon(budget),
            "part": None if budget is None else min(promised / budget, 1.0),
        }

    # -- devices -----------------------------------------------------------------------------------

    def _devices(self, rows: _Rows) -> list[dict[str, Any]]:
        """Those that need somebody's attention first, then by name."""
        newest: dict[int, RefusalRow] = {}
        for declined in rows.refusals:  # newest first
            newest.setdefault(declined.node, declined)
        links, copies = dict(self._fleet.links), dict(self._fleet.copies)
        found = []
        for row in rows.nodes:
            link, refusal = links.get(row.id), newest.get(row.id)
            expires = rows.expires.get(row.id)
            device = {
                "id": row.id,
                "name": printable(row.name, 100),
                "status": row.status,
                "connected": link is not None,
                "seen": None if row.last_seen is None else round(row.last_seen),
                "version": printable(link.version if link is not None else row.version, 64),
                "expires": None if expires is None else round(expires),
                "labels": [printable(label, 100) for label in row.labels.split()],
                "refusal": None if refusal is None else _refusal(refusal),
                "warnings": self._warnings(row, expires, copies.get(row.id, "")),
            }
            found.append(device)
        return sorted(found, key=lambda each: (not each["warnings"], each["name"], each["id"]))

    def _warnings(self, row: NodeRow, expires: float | None, copy: str) -> list[str]:
        if row.status == "revoked":
            return []
        warnings = [printable(copy, 500)] if copy else []
        left = math.inf if expires is None else expires - self._now()
        if left <= 0:
            warnings.append("its certificate has expired: it must join again")
        elif left < _EXPIRES_SOON:
            warnings.append("its certificate expires soon; a device that connects renews it")
        return warnings

    # -- jobs --------------------------------------------------------------------------------------

    def _job(
        self,
        row: JobRow,
        progress: Progress | None,
        refusals: list[RefusalRow],
        names: Mapping[int, str],
    ) -> dict[str, Any]:
        run = {} if progress is None else self._sections.of(row.id, progress)
        if row.id not in self._tasks:
            self._tasks[row.id] = _task(row)
        mine = [each for each in refusals if each.job == row.id][:_JOBS_REFUSALS]
        return {
            "metrics": [],
            "views": [],
            "charts": [],
            "task": self._tasks[row.id],
            "head": "",
            "lines": 0,
            **run,
            "id": row.id,
            "name": printable(row.name, 100),
            "status": row.status,
            "stage": printable(row.stage, 1000),
            "reason": printable(row.reason, 1000),
            "round": row.round,
            "rounds": row.rounds,
            "devices": len(row.members.split()),
            "submitted": round(row.submitted_at),
            "started": None if row.started_at is None else round(row.started_at),
            "ended": None if row.ended_at is None else round(row.ended_at),
            "cancelled": row.cancelled and row.status in (*ACTIVE_JOB, PAUSED),
            "refusals": [
                {
                    "device": printable(names.get(each.node, f"node {each.node}"), 100),
                    **_refusal(each),
                }
                for each in mine
            ],
            "witnesses": _witnesses(self._settings, progress),
        }


def _witnesses(settings: Settings, progress: Progress | None) -> list[dict[str, Any]]:
    """Those that are asked now, and what each cosigned last of a job's ledger."""
    if progress is None:
        return []
    cosigned = {each.name: each for each in progress.cosigned}
    names = [witness.vkey.name for witness in settings.witnesses]
    return [
        {
            "name": printable(name, 100),
            "size": cosigned[name].size if name in cosigned else None,
            "at": cosigned[name].at if name in cosigned else None,
            "asked": name in names,
        }
        for name in [*names, *(name for name in cosigned if name not in names)]
    ]


def _refusal(row: RefusalRow) -> dict[str, Any]:
    return {
        "job": row.job,
        "round": row.round,
        "count": row.count,
        "reason": printable(row.reason, 500),
        "at": round(row.at),
    }


def _task(row: JobRow) -> str:
    try:
        return printable(parse(row.config.encode(), "config.toml").task.name, 80)
    except FedsysError:
        return ""


def _counts(devices: list[dict[str, Any]]) -> dict[str, int]:
    members = [each for each in devices if each["status"] != "revoked"]
    connected = sum(each["connected"] for each in members)
    return {
        "devices": len(members),
        "connected": connected,
        "away": len(members) - connected,
        "pending": sum(each["status"] == "pending" for each in members),
        "revoked": len(devices) - len(members),
        "attention": sum(bool(each["warnings"]) for each in members),
    }
