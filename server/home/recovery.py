"""Puts a coordinator that was restored from an older backup to work again, on the safe side.

What it cannot know it counts at its worst: jobs that were not over, and jobs that only devices
remember, count as having spent all that they promised.
"""

from __future__ import annotations

import time

from sqlalchemy import delete, select

from fedsys.errors import ConfigError
from server.home.enrollment import Registry
from server.home.state import ACTIVE_JOB, PAUSED, HoldRow, JobRow, MarkRow, PrekeyRow, State

__all__ = ["recover"]


def recover(state: State, registry: Registry, *, act: bool) -> list[str]:
    """Say what has to be given up, and give it up.

    Args:
        state: the coordinator's database.
        registry: its nodes.
        act: do it, instead of saying what would be done.

    Returns:
        lines for the operator; none where nothing holds the coordinator.

    Raises:
        ConfigError: the devices hold rosters that have not come back, so that the next one would
            be signed under a number that is taken.
    """
    holds = registry.continuity.holds()
    if not holds:
        return []
    lines = [row.text for row in holds]
    _require_rosters(holds, registry.roster_version())
    with state.transaction() as session:
        begun = [row for row in session.scalars(select(JobRow)) if _begun(row)]
        lines += [
            f"job {job.id} ({job.name}) ends, and counts as {_cost(job.promised)}" for job in begun
        ]
        for ledger, promised, round in _forgotten(holds):
            row = session.scalar(select(JobRow).where(JobRow.ledger == ledger))
            if row is None:
                row = _lost(ledger, promised)
                session.add(row)
                lines.append(f"job {row.id}, which is lost, counts as {_cost(promised)}")
            row.round = max(row.round or 0, round)
            row.spent = row.promised
        for job in begun:
            job.status, job.stage, job.ended_at = "failed", "", time.time()
            job.reason = "it was not over when the coordinator was restored from a backup"
            job.spent = job.promised
        session.execute(delete(PrekeyRow))
        session.execute(delete(HoldRow))
        session.merge(MarkRow(name="recovered", at=time.time()))
        if not act:
            session.rollback()
    if act:
        registry.sign()
    return lines


def _require_rosters(holds: list[HoldRow], newest: int) -> None:
    for row in holds:
        if row.version < 0:
            raise ConfigError(
                f"{row.text}: two lists with one number cannot both be true; restore the backup "
                f"again, and let the devices connect before anybody enrols"
            )
        if not row.job and row.version > newest:
            raise ConfigError(
                f"{row.text}: let that device connect, from which the list then comes back; if it "
                f"is not true, revoke the device"
            )


def _begun(row: JobRow) -> bool:
    return row.status in (*ACTIVE_JOB, PAUSED) and row.status != "submitted"


def _forgotten(holds: list[HoldRow]) -> list[tuple[str, float | None, int]]:
    """(name in its ledger, epsilon promised, newest round) of each job that devices remember."""
    found: dict[str, tuple[float | None, int]] = {}
    for row in holds:
        if not row.job:
            continue
        promised, newest = found.get(row.job, (0.0, 0))
        known = None if promised is None or row.promised is None else max(promised, row.promised)
        found[row.job] = known, max(newest, row.version)
    return [(job, promised, newest) for job, (promised, newest) in found.items()]


def _lost(ledger: str, promised: float | None) -> JobRow:
    now = time.time()
    return JobRow(
        id=ledger[:12],
        name="lost",
        config="",
        status="lost",
        reason="only devices remember it: the coordinator was restored from an older backup",
        ledger=ledger,
        promised=promised,
        submitted_at=now,
        started_at=now,
        ended_at=now,
    )


def _cost(promised: float | None) -> str:
    return "without any limit" if promised is None else f"epsilon {promised:.4g}"
