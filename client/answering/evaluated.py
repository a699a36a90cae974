"""The model of a finished run, for clients to evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.answering.respondent import Respondent
from client.training.flat import FlatLayout
from fedsys import tasks
from fedsys.config import Config
from fedsys.errors import ConfigError
from fedsys.queries import Sheet, parse
from fedsys.release.model import ReleasedModel

__all__ = ["evaluated_weights", "respondent_for"]


def evaluated_weights(config: Config, task: tasks.Task) -> NDArray[np.float32]:
    """(d,) the weights that a configuration asks to evaluate, from a run whose audit holds.

    Raises:
        ConfigError: The run is of another task, or was started from another seed.
        RunFolderError: Its audit fails, or it has no model.
    """
    folder = Path(config.query.model)
    released = ReleasedModel.of(folder)
    there = released.config
    same = {
        "task.name": (config.task.name, there.task.name),
        "task.options": (config.task.options, there.task.options),
        "job.seed": (config.job.seed, there.job.seed),
        "population.held_out": (config.population.held_out, there.population.held_out),
    }
    for key, (asked, trained) in same.items():
        if asked != trained:
            raise ConfigError(
                f"{key} = {asked!r}, but {folder} was trained with {trained!r}; an evaluation of "
                f"its model uses the same"
            )
    model = released.fill(task.init_model(config.job.seed))
    weights: NDArray[np.float32] = FlatLayout.of(model).read(model).numpy().astype(np.float32)
    return weights


def respondent_for(
    config: Config,
    task: tasks.Task,
    device: str,
    sample: tasks.Examples | Callable[[], tasks.Examples] | None = None,
) -> Respondent:
    """What answers the questions of a configuration whose population is known; `sample` gives lazy
    modules their shapes.

    Raises:
        FedsysError: The model that is to be evaluated cannot be read.
    """
    model = evaluated_weights(config, task) if config.job.kind == "evaluate" else None
    sheet = Sheet.of(parse(config.query.questions), population=config.population.clients)
    return Respondent(
        task,
        sheet,
        kind=config.job.kind,
        model=model,
        device=device,
        seed=config.job.seed,
        sample=sample,
    )
