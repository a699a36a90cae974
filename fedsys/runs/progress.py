"""Where a run stands, read from its folder while it trains or afterwards; nothing is written.

Epsilon is derived from the ledger, not taken from a summary, so that a run shows what it has spent
before it ends. That reads the whole ledger, so how often it is done depends on how long it takes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsys.errors import FedsysError, LedgerError
from fedsys.privacy import VIEWS, Epsilons, View, plan_of, read_ledger
from fedsys.privacy.accounting.accountant import ViewAccountant
from fedsys.privacy.accounting.adding import Standing
from fedsys.privacy.accounting.from_ledger import charge_rounds
from fedsys.privacy.ledger import LedgerView, read_private
from fedsys.privacy.ledger.cosigned import CosignedHead, read_cosigned
from fedsys.privacy.plan import PrivacyPlan
from fedsys.records import EpsilonPoint
from fedsys.report.contents import RunContents, read
from fedsys.run_folder import RunFolder
from fedsys.transparency import NoteError

__all__ = ["Cosigned", "Progress", "ProgressReader", "is_written"]

_POINTS = {"rdp": 100, "pld": 16}
"""Points of the curve of epsilon; each costs an evaluation of the accountant."""
_SHARE = 30.0
"""Deriving epsilon takes at most one part in so many of the time."""
_RECENT = 120.0
"""Seconds since the last write within which a run counts as running where no lock can be seen."""
_LOCKS = Path("/proc/locks")
_LARGEST_POPULATION = 10_000_000
_WATCHED = ("config.toml", "ledger.jsonl", "metrics.jsonl", "summary.json", "cosigned.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosigned:
    """What one witness cosigned last.

    Attributes:
        name: the witness's.
        size: lines of the ledger that it vouches for.
        at: when, in seconds since 1970 by the witness's clock; None where that cannot be read.
    """

    name: str
    size: int
    at: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """One run.

    Attributes:
        folder: where it is.
        contents: its configuration, metrics and summary, bounded and printable.
        status: ``running``, ``stopped`` (neither ended nor written to), or the summary's.
        round: reserved rounds.
        rounds: of the plan; 0 where no ledger is there yet.
        spent: epsilon by view; None where it is withheld or cannot be derived.
        standings: its rounds by view, for a total with other jobs; without the views in which they
            are not known.
        curve: epsilon over the rounds.
        budget: epsilon that the run may spend; None without a budget.
        guarantee: the view that the budget is for.
        delta: of every epsilon.
        withheld: why no epsilon may be claimed; empty where one may.
        head: hash of the ledger's last line.
        lines: of the ledger.
        cosigned: by witness.
        written: seconds since 1970 when anything in the folder was last written.
        problem: why the ledger could not be read; empty where it could.
    """

    folder: Path
    contents: RunContents
    status: str
    round: int = 0
    rounds: int = 0
    spent: Epsilons | None = None
    standings: Mapping[View, Standing] = field(default_factory=dict)
    curve: tuple[EpsilonPoint, ...] = ()
    budget: float | None = None
    guarantee: str = "outsider"
    delta: float | None = None
    withheld: str = ""
    head: str = ""
    lines: int = 0
    cosigned: tuple[Cosigned, ...] = ()
    written: float = 0.0
    problem: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return self.status not in ("running", "stopped")

    @property
    def metrics(self) -> dict[str, float]:
        """The last evaluation's metrics, by name."""
        return {name: values[-1] for name, (_, values) in self.contents.metrics.items()}


@dataclass(frozen=True, kw_only=True)
class _Derived:
    """What was read from the ledger."""

    values: Mapping[str, Any] = field(default_factory=dict)
    stamp: tuple[object, ...] = ()
    at: float = -math.inf
    cost: float = 0.0


class ProgressReader:
    """Reads one run again and again; what did not change is not read.

    Args:
        folder: the run's folder.
        clock: monotonic seconds.
        now: seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._clock, self._now = clock, now
        self._contents: tuple[tuple[object, ...], RunContents] | None = None
        self._derived = _Derived()

    def read(self) -> Progress:
        """Where the run stands.

        Raises:
            RunFolderError: there is no such folder.
        """
        stamp = _stamp(self._folder)
        if self._contents is None or self._contents[0] != stamp:
            self._contents = stamp, read(self._folder, private=False)
        contents = self._contents[1]
        written = max((each[1] for each in stamp if each is not None), default=0) / 1e9
        status = contents.summary.status or ""
        if not status:
            ledger = self._folder / "ledger.jsonl"
            running = is_written(ledger) or self._now() - written < _RECENT
            status = "running" if running else "stopped"
        self._derive(_stamp(self._folder, ("ledger.jsonl", "private.jsonl")), contents, status)
        last = max((rounds[-1] for rounds, _ in contents.metrics.values() if rounds), default=0)
        found = Progress(
            folder=self._folder,
            contents=contents,
            status=status,
            written=written,
            cosigned=_cosigned(self._folder),
            **self._derived.values,
        )
        return found if found.round >= last else replace(found, round=last)

    def _derive(self, stamp: tuple[object, ...], contents: RunContents, status: str) -> None:
        before, now = self._derived, self._clock()
        soon = status == "running" and now - before.at < _SHARE * before.cost
        if stamp == before.stamp or soon:
            return
        values = _of_ledger(self._folder)
        self._derived = _Derived(values=values, stamp=stamp, at=now, cost=self._clock() - now)


Stamp = tuple[tuple[int, int, int] | None, ...]


def _stamp(folder: Path, names: tuple[str, ...] = _WATCHED) -> Stamp:
    """Size, time of the last write and inode of each file, None for one that is missing."""
    found: list[tuple[int, int, int] | None] = []
    for name in names:
        try:
            status = (folder / name).lstat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)


def _of_ledger(folder: Path) -> dict[str, Any]:
    stored = RunFolder(folder)
    if not stored.begun:
        return {}
    try:
        view = read_ledger(stored.ledger, allow_torn=True)
        plan = plan_of(view.header)
        values: dict[str, Any] = {
            "round": len(view.rounds),
            "rounds": plan.rounds,
            "budget": plan.budget,
            "guarantee": str(plan.guarantee),
            "delta": plan.delta,
            "head": view.head,
            "lines": view.lines,
            "withheld": str(view.header.get("withheld") or ""),
        }
    except (FedsysError, OSError) as error:
        return {"problem": str(error)}
    if values["withheld"]:
        return values
    try:
        curve, standings = _curve(view, plan, folder)
        spent = curve[-1].spent if curve else Epsilons(outsider=0.0, participant=0.0, server=0.0)
        return {**values, "curve": curve, "spent": spent, "standings": standings}
    except (FedsysError, OSError, ValueError, OverflowError, MemoryError) as error:
        return {**values, "problem": str(error)}


def _curve(
    view: LedgerView, plan: PrivacyPlan, folder: Path
) -> tuple[tuple[EpsilonPoint, ...], dict[View, Standing]]:
    """Epsilon after evenly spaced rounds, the last one included, and what all rounds are in a
    total."""
    if plan.population > _LARGEST_POPULATION:
        raise LedgerError(f"a population of {plan.population} is not accounted for here")
    private = None
    if (folder / "private.jsonl").is_file():
        private = read_private(folder / "private.jsonl")[0]
    accountant, points = ViewAccountant(plan), _POINTS.get(plan.accountant, 16)
    step = max(1, -(-len(view.rounds) // points))
    curve = []
    for count, number in enumerate(charge_rounds(accountant, view, private), start=1):
        if count % step == 0 or count == len(view.rounds):
            curve.append(EpsilonPoint(round=number, spent=_spent(accountant, private is not None)))
    known: tuple[View, ...] = ("outsider",) if private is None else VIEWS
    return tuple(curve), {each: accountant.standing(each) for each in known}


def _spent(accountant: ViewAccountant, known: bool) -> Epsilons:
    if known:
        return accountant.spent()
    return Epsilons(outsider=accountant.outsider.epsilon(), participant=None, server=None)


def _cosigned(folder: Path) -> tuple[Cosigned, ...]:
    path = RunFolder(folder).cosigned
    if not path.is_file():
        return ()
    try:
        return tuple(_last(head) for head in read_cosigned(path))
    except (LedgerError, NoteError, OSError):
        return ()


def _last(head: CosignedHead) -> Cosigned:
    cosignature = head.cosignature
    return Cosigned(
        name=head.witness.name,
        size=head.checkpoint.size,
        at=None if cosignature is None else cosignature.timestamp,
    )


def is_written(ledger: Path, *, locks: Path = _LOCKS) -> bool:
    """Whether a process holds the lock under which a ledger is written.

    The lock is looked for in the kernel's list, because trying to take it could make a run fail
    that begins at that moment.
    """
    try:
        inode = os.stat(ledger, follow_symlinks=False).st_ino
        held = locks.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return any(
        len(words) >= 6 and words[1] == "FLOCK" and words[5].endswith(f":{inode}")
        for words in map(str.split, held.splitlines())
    )
