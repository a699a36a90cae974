"""A configuration's model as a coordinator needs it, through the trainer that devices use."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.answering.evaluated import respondent_for
from client.local_data import job_code
from client.training import LocalConfig, Trainer
from client.training.whole_metrics import whole_metrics
from fedsys import tasks
from fedsys.config import Config
from fedsys.errors import ConfigError, DataError
from fedsys.preprocessing import why_not_deployed
from fedsys.privacy.encoding.parts import Parts

__all__ = ["TaskModel"]

_log = logging.getLogger(__name__)


class TaskModel:
    """A task's model as flat weights, and the coordinator's own test data, read on first use.

    Args:
        config: names the task, its options and the local training.

    Raises:
        FedsysError: the task is not installed here, or each device would prepare its rows
            differently.
    """

    def __init__(self, config: Config) -> None:
        self._task = tasks.load(config.task.name, config.task.options)
        self._data: tasks.FederatedData | None = None
        self._looked = False
        self.task_sha256 = job_code(self._task, config.local.procedure).sha256
        self.preprocessing = tasks.preprocessing_of(self._task)
        reason = why_not_deployed(self.preprocessing)
        if reason is not None:
            raise ConfigError(f"task {config.task.name} cannot run on devices: {reason}")
        whole_metrics(config.evaluation.metrics)
        self._metrics = config.evaluation.metrics
        self._trainer = self._trainer_of(config)
        self.layers = self._trainer.layout.sizes
        trains = config.job.kind == "train"
        self.frozen_sha256 = self._trainer.frozen_sha256 if trains else None
        compares = config.job.kind != "query" and self._trainer.freezes
        self.frozen_compared = self._trainer.frozen_sha256 if compares else ""
        if self._trainer.keeps_state and config.rounds.mode == "buffered":
            raise ConfigError(
                "rounds.mode = 'buffered' with a local procedure: what a client keeps belongs to a "
                "round, and its rounds overlap here; set rounds.mode = 'synchronous'"
            )

    def _trainer_of(self, config: Config) -> Trainer:
        if config.job.kind != "train":
            return respondent_for(config, self._task, "cpu", self._sample)
        return Trainer(
            self._task,
            LocalConfig(**config.local.model_dump()),
            "cpu",
            "loop" if config.engine.path == "auto" else config.engine.path,
            1,
            config.job.seed,
            self._sample,
        )

    @property
    def parts(self) -> Parts:
        """What local training returns: the update, and a procedure's blocks."""
        return self._trainer.parts

    def initial_weights(self) -> NDArray[np.float32]:
        """(d,) the weights of round 0."""
        return self._trainer.initial_weights()

    def state_dict(self, weights: NDArray[np.float32]) -> dict[str, Any]:
        """The weights as the ``state_dict`` of the task's own module."""
        return self._trainer.state_dict(weights)

    def evaluate(self, weights: NDArray[np.float32]) -> dict[str, float] | None:
        """Loss and metrics on this machine's test data; None if there is none."""
        data = self._own_data()
        return None if data is None else self._trainer.evaluate(weights, data.test, self._metrics)

    def _own_data(self) -> tasks.FederatedData | None:
        if not self._looked:
            self._looked = True
            try:
                self._data = tasks.read_data(self._task, tasks.DataSource.locate(None))
            except DataError as error:
                _log.warning("no evaluation: %s", error)
        return self._data

    def _sample(self) -> tasks.Examples:
        """An example for the shapes of lazy modules.

        Raises:
            ConfigError: there is no data here.
        """
        data = self._own_data()
        if data is None:
            raise ConfigError(
                f"task {self._task.name}: its model has lazy modules, whose shapes come from an "
                f"example, and this coordinator has no data; state the sizes in init_model, or "
                f"put test data here"
            )
        return data.test
