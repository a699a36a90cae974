"""The owner's data and the training on it: one client, resident in one process."""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.training import LocalConfig, Trainer
from client.training.example.privacy import ExamplePrivacy, ExamplePrivateTrainer
from fedsys import tasks
from fedsys.errors import Cause, ConfigError, PolicyRefusal
from fedsys.privacy import Entropy
from fedsys.wire import Assignment
from fedsys.wire.terms import Terms

__all__ = ["DataSpec", "LocalData", "code_sha256", "shard_rows"]

_log = logging.getLogger(__name__)
_SHARD = re.compile(r"(\d+)/(\d+)")


def code_sha256(task: tasks.Task) -> str:
    """SHA-256 over a task's name and the source of the module that defines it."""
    module = sys.modules[type(task).__module__]
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        raise ConfigError(
            f"task {task.name}: the source of {module.__name__} is not here, so nobody can approve "
            f"it; install the task as source"
        ) from None
    digest = hashlib.sha256(b"fedsys task v1\x00")
    digest.update(task.name.encode() + b"\x00" + source.encode())
    return digest.hexdigest()


def shard_rows(
    data: tasks.FederatedData, shard: tuple[int, int] | None, seed: int
) -> NDArray[np.int64]:
    """The rows of a device's training examples.

    Args:
        data: of the task.
        shard: part and number of parts of the simulator's ``iid`` partition; None for all rows.
        seed: of the job.
    """
    if shard is None:
        return np.arange(len(data.train))
    part, parts = shard
    return tasks.split(data, "iid", parts, seed).indices_of(part)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What ``--data`` and ``--shard`` say.

    Attributes:
        task: a built-in task's name or ``"module:Attr"``.
        folder: where its files lie; None for ``$FEDSYS_DATA``.
        shard: this device's part of a task's training examples, of how many; None for all.
    """

    task: str
    folder: Path | None = None
    shard: tuple[int, int] | None = None

    @classmethod
    def parse(cls, source: str, shard: str | None) -> DataSpec:
        """``TASK`` or ``TASK=FOLDER``; a shard is ``I/N`` with I from 0.

        Raises:
            ConfigError: something else.
        """
        task, equals, folder = source.partition("=")
        if not task or (equals and not folder):
            raise ConfigError(f"--data {source}: expected TASK or TASK=FOLDER")
        part = None
        if shard is not None:
            found = _SHARD.fullmatch(shard)
            if found is None or not int(found[1]) < int(found[2]):
                raise ConfigError(f"--shard {shard}: expected I/N with I from 0 to N-1, e.g. 0/3")
            part = (int(found[1]), int(found[2]))
        return cls(task=task, folder=Path(folder) if equals else None, shard=part)


@dataclass
class LocalData:
    """One client's examples, and trainers for the jobs that use them.

    Args:
        spec: where the data is.
        options: of the task.
        device: ``cpu`` or ``cuda``.
    """

    spec: DataSpec
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    _trainers: dict[bytes, Trainer] = field(default_factory=dict, repr=False)
    _private: dict[bytes, ExamplePrivateTrainer] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.task = tasks.load(self.spec.task, self.options)
        self.data = self.task.clients(tasks.DataSource.locate(self.spec.folder))

    @property
    def sha256(self) -> str:
        """Of the installed task's code."""
        return code_sha256(self.task)

    def rows(self, seed: int) -> NDArray[np.int64]:
        """This device's training examples."""
        return shard_rows(self.data, self.spec.shard, seed)

    def trainer(self, terms: Terms) -> Trainer:
        """The trainer of a job; the newest few are kept.

        Raises:
            PolicyRefusal: the model is not of the size that the terms say, or the training not
                one that this version knows.
        """
        if terms.digest not in self._trainers:
            while len(self._trainers) >= 2:
                del self._trainers[next(iter(self._trainers))]
            try:
                local = LocalConfig(**terms.local)
                self._trainers[terms.digest] = Trainer(
                    self.task, local, self.device, terms.path, 1, terms.seed
                )
            except (ConfigError, TypeError) as error:
                raise PolicyRefusal(
                    f"training as asked is not possible here: {error}", cause=Cause.TASK
                ) from None
        trainer = self._trainers[terms.digest]
        if trainer.dimension != terms.dimension:
            raise PolicyRefusal(
                f"the model of task '{self.task.name}' has {trainer.dimension} weights here, "
                f"{terms.dimension} are asked for",
                cause=Cause.TASK,
            )
        return trainer

    def check(self, terms: Terms) -> None:
        """Raise PolicyRefusal where these terms cannot be trained here."""
        if terms.task != self.spec.task:
            raise PolicyRefusal(
                f"task '{terms.task}' is asked for, this device holds data of '{self.spec.task}'",
                cause=Cause.TASK,
            )
        if dict(terms.options) != dict(self.options):
            raise PolicyRefusal(
                f"task '{terms.task}' runs here with options {dict(self.options)}, "
                f"{dict(terms.options)} are asked for; see `fedsys agent run --option`",
                cause=Cause.TASK,
            )
        self.trainer(terms)

    def train(
        self, terms: Terms, assignment: Assignment, client: int, entropy: Entropy
    ) -> NDArray[np.float32]:
        """(1, d) this client's update; by DP-SGD where the unit of privacy is the example."""
        rows = [self.rows(terms.seed)]
        if terms.plan.unit == "example":
            private = self._private.pop(terms.digest, None) or self._example_trainer(terms)
            update = private.train(
                assignment.weights, self.data.train, rows, entropy, names=["this device"]
            )
            self._private = {terms.digest: private}  # one that failed is not used again
            return update
        return self.trainer(terms).train(
            assignment.weights,
            self.data.train,
            rows,
            [assignment.batch_seed(client)],
            names=["this device"],
        )

    def _example_trainer(self, terms: Terms) -> ExamplePrivateTrainer:
        plan = terms.plan
        if plan.example_rate is None or plan.steps is None:
            raise PolicyRefusal(
                "the unit is the example, but rate and steps are not given", cause=Cause.TERMS
            )
        return ExamplePrivateTrainer(
            self.task,
            LocalConfig(**terms.local),
            ExamplePrivacy(
                clip=terms.example_clip,
                noise_multiplier=plan.noise_multiplier,
                example_rate=plan.example_rate,
                steps=plan.steps,
            ),
            self.device,
            terms.seed,
        )
