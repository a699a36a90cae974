"""A run joins its population's folder: its promise is checked and linked before it may begin."""

from __future__ import annotations

import dataclasses
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsys.audit.population import BUDGET, Budget, linked
from fedsys.config import Section, Tuning
from fedsys.errors import ConfigError
from fedsys.run_folder import free_name
from simulations.continuing import Start
from simulations.setting import Setting

__all__ = ["joining"]


@contextmanager
def joining(
    population: Path | None, setting: Setting, out: Path | None, start: Start | None = None
) -> Iterator[tuple[Setting, Path]]:
    """Hold a population's folder until the run's ledger is in it.

    Args:
        population: its folder; None for a run that belongs to none.
        setting: of the run.
        out: the run's folder; None for the first free name.
        start: the run whose model this one starts from; a population that it is in is joined.

    Yields:
        The setting, whose configuration states all runs before, and the run's folder.

    Raises:
        BudgetExceeded: the budget does not allow the run; nothing was written.
        ConfigError: there is no budget, the folder is elsewhere, other runs are stated already, or
            the run does not fit the one that it starts from.
    """
    name = setting.config.job.name
    if start is not None:
        setting = _starting(setting, start)
        population = _one_population(population, start)
    if population is None:
        if start is not None:
            linked_to = start.stated_in(setting.config, setting.plan)
            setting = _with(setting, tuning=linked_to)
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
            setting = _with(setting, tuning=Tuning.model_validate(before))
        yield setting, folder


def _starting(setting: Setting, start: Start) -> Setting:
    """The setting of a run that starts from another one's model."""
    config, trainer = setting.config, setting.population.trainer
    if config.job.kind != "train":
        raise ConfigError(f"--from {start.path} with job.kind = '{config.job.kind}': leave it out")
    start.require_same_model(len(trainer.initial_weights()), trainer.frozen_sha256)
    return _with(setting, job=config.job.model_copy(update={"start": start.view.head}))


def _one_population(population: Path | None, start: Start) -> Path | None:
    """The population of both runs; None where they are in none."""
    theirs = start.population
    if population is not None and (theirs is None or theirs != population.resolve()):
        raise ConfigError(
            f"--from {start.path} with --population {population}: that run is not in the folder, "
            f"so its rounds would not count against the budget"
        )
    return theirs if population is None else population


def _with(setting: Setting, **sections: Section) -> Setting:
    return dataclasses.replace(setting, config=setting.config.model_copy(update=sections))
