"""What a population has spent over all its jobs: composed, for an outsider and against the budget.

The participant's and the server's epsilon are those of the client that spent most in a job. Which
one that is differs from job to job, so the totals of these views add up, an upper bound.

Training, queries and evaluations count alike. What a job that is not over may still spend is what
its plan allows, so that nothing is spent twice.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fedsys.errors import FedsysError, RunFolderError
from fedsys.improvement import STOPPED
from fedsys.privacy import Epsilons, PrivacyPlan, plan_of, read_ledger, replay
from fedsys.privacy.accounting.adding import Standing, composed, part_of, promised_part
from fedsys.privacy.accounting.costs import server_step
from fedsys.privacy.ledger import read_private
from fedsys.run_folder import RunFolder
from server.home.folder import Home
from server.home.state import ACTIVE_JOB, PAUSED, JobRow, State
from server.job_settings import budget_of

__all__ = ["NOTHING", "Spending", "promised_by", "standing_of"]

NOTHING = Epsilons(outsider=0.0, participant=0.0, server=0.0)


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
        self._over: dict[str, tuple[Epsilons, Standing]] = {}
        self._begun: dict[str, tuple[Epsilons, Standing]] = {}
        """Of jobs that are not over: what they spent by their last round."""

    def note(self, job: str, spent: Epsilons, standing: Standing | None = None) -> None:
        """State what a job that is not over has spent so far.

        Args:
            job: its id.
            spent: in each view.
            standing: its rounds in the outsider's view; None where only its epsilon is known.
        """
        self._begun[job] = (spent, standing or Standing(part=None, epsilon=spent.outsider))

    def total(self) -> Epsilons:
        """What all jobs spent, those that are not over too."""
        total, outsiders = NOTHING, []
        for row in self._state.jobs():
            unfinished = row.status in (*ACTIVE_JOB, PAUSED)
            known = self._begun if unfinished else self._over
            if row.id not in known:
                folder = RunFolder(self._home.jobs / row.id)
                spent = _promised(row) if row.status == "lost" else _of(folder)
                known[row.id] = (spent, _outsider_of(row, folder, spent.outsider))
            spent, standing = known[row.id]
            total = _sum(total, spent)
            outsiders.append(standing)
        return replace(total, outsider=composed(outsiders))


def _promised(row: JobRow) -> Epsilons:
    """Of a job that only devices remember: in the view that it guarantees, whichever that is."""
    spent = math.inf if row.promised is None else row.promised
    return Epsilons(outsider=spent, participant=math.inf, server=math.inf)


def _outsider_of(row: JobRow, folder: RunFolder, epsilon: float) -> Standing:
    """The rounds of a job that is over; where its ledger cannot be read, its epsilon alone."""
    if row.status == "lost" or not folder.begun:
        return Standing(part=None, epsilon=epsilon)
    try:
        view = read_ledger(folder.ledger, allow_torn=True)
        plan = plan_of(view.header)
        steps = replay(view, None)[0].outsider.steps()
        return Standing.of(plan, "outsider", part_of(plan, "outsider", steps), epsilon)
    except (FedsysError, OSError):
        return Standing(part=None, epsilon=epsilon)


def promised_by(plan: PrivacyPlan) -> Standing:
    """The most that a job may spend in the view that it promises; infinite if it promises none."""
    promised = budget_of(plan)
    if promised is None:
        return Standing(part=None, epsilon=math.inf)
    return Standing.of(plan, plan.guarantee, promised_part(plan, plan.guarantee), promised)


def standing_of(row: JobRow, folder: RunFolder) -> Standing:
    """What a job that began counts with others: what it spent if it is over, else its promise.

    Where its ledger cannot be read, the database's figure counts, and is added.

    Args:
        row: the job in the database.
        folder: its run.
    """
    active = row.status in (*ACTIVE_JOB, PAUSED, "lost")
    stated = row.promised if active else row.spent
    epsilon = math.inf if stated is None else stated
    try:
        view = read_ledger(folder.ledger, allow_torn=True)
        plan = plan_of(view.header)
        stopped = view.closed is not None and view.closed.get("reason") == STOPPED
        if active or stopped:  # how many rounds there were was chosen from what they released
            return promised_by(plan)
        rounds = replay(view, read_private(folder.private)[0])[0]
        if epsilon > rounds.spent_in(plan.guarantee) * (1 + 1e-6):
            return promised_by(plan)  # its last round may have been cut off, and counts in full
        if plan.guarantee == "server":
            part = part_of(plan, "server", {server_step(plan.event()): len(view.rounds)})
        else:
            part = part_of(plan, "outsider", rounds.outsider.steps())
    except (FedsysError, OSError):
        return Standing(part=None, epsilon=epsilon)
    return Standing.of(plan, plan.guarantee, part, epsilon)


def _of(folder: RunFolder) -> Epsilons:
    """What a run that is over says it spent; without a summary, what its ledger charges."""
    if not folder.begun:
        return NOTHING
    try:
        stated = folder.read_summary()["privacy"]["epsilon"]
        participant, server = stated["participant"], stated["server"]
        return Epsilons(
            outsider=float(stated["outsider"]),
            participant=None if participant is None else float(participant),
            server=None if server is None else float(server),
        )
    except (RunFolderError, ValueError, KeyError, TypeError):
        pass
    try:
        private, _torn = read_private(folder.private)
        return replay(read_ledger(folder.ledger, allow_torn=True), private)[1]
    except (FedsysError, OSError):
        return Epsilons(outsider=math.inf, participant=math.inf, server=math.inf)


def _sum(one: Epsilons, other: Epsilons) -> Epsilons:
    def plus(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a + b

    return Epsilons(
        outsider=one.outsider + other.outsider,
        participant=plus(one.participant, other.participant),
        server=plus(one.server, other.server),
    )
