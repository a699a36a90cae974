"""The owner's data and the training on it: one client, resident in one process."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.answering.respondent import Respondent, respondent_between
from client.device_states import DeviceStates
from client.training import LocalConfig, Trainer
from client.training.example.privacy import ExamplePrivacy, ExamplePrivateTrainer
from client.training.held_out import kept_for
from client.training.procedure.loading import BUILTIN, procedure_named
from client.training.procedure.visit import Visit
from fedsys import tasks
from fedsys.errors import Cause, ConfigError, DataError, PolicyRefusal
from fedsys.preprocessing import why_not_deployed
from fedsys.privacy import Entropy
from fedsys.queries import Sheet, parse
from fedsys.tasks.code import TaskCode, code_of
from fedsys.wire import Assignment
from fedsys.wire.terms import Terms

__all__ = ["DataSpec", "LocalData", "job_code", "shard_rows"]

_log = logging.getLogger(__name__)
_SHARD = re.compile(r"(\d+)/(\d+)")


def job_code(task: tasks.Task, procedure: str = "") -> TaskCode:
    """The code of a task, and of a local procedure that does not ship with the product.

    Raises:
        ConfigError: its files cannot be found, so that nobody could approve them.
        PolicyRefusal: they changed since this process imported them.
    """
    if ":" not in procedure:
        return code_of(task)
    return code_of(task, procedure_named(procedure).object, procedure)


def shard_rows(
    data: tasks.FederatedData, shard: tuple[int, int] | None, seed: int
) -> NDArray[np.int64]:
    """The rows of a device's training examples.

    Args:
        data: the task's data.
        shard: (part, number of parts) of the simulator's ``iid`` partition; None for all rows.
        seed: the job's seed.
    """
    if shard is None:
        return np.arange(len(data.train))
    part, parts = shard
    return tasks.split(data, "iid", parts, seed).indices_of(part)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The values of ``--data`` and ``--shard``.

    Attributes:
        task: a built-in task's name or ``"module:Attr"``.
        folder: the folder with the task's files; None for ``$FEDSYS_DATA``.
        shard: (part, number of parts): this device's part of the training examples; None for all.
    """

    task: str
    folder: Path | None = None
    shard: tuple[int, int] | None = None

    @classmethod
    def parse(cls, source: str, shard: str | None) -> DataSpec:
        """Parse ``TASK`` or ``TASK=FOLDER``, and a shard ``I/N`` with I from 0.

        Raises:
            ConfigError: the text has another form.
        """
        if " --" in source:
            raise ConfigError(
                f"--data {source}: contains further options, which must be separate arguments; in "
                f"a systemd unit put them into FEDSYS_OPTIONS, which is split at spaces"
            )
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
        options: the task's options.
        device: ``cpu`` or ``cuda``.
        procedure: the local procedure of the owner's own that jobs may name; empty for none.
        states: where procedures keep what stays on this device; None keeps nothing.
    """

    spec: DataSpec
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    procedure: str = ""
    states: DeviceStates | None = None
    _trainers: dict[bytes, Trainer] = field(default_factory=dict, repr=False)
    _evaluators: dict[bytes, Trainer] = field(default_factory=dict, repr=False)
    _private: dict[bytes, ExamplePrivateTrainer] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        try:
            self.task = tasks.load(self.spec.task, self.options)
        except ConfigError as error:
            if not str(error).startswith("task.options."):
                raise
            raise ConfigError(
                f"{error}; a device takes options from --options FILE and --option KEY=VALUE"
            ) from None
        self._code = job_code(self.task, self.procedure)
        reason = why_not_deployed(tasks.preprocessing_of(self.task))
        if reason is not None:
            raise ConfigError(f"task {self.spec.task} cannot run on a device: {reason}")
        source = tasks.DataSource.locate(self.spec.folder, private=True)
        self.data = tasks.read_data(self.task, source)
        if self.data.by_client is not None:  # a device holds what it trains on
            whole = self.data.by_client.whole()
            self.data = replace(self.data, train=whole, by_client=None)
        if self.data.reading is not None:
            _log.info("%s", self.data.reading.summary())

    @property
    def sha256(self) -> str:
        """SHA-256 of the task's code and the procedure's, as this process imported them.

        Raises:
            PolicyRefusal: its files changed since.
        """
        self._code.require_unchanged()
        return self._code.sha256

    @property
    def files(self) -> Mapping[str, str]:
        """SHA-256 of each file of the task's code, by name."""
        return self._code.files

    def rows(self, seed: int) -> NDArray[np.int64]:
        """The rows of this device's training examples."""
        return shard_rows(self.data, self.spec.shard, seed)

    def trainer(self, terms: Terms) -> Trainer:
        """The trainer of a job; the most recent ones are kept.

        Raises:
            PolicyRefusal: the model does not have the size that the terms state, or this version
                does not support the training asked for.
        """
        asked = terms.local.get("procedure", "")
        if asked and asked not in BUILTIN and asked != self.procedure:
            # Never import what a coordinator names: the owner has to have named it first.
            raise PolicyRefusal(
                f"the local procedure '{asked}' is asked for, but this device runs "
                f"{repr(self.procedure) if self.procedure else 'none of its own'}; see "
                f"`fedsys agent run --procedure`",
                cause=Cause.TASK,
            )
        with self._lock:  # another job may be offered while one trains
            trainer = self._trainer(terms)
            if terms.evaluate_every:
                self._between(terms)
        if trainer.dimension != terms.dimension:
            raise PolicyRefusal(
                f"the model of task '{self.task.name}' has {trainer.dimension} weights here, but "
                f"{terms.dimension} are asked for",
                cause=Cause.TASK,
            )
        if terms.frozen_sha256 and trainer.frozen_sha256 != terms.frozen_sha256:
            raise PolicyRefusal(
                f"the frozen weights and buffers of task '{self.task.name}' give "
                f"{trainer.frozen_sha256} here, and {terms.frozen_sha256} at the coordinator: "
                f"install the files from which the task reads them",
                cause=Cause.TASK,
            )
        parts = replace(trainer.parts, weight_cap=terms.weight_cap)
        if parts.length != terms.row_length:
            raise PolicyRefusal(
                f"vectors of {terms.row_length} coordinates are asked for, but the local procedure "
                f"here sends {parts.length}",
                cause=Cause.TASK,
            )
        if trainer.keeps_state and terms.buffering is not None:
            raise PolicyRefusal(
                "the job's rounds are buffered, and overlap; what a local procedure keeps belongs "
                "to a round",
                cause=Cause.TERMS,
            )
        return trainer

    def _trainer(self, terms: Terms) -> Trainer:
        return self._kept(self._trainers, terms, self._made)

    def _between(self, terms: Terms) -> Trainer:
        """What evaluates the model between rounds of training."""
        return self._kept(self._evaluators, terms, self._evaluator)

    def _kept(
        self, kept: dict[bytes, Trainer], terms: Terms, make: Callable[[Terms], Trainer]
    ) -> Trainer:
        if terms.digest not in kept:
            while len(kept) >= 2:
                del kept[next(iter(kept))]
            try:
                kept[terms.digest] = make(terms)
            except (ConfigError, DataError, TypeError) as error:
                raise PolicyRefusal(
                    f"training as asked is not possible here: {error}", cause=Cause.TASK
                ) from None
        return kept[terms.digest]

    def _evaluator(self, terms: Terms) -> Respondent:
        made = respondent_between(
            self.task,
            terms.questions,
            terms.plan,
            device=self.device,
            seed=terms.seed,
            sample=self.data.train,
        )
        made.check(self.data.train)
        return made

    def _made(self, terms: Terms) -> Trainer:
        """What computes a job's contributions: a trainer, or what answers its questions."""
        if terms.kind == "train":
            local = LocalConfig(**terms.local)
            return Trainer(
                self.task, local, self.device, terms.path, 1, terms.seed, self.data.train
            )
        made = Respondent(
            self.task,
            Sheet.of(parse(terms.questions), dimension=terms.plan.dimension),
            kind=terms.kind,
            device=self.device,
            seed=terms.seed,
            sample=self.data.train,
        )
        made.check(self.data.train)
        return made

    def check(self, terms: Terms) -> None:
        """Raise PolicyRefusal if these terms cannot be trained here."""
        if terms.task != self.spec.task:
            raise PolicyRefusal(
                f"task '{terms.task}' is asked for, but this device has data for "
                f"'{self.spec.task}'",
                cause=Cause.TASK,
            )
        if dict(terms.options) != dict(self.options):
            raise PolicyRefusal(
                f"task '{terms.task}' runs here with options {dict(self.options)}, but "
                f"{dict(terms.options)} are asked for; see `fedsys agent run --option`",
                cause=Cause.TASK,
            )
        self.trainer(terms)

    def train(
        self, terms: Terms, assignment: Assignment, client: int, entropy: Entropy
    ) -> NDArray[np.float32]:
        """(1, length) this client's update, its blocks and its weight; by DP-SGD if the unit of
        privacy is the example.

        Raises:
            PolicyRefusal: the task's files changed since this process imported them.
        """
        self._code.require_unchanged()
        kind = terms.kind_of(assignment.round)
        rows = [kept_for(kind, self.rows(terms.seed), terms.held_out)]
        if kind != terms.kind:
            with self._lock:
                evaluator = self._between(terms)
            seeds = [assignment.batch_seed(client)]
            return evaluator.train(assignment.weights, self.data.train, rows, seeds)
        if terms.plan.unit == "example":
            private = self._private.pop(terms.digest, None) or self._example_trainer(terms)
            update = private.train(
                assignment.weights, self.data.train, rows, entropy, names=["this device"]
            )
            self._private = {terms.digest: private}  # a trainer that failed is not reused
            return update
        trainer = self.trainer(terms)
        trained = trainer.train(
            assignment.weights,
            self.data.train,
            rows,
            [assignment.batch_seed(client)],
            names=["this device"],
            visit=Visit(
                round=assignment.round,
                rounds=terms.plan.rounds,
                shared=assignment.shared,
                states=None if self.states is None else self.states.of(terms.job),
            ),
        )
        parts = replace(trainer.parts, weight_cap=terms.weight_cap)
        return parts.assemble(trained, clip=terms.plan.clip, examples=[len(rows[0])])

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
            sample=self.data.train,
        )
