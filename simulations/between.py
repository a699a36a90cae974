"""The clients of a training job, as they evaluate its model between rounds of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from client.answering.respondent import respondent_between
from fedsys import tasks
from fedsys.config import Config
from fedsys.errors import ConfigError
from fedsys.privacy import PrivacyPlan
from server.job_settings import parts_of
from simulations.engine.base import Engine, InProcess
from simulations.population import Population
from simulations.randomness import Randomness

__all__ = ["clients_between", "working"]


def clients_between(
    config: Config,
    plan: PrivacyPlan,
    population: Population,
    held: tasks.FederatedData,
    partition: Callable[[Config, tasks.FederatedData, str], tasks.Partition],
) -> Population | None:
    """The same clients with the rows that they hold out; None where they never evaluate.

    Args:
        config: The configuration of a training job.
        plan: Its plan.
        population: The clients as they train.
        held: The task's data.
        partition: Makes the division of the rows that clients evaluate on.

    Raises:
        ConfigError: Their questions have more coordinates than an update, or clients' vectors hold
            more than that.
        DataError: A column that is asked for is not there.
    """
    every = config.evaluation.on_devices_every
    if not every:
        return None
    trainer = population.trainer
    if not parts_of(config, trainer.parts).plain:
        raise ConfigError(
            f"evaluation.on_devices_every = {every} with a local procedure that sends blocks "
            f"besides the update: they do not go together"
        )
    respondent = respondent_between(
        trainer.task,
        config.evaluation.questions,
        plan,
        device=str(trainer.device),
        seed=config.job.seed,
        sample=held.train,
    )
    respondent.check(population.train_set)
    return Population(
        train_set=population.train_set,
        partition=partition(config, held, "evaluate"),
        trainer=respondent,
        seed=config.job.seed,
        by_client=held.by_client,
        keys=population,
    )


@contextmanager
def working(
    between: Population | None, population: Population, engine: Engine, randomness: Randomness
) -> Iterator[tuple[Population, Engine]]:
    """Who works in a round, and where: those between rounds of training in this process, where
    counting rows is quick.

    Args:
        between: The clients as they evaluate; None in a round of training.
        population: The clients as they train.
        engine: Where they train.
        randomness: Source of their noise.
    """
    if between is None:
        yield population, engine
        return
    with InProcess(between, randomness) as here:
        yield between, here
