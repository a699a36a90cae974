"""Whether this coordinator still knows all that its devices know.

One that was restored from an older backup has forgotten revocations, rosters and what was spent.
Its devices have not: each says in its greeting which roster it holds and which rounds it joined.
Whatever they hold and this database does not is a reason to hold all jobs until the operator has
looked, with ``fedsys coordinator recover``. Lists that the roster's authority signed are taken back
from the devices at once: a signature needs nobody's word.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedsys.wire import fleet_pb2
from server.home.state import HoldRow, JobRow, NodeRow, RosterRow, State

__all__ = ["Continuity"]

_log = logging.getLogger(__name__)
_MOST_A_NODE = 40
"""Of what one device can make this coordinator remember."""
_MOST_JOBS = 32


class Continuity:
    """Compares what devices say with the database, and remembers what does not fit.

    Args:
        state: the database.
        hash_of: the hash of a roster version, read in a transaction; None if there is none.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        state: State,
        hash_of: Callable[[Session, int], bytes | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._hash_of = hash_of
        self._clock = clock
        self._none = False
        """Whether no hold is kept: only this object adds any, in one thread."""

    def greeted(self, node: int, hello: fleet_pb2.Hello) -> int | None:
        """Compare a device's greeting with what is known.

        Returns:
            The version after which the device is to send its rosters; None where it holds none that
            is missing here.
        """
        with self._state.transaction() as session:
            newest = session.scalar(select(func.max(RosterRow.version))) or 0
            held = self._hash_of(session, hello.roster_version)
            name = session.scalar(select(NodeRow.name).where(NodeRow.id == node)) or f"node {node}"
            found: list[HoldRow] = []
            if hello.roster_version > newest:
                found.append(
                    HoldRow(
                        key=f"{node}:roster",
                        text=f"{name} holds roster version {hello.roster_version}, and this "
                        f"coordinator {newest}",
                        version=min(hello.roster_version, 2**62),
                    )
                )
            elif held is not None and hello.roster_hash and held != hello.roster_hash:
                found.append(
                    HoldRow(
                        key=f"{node}:fork",
                        text=f"{name} holds another roster version {hello.roster_version} than "
                        f"this coordinator: after an old backup came back a new list was signed "
                        f"under a number that was taken",
                        version=-1,
                    )
                )
            for each in hello.jobs[:_MOST_JOBS]:
                found += _forgotten(session, node, name, each)
            self._remember(session, node, found)
        if found:
            self._none = False
        return newest if hello.roster_version > newest else None

    def _remember(self, session: Session, node: int, found: list[HoldRow]) -> None:
        query = select(func.count()).select_from(HoldRow).where(HoldRow.node == node)
        count = session.scalar(query) or 0
        for row in found:
            if session.get(HoldRow, row.key) is not None:
                continue
            count += 1
            if count > _MOST_A_NODE:
                return
            row.node, row.at = node, self._clock()
            session.add(row)
            _log.error(
                "no job runs: %s. Was this coordinator restored from an older backup? Stop it and "
                "restore a newer one, or see what `fedsys coordinator recover` would do",
                row.text,
            )

    def holds(self) -> list[HoldRow]:
        """Why no job may run, oldest first; what revoked nodes said does not count."""
        revoked = select(NodeRow.id).where(NodeRow.status == "revoked")
        query = select(HoldRow).where(HoldRow.node.not_in(revoked)).order_by(HoldRow.at)
        with self._state.reading() as session:
            return list(session.scalars(query))

    @property
    def held(self) -> str:
        """Why no job may run, in one line; empty if jobs may run. Asked often, it reads holds only
        where there may be some."""
        if self._none:
            return ""
        rows = self.holds()
        if not rows:
            with self._state.reading() as session:
                self._none = not session.scalar(select(func.count()).select_from(HoldRow))
            return ""
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        return f"{rows[0].text}{more}; see `fedsys coordinator recover`"

    def hold(self, text: str) -> None:
        """Hold all jobs until the operator has looked; for one who restored a backup."""
        with self._state.transaction() as session:
            session.merge(HoldRow(key="restored", node=0, text=text, at=self._clock()))
        self._none = False


def _forgotten(session: Session, node: int, name: str, spent: fleet_pb2.Spent) -> list[HoldRow]:
    job = spent.job.hex()
    row = session.scalar(select(JobRow).where(JobRow.ledger == job))
    if row is not None and spent.round <= row.round:
        return []
    what = (
        f"round {spent.round} of job {job[:16]}, which this coordinator does not know"
        if row is None
        else f"round {spent.round} of job {row.id}, of which this coordinator knows {row.round}"
    )
    promised = spent.promised if spent.HasField("promised") else None
    return [
        HoldRow(
            key=f"{node}:{job}",
            text=f"{name} took part in {what}",
            job=job,
            version=spent.round,
            promised=promised if promised is not None and 0 <= promised < 1e9 else None,
        )
    ]
