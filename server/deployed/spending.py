"""What a population has spent by view over all its jobs: they add up."""

from __future__ import annotations

import math

from fedsys.errors import FedsysError, RunFolderError
from fedsys.privacy import Epsilons, read_ledger, replay
from fedsys.privacy.ledger import read_private
from fedsys.run_folder import RunFolder
from server.home.folder import Home
from server.home.state import ACTIVE_JOB, State

__all__ = ["NOTHING", "Spending"]

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
        self._over: dict[str, Epsilons] = {}

    def total(self, current: Epsilons = NOTHING) -> Epsilons:
        """What the jobs that are over spent, and the one in hand.

        Args:
            current: spent so far by the job that is not over.
        """
        total = current
        for row in self._state.jobs():
            if row.status in ACTIVE_JOB:
                continue
            if row.id not in self._over:
                self._over[row.id] = _of(RunFolder(self._home.jobs / row.id))
            total = _sum(total, self._over[row.id])
        return total


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
