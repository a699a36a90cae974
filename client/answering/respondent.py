"""Clients that answer questions, many at once; on a device, one.

A `Respondent` takes the place of a `Trainer` in a round that asks: it is handed the same rows and
seeds and returns vectors of the same kind, which are clipped, noised and summed as updates are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.answering.columns import columns_of
from client.answering.inputs import vectors
from client.training.autotune import Choice
from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.procedure.visit import Visit
from client.training.trainer import ClippedSum, Trainer
from fedsys.errors import DataError
from fedsys.privacy import PrivacyPlan
from fedsys.privacy.encoding.parts import Parts
from fedsys.queries import EVALUATED, Column, Rows, Sheet, parse
from fedsys.tasks import Examples, Task

__all__ = ["Respondent", "respondent_between"]

_AT_ONCE = 4096
_CLIENTS = 256


class Respondent(Trainer):
    """Answers a sheet of questions from clients' rows.

    Args:
        task: Says what the rows mean, and has the model of an evaluation.
        sheet: The questions.
        kind: ``query`` or ``evaluate``.
        model: (d,) weights of the model that is evaluated; None in a query.
        device: Where an evaluation's model runs.
        seed: The job's seed.
        sample: At least one example, which gives lazy modules their shapes.
        norm: The largest norm of a vector: the clipping norm of its round.
    """

    def __init__(
        self,
        task: Task,
        sheet: Sheet,
        *,
        kind: str,
        model: NDArray[np.float32] | None = None,
        device: str = "cpu",
        seed: int = 0,
        sample: Examples | Callable[[], Examples] | None = None,
        norm: float = 1.0,
    ) -> None:
        super().__init__(task, LocalConfig(), device, "loop", 1, seed, sample)
        self._sheet = sheet
        self._kind = kind
        self._norm = np.float32(norm)
        self._start = np.zeros(0, dtype=np.float32) if model is None else model
        self._names = tuple(dict.fromkeys(n for q in sheet.questions for n in q.columns_used))

    @property
    def dimension(self) -> int:
        """The number of weights that a client is sent: the model's, or none."""
        return self.model_dimension if self._kind == "evaluate" else 0

    @property
    def model_dimension(self) -> int:
        """The number of the model's weights."""
        return super().dimension

    @property
    def layout(self) -> FlatLayout:
        """One vector of answers."""
        size = self._sheet.dimension
        return FlatLayout(
            names=("answers",), shapes=((size,),), offsets=(0, size), dtypes=(torch.float32,)
        )

    @property
    def parts(self) -> Parts:
        """One vector, without blocks."""
        return Parts(dimension=self.layout.dimension)

    def initial_weights(self) -> NDArray[np.float32]:
        """(d,) what a client is sent: the model that it evaluates, or nothing."""
        return self._start

    def choose(
        self,
        weights: NDArray[np.float32],
        examples: Examples,
        client_rows: Sequence[NDArray[np.int64]],
        *,
        clip: float | None = None,
    ) -> Choice:
        """Many clients at once; there is nothing to measure."""
        return Choice(path="loop", chunk=_CLIENTS)

    def train(
        self,
        weights: NDArray[np.float32],
        examples: Examples,
        client_rows: Sequence[NDArray[np.int64]],
        seeds: Sequence[int],
        *,
        names: Sequence[object] | None = None,
        out: NDArray[np.float32] | None = None,
        visit: Visit | None = None,
    ) -> NDArray[np.float32]:
        """(K, D) what each client contributes; arguments as for `Trainer.train`.

        A seed decides how a client's vector is rounded to the grid, and nothing else.

        Raises:
            DataError: a column that is asked for is not there.
        """
        rows = self.rows(weights, examples, client_rows)
        found = vectors(self._sheet, rows, seeds)
        found *= self._norm
        if out is None:
            return found
        out[:] = found
        return out

    def clipped_sum(
        self,
        weights: NDArray[np.float32],
        examples: Examples,
        client_rows: Sequence[NDArray[np.int64]],
        seeds: Sequence[int],
        *,
        clip: float,
        names: Sequence[object] | None = None,
        visit: Visit | None = None,
    ) -> ClippedSum:
        """The same, summed; no vector is longer than its norm, so that only a lower `clip` changes
        one."""
        found = self.train(weights, examples, client_rows, seeds, names=names).astype(np.float64)
        norms = np.sqrt(np.square(found).sum(axis=1))
        total = (found * (clip / np.maximum(norms, clip))[:, None]).sum(axis=0)
        return ClippedSum(total=total, norms=norms.astype(np.float32))

    def rows(
        self,
        weights: NDArray[np.float32],
        examples: Examples,
        client_rows: Sequence[NDArray[np.int64]],
    ) -> Rows:
        """The clients' rows with the columns that are asked for.

        Raises:
            DataError: a column is not there.
        """
        sizes = [len(each) for each in client_rows]
        every = np.concatenate([np.asarray(each, dtype=np.int64) for each in client_rows])
        columns: dict[str, Column] = {}
        wanted = self._names
        if not len(every):  # of no rows no column is missing
            columns, wanted = {name: Column(values=np.zeros(0)) for name in wanted}, ()
        if self._kind == "evaluate" and wanted:
            columns = self._evaluated(weights, examples, every)
            wanted = tuple(name for name in wanted if name not in columns)
            if lacking := EVALUATED.intersection(wanted):  # no column of the data's stands for it
                raise DataError(
                    f"column {min(lacking)!r}: an evaluation of task {self._task.name} adds "
                    f"{', '.join(sorted(columns))}"
                )
        columns |= columns_of(self._task, examples, every, wanted)
        device = np.repeat(np.arange(len(sizes)), sizes)
        return Rows(columns=columns, device=device, devices=len(sizes))

    def check(self, examples: Examples) -> None:
        """Raise DataError unless every column that is asked for is there."""
        start = super().initial_weights() if self._kind == "evaluate" else self._start
        self.rows(start, examples, [np.arange(min(1, len(examples)))])

    def _evaluated(
        self, weights: NDArray[np.float32], examples: Examples, rows: NDArray[np.int64]
    ) -> dict[str, Column]:
        """Loss, metrics, predicted class and confidence, row by row."""
        self._layout.write(self._model, self._tensor(weights))
        was_training = self._model.training
        self._model.eval()
        parts: dict[str, list[NDArray[np.float64]]] = {}
        try:
            with torch.inference_mode():
                for start in range(0, len(rows), _AT_ONCE):
                    some = torch.from_numpy(rows[start : start + _AT_ONCE])
                    batch = self.conformed(examples.take(some).to(self._device))
                    for name, each in self._values(batch.x, batch.y).items():
                        parts.setdefault(name, []).append(each.double().cpu().numpy().reshape(-1))
        finally:
            self._model.train(was_training)
        return {name: Column(values=np.concatenate(each)) for name, each in parts.items()}

    def _values(self, x: Any, y: Any) -> dict[str, Any]:
        outputs = self._model(x)
        found = {"loss": self._task.loss(outputs, y), **self._task.metrics(outputs, y)}
        if outputs.ndim == 2 and not y.is_floating_point():
            chances = torch.softmax(outputs.double(), dim=1)
            found["confidence"], found["predicted"] = chances.max(dim=1)
        return found


def respondent_between(
    task: Task,
    questions: Sequence[Mapping[str, Any]],
    plan: PrivacyPlan,
    *,
    device: str,
    seed: int,
    sample: Examples | Callable[[], Examples] | None = None,
) -> Respondent:
    """What answers, between rounds of training, how good the model is; vectors are as long as an
    update, and within the same norm.

    Args:
        task: says what the rows mean, and has the model.
        questions: of the job, as `fedsys.queries.parse` reads them.
        plan: of the training job.
        device: where the model runs.
        seed: of the job.
        sample: gives lazy modules their shapes.

    Raises:
        ConfigError: the questions have more coordinates than an update.
    """
    return Respondent(
        task,
        Sheet.of(parse(questions), dimension=plan.dimension),
        kind="evaluate",
        device=device,
        seed=seed,
        sample=sample,
        norm=plan.clip,
    )
