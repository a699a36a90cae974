"""Batch-first local training: K clients at once; on a device, K = 1.

>>> from fedsys.tasks import DataSource, load, split
>>> task = load("digits")
>>> data = task.clients(DataSource())
>>> trainer = Trainer(task, LocalConfig(learning_rate=0.5), path="batched", chunk=64)
>>> rows = split(data, "one-each", clients=None, seed=0)
>>> updates = trainer.train(
...     trainer.initial_weights(), data.train, [rows.indices_of(k) for k in (3, 5)], seeds=[1, 2]
... )
>>> updates.shape
(2, 650)
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.privatize.floats import clipped_sum_of
from client.training.autotune import Choice, best, candidates, measure, most_at_once, typical
from client.training.batched import BatchedPath
from client.training.carryover import refuse_carryover
from client.training.chunks import ChunkRunner, Clients
from client.training.device_memory import CudaMemory, clients_that_fit
from client.training.dual.path import DualPath, pays
from client.training.evaluation import evaluate
from client.training.flat import FlatLayout
from client.training.graph.path import GraphPath
from client.training.graph.resident import Resident
from client.training.local import LocalConfig
from client.training.loop import LoopPath
from client.training.procedure.loading import procedure_of
from client.training.procedure.path import ProcedurePath
from client.training.procedure.visit import Visit
from client.training.selfcheck import PathFactory, reason_to_refuse
from client.training.whole_metrics import whole_metrics
from fedsys.errors import ConfigError, TrainingError
from fedsys.model_state import StateDigest, arranged, digest_of
from fedsys.privacy.encoding.parts import Parts
from fedsys.tasks import Examples, Task
from fedsys.tasks.modelling import conformed, init_model

__all__ = ["ClippedSum", "Trainer"]

Weights = NDArray[np.float32]
Rows = NDArray[np.int64]

PATHS: dict[str, PathFactory] = {
    "graph": GraphPath,
    "dual": DualPath,
    "batched": BatchedPath,
    "loop": LoopPath,
}
MOST_ON_GPU = 512
_log = logging.getLogger(__name__)
_choices: dict[tuple[object, ...], Choice] = {}
_fitting: dict[tuple[object, ...], int] = {}


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """The result of `Trainer.clipped_sum`.

    Attributes:
        total: (d,) float64, the sum of the clipped updates.
        norms: (K,) float32, each update's norm before clipping; NaN if the update was not finite
            and added zeros.
    """

    total: NDArray[np.float64]
    norms: NDArray[np.float32]


class Trainer:
    """Trains clients of one task, and evaluates.

    Args:
        task: Model, loss and metrics.
        local: Local hyper-parameters.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``...
        path: ``"graph"``, ``"dual"``, ``"batched"``, ``"loop"``, or ``"auto"`` to measure and
            choose at the first call.
        chunk: Clients at once; None or 0 leaves it to the measurement.
        seed: Seed of the initial weights.
        sample: At least one example, which gives lazy modules their shapes.
        checked: Whether another trainer of this task found that the path trains as the loop does;
            path and chunk are then taken as they are.

    Raises:
        ConfigError: the path is unknown, or cannot train this model; the message says why.
        TrainingError: the model is not suited to federated training.
    """

    def __init__(
        self,
        task: Task,
        local: LocalConfig,
        device: str | torch.device = "cpu",
        path: str = "auto",
        chunk: int | None = None,
        seed: int = 0,
        sample: Examples | Callable[[], Examples] | None = None,
        checked: bool = False,
    ) -> None:
        if path not in (*PATHS, "auto"):
            raise ConfigError(f"engine.path = {path!r}: allowed are auto, {', '.join(PATHS)}")
        if chunk is not None and chunk < 0:
            raise ConfigError(f"engine.chunk = {chunk}: must not be negative")
        self._task, self._local, self._device = task, local, torch.device(device)
        self._asked_path, self._asked_chunk = path, chunk or 0
        self._model = init_model(task, seed, sample).to(self._device)
        _refuse_running_statistics(self._model)
        self._layout = FlatLayout.of(self._model)
        self._initial = self._layout.read(self._model)
        self._procedure = self._procedure_path(path)
        self._runner = ChunkRunner(task, self._model, local, PATHS)
        self._choice: Choice | None = None
        if checked and path != "auto" and chunk:
            self._choice = Choice(path=path, chunk=chunk)
        self._placed: tuple[Examples, Examples] | None = None

    @property
    def dimension(self) -> int:
        """d, the length of the flat weight vector."""
        return self._layout.dimension

    @property
    def task(self) -> Task:
        """What is trained."""
        return self._task

    @property
    def device(self) -> torch.device:
        """Where clients train."""
        return self._device

    @property
    def layout(self) -> FlatLayout:
        """Where each parameter lies in the flat vector."""
        return self._layout

    @property
    def parts(self) -> Parts:
        """What a client's row holds: its update, and the blocks of its procedure."""
        return Parts(dimension=self.dimension) if self._procedure is None else self._procedure.parts

    @property
    def has_procedure(self) -> bool:
        """Whether a local procedure trains the clients."""
        return self._procedure is not None

    @property
    def keeps_state(self) -> bool:
        """Whether that procedure may keep tensors of its clients: any but the plain one."""
        return self._procedure is not None and not self._procedure.stateless

    @property
    def choice(self) -> Choice | None:
        """The path and chunk in use; None before the first call."""
        return self._choice

    def conformed(self, examples: Examples) -> Examples:
        """`examples` with floating-point inputs in the model's dtype."""
        return conformed(self._model, examples)

    def initial_weights(self) -> Weights:
        """(d,) the weights of ``task.init_model(seed)``."""
        weights: Weights = self._initial.float().cpu().numpy()
        return weights

    def state_dict(self, weights: Weights) -> dict[str, Tensor]:
        """The model's ``state_dict`` with `weights`, on the CPU, as `fedsys.model_state` arranges
        it; raises StateError where no file could hold it."""
        flat = self._tensor(weights)
        self._layout.write(self._model, flat)
        return arranged(self._model.state_dict(), self._layout.views(flat))

    @property
    def frozen_sha256(self) -> str:
        """SHA-256 of what a ``state_dict`` holds besides the trained weights, and of its form."""
        return self._stored.frozen

    @property
    def freezes(self) -> bool:
        """Whether a ``state_dict`` holds numbers besides the trained weights."""
        return self._stored.numbers > self._layout.dimension

    @cached_property
    def _stored(self) -> StateDigest:
        weights = self._initial.float().cpu().numpy()
        return digest_of(self.state_dict(weights), self._layout.dimension)

    def evaluate(
        self, weights: Weights, examples: Examples, whole: Sequence[str] = ()
    ) -> dict[str, float]:
        """Mean loss and metrics of `weights` over `examples`, and the figures of all of them
        together that `whole` names; see `client.training.whole_metrics`."""
        self._layout.write(self._model, self._tensor(weights))
        placed = conformed(self._model, examples.to(self._device))
        return evaluate(self._task, self._model, placed, whole=whole_metrics(whole))

    def choose(
        self,
        weights: Weights,
        examples: Examples,
        client_rows: Sequence[Rows],
        *,
        clip: float | None = None,
    ) -> Choice:
        """The path and chunk for such clients, measured at the first call and then remembered.

        With `clip`, `clipped_sum` is measured, else `train`.
        """
        if self._procedure is not None:
            self._choice = Choice(path="loop", chunk=self._asked_chunk or 1)
        if self._choice is None:
            usual = sorted(client_rows, key=len)[len(client_rows) // 4 :]
            start, pool = self._tensor(weights), self._place(examples)
            self._choice = self._decide(start, pool, usual, clip)
            _log.info("local training: %s", self._choice)
        return self._choice

    def resident(self, examples: Examples) -> Resident:
        """`examples` on the device, and graphs of this model that train from them."""
        path = GraphPath(self._task, copy.deepcopy(self._model), self._local)
        return Resident(path, self._local, self._place(examples), self.dimension)

    def train(
        self,
        weights: Weights,
        examples: Examples,
        client_rows: Sequence[Rows],
        seeds: Sequence[int],
        *,
        names: Sequence[object] | None = None,
        out: Weights | None = None,
        visit: Visit | None = None,
    ) -> Weights:
        """Trains every client from the same weights.

        Args:
            weights: (d,) the clients' initial weights.
            examples: The pool of training examples.
            client_rows: Each client's rows of the pool; a client without rows gets a zero update.
            seeds: Each client's seed. Its batches are a pure function of it; its dropout masks
                also depend on path and chunk.
            names: The clients' names in errors; their positions by default.
            out: (K, width) float32 to write into; reusing one saves the cost of fresh memory.
            visit: What the round brings to a local procedure.

        Returns:
            (K, width) w_local - w_global, and behind it the blocks of a procedure that sends any
            (see `parts`). A client whose training diverged has NaN or infinity in its
            row, which is left to the privacy mechanism.

        Raises:
            TrainingError: training failed; the message names the client, the cause and the remedy.
        """
        shape = (len(client_rows), self.parts.width)
        if out is None:
            out = np.empty(shape, dtype=np.float32)
        elif out.shape != shape or out.dtype != np.float32:
            raise TrainingError(f"out is {out.dtype} {out.shape}; expected float32 {shape}")
        start, pool = self._tensor(weights), self._place(examples)
        if self._procedure is not None:
            called = names if names is not None else range(len(client_rows))
            self._procedure.train(start, pool, client_rows, seeds, called, visit or Visit(), out)
            return out
        for path, which, clients in self._chunks(weights, examples, client_rows, seeds, names):
            in_order = which == list(range(which[0], which[0] + len(which)))
            if in_order and self._device.type == "cpu" and start.dtype == torch.float32:
                into = torch.from_numpy(out[which[0] : which[0] + len(which)])
                self._runner.updates(path, start, pool, clients, into)
            else:
                trained = self._runner.updates(path, start, pool, clients)
                out[which] = trained.float().cpu().numpy()
        return out

    def clipped_sum(
        self,
        weights: Weights,
        examples: Examples,
        client_rows: Sequence[Rows],
        seeds: Sequence[int],
        *,
        clip: float,
        names: Sequence[object] | None = None,
        visit: Visit | None = None,
    ) -> ClippedSum:
        """Trains every client and adds the updates, each scaled down to norm `clip`, in floating
        point: for simulations that need no single update. Arguments and errors are as in `train`.
        """
        if not clip > 0:
            raise TrainingError(f"clip = {clip}: must be positive")
        if self._procedure is not None:
            rows = self.train(weights, examples, client_rows, seeds, names=names, visit=visit)
            made = torch.from_numpy(self.parts.assemble(rows, clip=clip))
            summed, found = clipped_sum_of(made, clip)
            return ClippedSum(total=summed.double().numpy(), norms=found.numpy())
        total: Tensor | None = None
        norms = np.zeros(len(client_rows), dtype=np.float32)
        start, pool = self._tensor(weights), self._place(examples)
        chunks = self._chunks(weights, examples, client_rows, seeds, names, clip=clip)
        for path, which, clients in chunks:
            part, own = self._runner.clipped_sum(path, start, pool, clients, clip)
            # A copy: `part` may be float64 already, and an inference tensor.
            total = part.to(torch.float64, copy=True) if total is None else total.add_(part)
            norms[which] = own.cpu().numpy()
        added = np.zeros(self.dimension) if total is None else total.cpu().numpy()
        return ClippedSum(total=added, norms=norms)

    def _chunks(
        self,
        weights: Weights,
        examples: Examples,
        client_rows: Sequence[Rows],
        seeds: Sequence[int],
        names: Sequence[object] | None,
        *,
        clip: float | None = None,
    ) -> Iterator[tuple[str, list[int], Clients]]:
        """The path, positions and clients of each chunk; clients with the most steps come first."""
        called = names if names is not None else range(len(client_rows))
        clients = Clients(client_rows, seeds, called)
        if not len(clients):
            return
        choice = self.choose(weights, examples, client_rows, clip=clip)
        order = self._longest_first(client_rows)
        for at in range(0, len(order), choice.chunk):
            which = order[at : at + choice.chunk]
            yield choice.path, which, clients.take(which)

    def _procedure_path(self, path: str) -> ProcedurePath | None:
        procedure = procedure_of(self._task, self._local)
        if procedure is None:
            return None
        if path not in ("auto", "loop"):
            raise ConfigError(
                f"engine.path = {path!r}: {procedure.name} trains clients one by one; set it to "
                f"'auto' or 'loop'"
            )
        return ProcedurePath(self._task, self._model, self._local, procedure)

    def _longest_first(self, rows: Sequence[Rows]) -> list[int]:
        lengths = np.array([self._local.steps(len(each)) for each in rows])
        order: list[int] = np.argsort(-lengths, kind="stable").tolist()
        return order

    def _decide(
        self, start: Tensor, pool: Examples, rows: Sequence[Rows], clip: float | None
    ) -> Choice:
        usable, refused = self._usable(pool, rows)
        if self._asked_chunk:
            tried = [(name, self._asked_chunk) for name in usable]
        elif self._device.type == "cuda":
            tried = [
                (name, 1 if name == "loop" else self._fitting(name, start, pool, rows))
                for name in usable
            ]
        else:
            most = most_at_once(self.dimension)
            tried = candidates(usable, len(rows), most)
        if len(tried) == 1:
            return Choice(path=tried[0][0], chunk=tried[0][1], refused=refused)
        key = (*self._signature(pool, rows, tried), clip is not None)
        if key not in _choices:
            rates = measure(
                tried,
                lambda path, clients: self._measured(path, clients, start, pool, rows, clip),
                self._clock(),
            )
            path, chunk = best(rates)
            _choices[key] = Choice(
                path=path, chunk=chunk, refused=refused, clients_per_second=rates
            )
        return _choices[key]

    def _usable(self, pool: Examples, rows: Sequence[Rows]) -> tuple[list[str], dict[str, str]]:
        """The paths worth measuring, and why others cannot be used."""
        refuse_carryover(self._task, self._model, self._local, pool)
        asked = [self._asked_path]
        if self._asked_path == "auto":
            # Graphs are for GPUs; without one, this is the batched path with more padding.
            asked = [name for name in PATHS if name != "graph" or self._device.type == "cuda"]
        usable: list[str] = []
        refused: dict[str, str] = {}
        for name in asked:
            why = None
            if name != "loop":
                why = reason_to_refuse(PATHS[name], self._task, self._model, self._local, pool)
            if why is not None:
                refused[name] = why
                continue
            usable.append(name)
            if name == "graph":
                break
            history = self._local.epochs * int(np.median([len(each) for each in rows]))
            if name == "dual" and self._device.type == "cpu" and pays(self._model, history):
                # It was always the fastest under this condition; not measuring saves a second.
                break
        if not usable:
            raise ConfigError(
                f"engine.path = {self._asked_path!r} cannot train task {self._task.name}: "
                f"{refused[self._asked_path]}; use path = 'auto' or 'loop'"
            )
        return usable, refused

    def _fitting(self, path: str, start: Tensor, pool: Examples, rows: Sequence[Rows]) -> int:
        """The number of clients that fit into the GPU at once."""

        def train(clients: int) -> None:
            many = (list(rows) * -(-clients // len(rows)))[:clients]
            runner = ChunkRunner(self._task, self._model, self._local, PATHS)
            some = [many[k] for k in self._longest_first(many)]
            numbers = range(len(some))
            runner.updates(path, start, pool, Clients(some, numbers, numbers))

        key = self._signature(pool, rows, [(path, 0)])
        if key not in _fitting:
            _fitting[key] = clients_that_fit(CudaMemory(self._device), train, MOST_ON_GPU)
        return _fitting[key]

    def _clock(self) -> Callable[[], float]:
        alone = self._device.type == "cpu" and torch.get_num_threads() == 1
        return time.process_time if alone else time.perf_counter

    def _measured(
        self,
        path: str,
        clients: int,
        start: Tensor,
        pool: Examples,
        rows: Sequence[Rows],
        clip: float | None,
    ) -> float:
        """Train up to `clients` clients; the amount of work, in clients of average size."""
        near = rows[typical([len(each) for each in rows], clients)]
        some = [near[k] for k in self._longest_first(near)]
        numbers = range(len(some))
        chosen = Clients(some, numbers, numbers)
        if clip is None:
            self._runner.updates(path, start, pool, chosen)
        else:
            self._runner.clipped_sum(path, start, pool, chosen, clip)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        average = sum(len(each) for each in rows) / len(rows)
        return sum(len(each) for each in some) / max(average, 1.0)

    def _signature(
        self, pool: Examples, rows: Sequence[Rows], tried: Sequence[tuple[str, int]]
    ) -> tuple[object, ...]:
        size = int(np.median([len(each) for each in rows])).bit_length()
        return (
            self._task.name,
            repr(self._model),
            self._local,
            str(self._device),
            torch.get_num_threads(),
            pool.form,
            size,
            tuple(tried),
        )

    def _tensor(self, weights: Weights) -> Tensor:
        flat = torch.from_numpy(np.array(weights, dtype=np.float32, copy=True))
        if flat.shape != (self.dimension,):
            raise TrainingError(
                f"a weight vector of shape {tuple(flat.shape)} does not fit the model of task "
                f"{self._task.name}, which has {self.dimension} parameters"
            )
        return flat.to(self._device, self._layout.dtype)

    def _place(self, examples: Examples) -> Examples:
        """`examples` on the device; the last pool is kept there."""
        if self._placed is None or self._placed[0] is not examples:
            self._placed = (examples, conformed(self._model, examples.to(self._device)))
        return self._placed[1]


def _refuse_running_statistics(model: nn.Module) -> None:
    model.train()  # what a frozen part keeps in evaluation mode stays there, and does not change
    for name, module in model.named_modules():
        if getattr(module, "track_running_stats", False) and module.training:
            raise TrainingError(
                f"the model's {type(module).__name__} {name!r} keeps running statistics, which "
                f"are not parameters: clients would not send them and evaluation would use the "
                f"initial ones; use GroupNorm, or track_running_stats=False, or keep a frozen one "
                f"in evaluation mode in its model's train()"
            )
