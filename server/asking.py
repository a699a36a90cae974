"""Jobs whose round asks a question: the plan's vector, what its sum becomes, and the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.config import Config
from fedsys.errors import ConfigError
from fedsys.privacy import PrivacyPlan
from fedsys.queries import Sheet, parse
from fedsys.queries.statement import statement_of
from fedsys.wire.turns import Turns

__all__ = [
    "Answering",
    "between_of",
    "everybody",
    "result_of",
    "sheet_between",
    "sheet_of",
    "tested_after",
    "turns_of",
]


def turns_of(config: Config) -> Turns:
    """Which of a job's rounds train, and which ask devices how good the model is."""
    return Turns.of(training=config.rounds.count, every=config.evaluation.on_devices_every)


def sheet_between(config: Config, dimension: int) -> Sheet | None:
    """What the rounds between those of training ask; None where there are none.

    Args:
        config: The configuration of a training job.
        dimension: D, the coordinates of a client's update, which their vectors share.

    Raises:
        ConfigError: The questions have more coordinates than an update.
    """
    if not config.evaluation.on_devices_every:
        return None
    return Sheet.of(parse(config.evaluation.questions), dimension=dimension)


def tested_after(config: Config, number: int) -> bool:
    """Whether the model is evaluated on the coordinator's test data after a round: every
    `evaluation.every` rounds of training, after the last round, and where devices evaluate the same
    model in the next."""
    turns, evaluation = turns_of(config), config.evaluation
    if evaluation.data == "none" or turns.evaluates(number):
        return False
    last = number >= turns.rounds or turns.evaluates(number + 1)
    return last or turns.trained(number) % evaluation.every == 0


def everybody(config: Config, population: int) -> Config:
    """A job that asks, with its population, and all of it as cohort where none is configured; any
    other job as it is.

    Args:
        config: The configuration, as validated.
        population: Number of clients, N.
    """
    if config.job.kind == "train":
        return config
    update: dict[str, Any] = {
        "population": config.population.model_copy(update={"clients": population})
    }
    if "expected" not in config.cohort.model_fields_set:
        update["cohort"] = config.cohort.model_copy(update={"expected": population})
    return config.model_copy(update=update)


def sheet_of(config: Config) -> Sheet:
    """The questions of a configuration whose population is known (`everybody`).

    Raises:
        ConfigError: They have too many coordinates.
    """
    return Sheet.of(parse(config.query.questions), population=config.population.clients)


class Answering:
    """What a round that asks does with its mean: it becomes the answer, without the padding.

    Args:
        size: d, coordinates that were asked for.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def apply(
        self, weights: NDArray[np.floating[Any]], update: NDArray[np.floating[Any]]
    ) -> NDArray[np.floating[Any]]:
        """See `server.strategies.Strategy.apply`; the weights are not changed and not used."""
        return update[: self._size].astype(np.float32)

    def state(self) -> dict[str, NDArray[Any]]:
        """Empty: there is one round."""
        return {}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Nothing to continue from."""
        if state:
            raise ConfigError("the checkpoint holds a strategy's state, but questions have none")


def result_of(
    config: Config, answer: NDArray[np.float32], *, deviation: float, rate: float
) -> dict[str, Any]:
    """What ``summary.json`` states of a round that asked.

    Args:
        config: The job's configuration.
        answer: (d,) the noisy sum over q N.
        deviation: Standard deviation of its noise, per coordinate.
        rate: q.
    """
    return statement_of(
        sheet_of(config),
        config.job.kind,
        answer,
        deviation=deviation,
        rate=rate,
        population=config.population.clients or 0,
    )


def between_of(
    config: Config, plan: PrivacyPlan, number: int, answer: NDArray[np.float32]
) -> dict[str, Any]:
    """A line of ``answers.jsonl``: what devices said of the model between rounds of training.

    Args:
        config: The training job's configuration.
        plan: Its plan.
        number: The round in which devices evaluated.
        answer: (d,) the noisy sum over q N, in clipping norms.
    """
    sheet = Sheet.of(parse(config.evaluation.questions), dimension=plan.dimension)
    stated = statement_of(
        sheet,
        "evaluate",
        answer,
        deviation=plan.build_mechanism().noise_deviation / plan.clip,
        rate=plan.rate,
        population=plan.population,
    )
    return {"trained": turns_of(config).trained(number), **stated}
