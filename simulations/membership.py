"""A run joins its population's folder: its promise is checked and linked before it may begin."""

from __future__ import annotations

import dataclasses
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsys.audit.population import BUDGET, Budget, linked
from fedsys.config import Tuning
from fedsys.errors import ConfigError
from fedsys.run_folder import free_name
from simulations.setting import Setting

__all__ = ["joining"]


@contextmanager
def joining(
    population: Path | None, setting: Setting, out: Path | None
) -> Iterator[tuple[Setting, Path]]:
    """Hold a population's folder until the run's ledger is in it.

    Args:
        population: its folder; None for a run that belongs to none.
        setting: of the run.
        out: the run's folder; None for the first free name.

    Yields:
        The setting, whose configuration states all runs before, and the run's folder.

    Raises:
        BudgetExceeded: the budget does not allow the run; nothing was written.
        ConfigError: there is no budget, the folder is elsewhere, or other runs are stated already.
    """
    name = setting.config.job.name
    if population is None:
        yield setting, out or free_name(Path("runs"), name)
        return
    Budget.load(population)
    folder = out or free_name(population, name)
    if folder.resolve().parent != population.resolve():
        raise ConfigError(
            f"--out {folder}: the runs of --population {population} are kept in that folder; leave "
            f"--out out, or name a folder in it"
        )
    with (population / BUDGET).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # released when it is closed, or the process dies
        before = linked(population, setting.plan)
        stated = setting.config.tuning
        there = [] if before is None else before["heads"]
        if stated.runs and not (stated.heads and set(stated.heads) <= set(there)):
            raise ConfigError(
                f"tuning.runs = {stated.runs} with --population {population}: its header states "
                f"the runs of that folder; keep tuning runs there, or leave one out"
            )
        if before is not None:
            tuning = Tuning.model_validate(before)
            config = setting.config.model_copy(update={"tuning": tuning})
            setting = dataclasses.replace(setting, config=config)
        yield setting, folder
