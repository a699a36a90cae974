"""What a population has spent over all its jobs, by view, and what counts against its budget.

Training, queries and evaluations count alike. Jobs whose rounds compose in a view are added as one
sequence of rounds (`fedsys.privacy.accounting.adding`). In the participant's and the server's view
each job counts at its worst client, whichever that is.

Against the budget a job that is not over counts with all that its plan allows, so that nothing is
spent twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedsys.errors import FedsysError, RunFolderError
from fedsys.improvement import STOPPED
from fedsys.privacy import (
    VIEWS,
    Epsilons,
    LedgerView,
    PrivacyPlan,
    View,
    ViewAccountant,
    plan_of,
    read_ledger,
    replay,
)
from fedsys.privacy.accounting.adding import Standing, composed, cost_together, promised_part
from fedsys.privacy.ledger import read_header, read_private
from fedsys.run_folder import RunFolder
from server.home.folder import Home
from server.home.state import ACTIVE_JOB, PAUSED, JobRow, State
from server.job_settings import budget_of

__all__ = ["NOTHING", "Promises", "Spending", "alone", "spent_by_failed"]

Standings = Mapping[View, Standing]
"""A job's standing by view; without the views in which its epsilon is not known."""

NOTHING = Epsilons(outsider=0.0, participant=0.0, server=0.0)
_UNKNOWN = Epsilons(outsider=math.inf, participant=math.inf, server=math.inf)
_RELATIVE = 1e-9


class Spending:
    """Totals of one coordinator's population.

    Args:
        home: where the runs' folders are.
        state: knows the jobs.
    """

    def __init__(self, home: Home, state: State) -> None:
        self.population = home.roster_key.hex()[:16]
        self._home = home
        self._state = state
        self._over: dict[str, Standings] = {}
        self._begun: dict[str, Standings] = {}
        """Of jobs that are not over: what they spent by their last round."""

    def note(self, job: str, standings: Standings) -> None:
        """State what a job that is not over has spent so far.

        Args:
            job: its id.
            standings: its rounds by view.
        """
        self._begun[job] = standings

    def total(self) -> Epsilons:
        """What all jobs spent, those that are not over too."""
        found = [self._standings(row) for row in self._state.jobs()]
        total: dict[View, float | None] = {
            view: composed([each[view] for each in found])
            if all(view in each for each in found)
            else None
            for view in VIEWS
        }
        return Epsilons(
            outsider=math.inf if total["outsider"] is None else total["outsider"],
            participant=total["participant"],
            server=total["server"],
        )

    def _standings(self, row: JobRow) -> Standings:
        """What is settled is read once: nothing of a job that is over changes any more."""
        if row.status in (*ACTIVE_JOB, PAUSED):
            if row.id not in self._begun:
                self._begun[row.id] = _spent_by(row, RunFolder(self._home.jobs / row.id))
            return self._begun[row.id]
        if row.id not in self._over:
            folder, noted = RunFolder(self._home.jobs / row.id), self._begun.pop(row.id, None)
            kept = noted is not None and row.status != STOPPED and _states(folder, noted)
            self._over[row.id] = noted if noted and kept else _spent_by(row, folder)
        return self._over[row.id]


def alone(spent: Epsilons) -> Standings:
    """A job of which only its epsilons are known, which are added to those of others."""
    return {
        view: Standing(part=None, epsilon=epsilon)
        for view in VIEWS
        if (epsilon := spent.of(view)) is not None
    }


def _states(folder: RunFolder, noted: Standings) -> bool:
    """Whether a summary states the epsilons that were noted after the last round."""
    stated = _stated(folder)
    return stated is not None and all(
        view in noted
        and (epsilon := stated.of(view)) is not None
        and math.isclose(noted[view].epsilon, epsilon, rel_tol=_RELATIVE)
        for view in VIEWS
    )


def _spent_by(row: JobRow, folder: RunFolder) -> Standings:
    """By what a job's folder holds; where its ledger cannot be read, by its epsilons alone."""
    # Of one that is lost or whose folder is gone only the promise is known, in its view.
    if row.status == "lost" or (not folder.begun and row.ledger):
        promised = math.inf if row.promised is None else row.promised
        return alone(Epsilons(outsider=promised, participant=math.inf, server=math.inf))
    if not folder.begun:
        return alone(NOTHING)
    stated = _stated(folder)
    try:
        view = read_ledger(folder.ledger, allow_torn=True)
        accountant, derived = _replayed(view, folder)
    except (FedsysError, OSError):
        return alone(stated or _UNKNOWN)
    spent = stated or derived
    return {
        each: _counted(accountant, each, epsilon, early=view.ended_early)
        for each in VIEWS
        if (epsilon := spent.of(each)) is not None
    }


def _replayed(view: LedgerView, folder: RunFolder) -> tuple[ViewAccountant, Epsilons]:
    try:
        return replay(view, read_private(folder.private)[0])
    except (FedsysError, OSError):
        return replay(view, None)


def _counted(accountant: ViewAccountant, view: View, epsilon: float, *, early: bool) -> Standing:
    """A job that is over, with all planned rounds where results decided how many there were."""
    plan = accountant.plan
    if early and plan.protected:
        part = promised_part(plan, view)
        return Standing.of(plan, view, part, max(epsilon, cost_together([part])[0]))
    return accountant.standing(view, epsilon)


def _stated(folder: RunFolder) -> Epsilons | None:
    """What a run's summary says it spent; None without one."""
    try:
        stated = folder.read_summary()["privacy"]["epsilon"]
        participant, server = stated["participant"], stated["server"]
        return Epsilons(
            outsider=float(stated["outsider"]),
            participant=None if participant is None else float(participant),
            server=None if server is None else float(server),
        )
    except (RunFolderError, ValueError, KeyError, TypeError):
        return None


class Promises:
    """What counts against a population's budget: what its jobs have spent, or may still spend, in
    the views that they promise.

    Args:
        home: where the runs' folders are.
        state: knows the jobs.
    """

    def __init__(self, home: Home, state: State) -> None:
        self._home = home
        self._state = state
        self._known: dict[str, tuple[bool, Standing]] = {}
        """By job: whether it was not over, and what it counted then."""

    def total(self, *, without: int | None = None, also: PrivacyPlan | None = None) -> float:
        """Epsilon over all jobs that count.

        Args:
            without: number of a job that is left out.
            also: the plan of a job that would count too.
        """
        found = [
            self._standing(row)
            for row in self._state.jobs()
            if row.number != without and self._counts(row)
        ]
        return composed(found if also is None else [*found, _promised_by(also)])

    def _counts(self, row: JobRow) -> bool:
        """Whether a job counts: from its ledger's first line on, whether or not the database knows
        yet."""
        if row.started_at is not None or row.ledger:
            return True
        return row.status in ACTIVE_JOB and RunFolder(self._home.jobs / row.id).begun

    def _standing(self, row: JobRow) -> Standing:
        unfinished = row.status in (*ACTIVE_JOB, PAUSED, "lost")
        known = self._known.get(row.id)
        if known is not None and known[0] == unfinished:
            return known[1]
        folder = RunFolder(self._home.jobs / row.id)
        found = _standing_of(row, folder, unfinished=unfinished)
        if found.part is not None or not unfinished:  # the database's figure may still change
            self._known[row.id] = unfinished, found
        return found


def _promised_by(plan: PrivacyPlan) -> Standing:
    """The most that a job may spend in the view that it promises; infinite if it promises none."""
    promised = budget_of(plan)
    if promised is None:
        return Standing(part=None, epsilon=math.inf)
    return Standing.of(plan, plan.guarantee, promised_part(plan, plan.guarantee), promised)


def _standing_of(row: JobRow, folder: RunFolder, *, unfinished: bool) -> Standing:
    """What a job that began counts with others: what it spent if it is over, else its promise.

    Where its ledger cannot be read, the database's figure counts, and is added.

    Args:
        row: the job in the database.
        folder: its run.
        unfinished: whether it may spend more.
    """
    stated = row.promised if unfinished else row.spent
    epsilon = math.inf if stated is None else stated
    try:
        if unfinished:
            return _promised_by(plan_of(read_header(folder.ledger)))
        view = read_ledger(folder.ledger, allow_torn=True)
        plan = plan_of(view.header)
        if view.ended_early:
            return _promised_by(plan)
        accountant = replay(view, read_private(folder.private)[0])[0]
        spent = accountant.spent_in(plan.guarantee)
        if epsilon > spent * (1 + 1e-6):
            return _promised_by(plan)  # its last round may have been cut off, and counts in full
    except (FedsysError, OSError):
        return Standing(part=None, epsilon=epsilon)
    return accountant.standing(plan.guarantee, max(epsilon, spent))


def spent_by_failed(row: JobRow, folder: RunFolder) -> float | None:
    """Epsilon of a job that failed, in the view that it promises, for the database, whose figure
    is older than the round that failed.

    A round that was left open counts in full. Where the ledger cannot be read, all that the job
    promised was spent.

    Args:
        row: the job in the database.
        folder: its run.

    Returns:
        None where nothing is promised, or nothing began.
    """
    try:
        if not row.ledger and not folder.begun:
            return row.spent
        view = read_ledger(folder.ledger, allow_torn=True)
        plan = plan_of(view.header)
        accountant = replay(view, read_private(folder.private)[0])[0]
    except (FedsysError, OSError):
        return row.promised
    spent = accountant.spent_in(plan.guarantee) if plan.protected else None
    return spent if spent is None or row.spent is None else max(spent, row.spent)
