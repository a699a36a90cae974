"""Jobs whose round asks a question: the plan's vector, what its sum becomes, and the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.config import Config
from fedsys.errors import ConfigError
from fedsys.queries import Sheet, parse
from fedsys.queries.statement import statement_of

__all__ = ["Answering", "everybody", "result_of", "sheet_of"]


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
