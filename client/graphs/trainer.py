"""A client's local training from a graph: `client.training.loop` without torch.

Batches are those of `client.training.schedule`; the optimizer uses torch's formulas. A batch that
is not full repeats its first row with weight 0. Dropout masks are drawn from a stream of the batch
seed, so that a round can be replayed; they differ from torch's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.graphs.engine import Engine
from client.graphs.optimizer import FlatOptimizer
from client.training.local import LocalConfig
from client.training.schedule import batches
from client.training.splitmix import state_of, words
from fedsys.errors import ConfigError, TrainingError
from fedsys.graphs import Kind, TensorType, TrainingGraph

__all__ = ["FromGraph", "GraphTrainer", "check_examples", "dropout_mask"]

_MASKS = 1 << 32
"""The first domain of dropout masks in the client's stream; all domains of epochs are below it."""
_MOST_MASKS = 256
_BITS = 24


def dropout_mask(
    type_: TensorType, keep: float, *, seed: int, step: int, number: int
) -> NDArray[np.bool_]:
    """One dropout mask: each element is kept with probability `keep`, rounded to 2^-24.

    Element i is kept if the top 24 bits of word i of the stream are below ``keep 2^24``.

    Args:
        type_: type of the graph's input.
        keep: probability of keeping an element.
        seed: seed of the client's batches.
        step: number of the local step, from 0.
        number: number of the mask in the graph, from 0.
    """
    domain = _MASKS + step * _MOST_MASKS + number
    state = state_of(np.array([seed & (2**64 - 1)], dtype=np.uint64), domain)
    drawn = words(state, type_.count)[0] >> np.uint64(64 - _BITS)
    mask: NDArray[np.bool_] = (drawn < np.uint64(round(keep * 2**_BITS))).reshape(type_.shape)
    return mask


def check_examples(graph: TrainingGraph, x: NDArray[Any], y: NDArray[Any]) -> None:
    """Raise ConfigError unless the graph takes these examples."""
    for name, array in (("x", x), ("y", y)):
        wanted = graph.inputs[name]
        if array.shape[1:] != wanted.shape[1:] or array.dtype != wanted.dtype:
            row = TensorType(array.dtype, array.shape[1:])
            expected = TensorType(wanted.dtype, wanted.shape[1:])
            raise ConfigError(
                f"the data's {name} has rows of {row}, but the graph of task {graph.task} takes "
                f"rows of {expected}"
            )
    if len(x) != len(y):
        raise ConfigError(f"the data have {len(x)} rows of x but {len(y)} of y; give one y per x")


class FromGraph:
    """What training from a batch's gradient and from each example's have in common.

    Args:
        graph: computes the gradient.
        engine: runs the graph.
        local: hyper-parameters.
        x: (M, ...) inputs, of the graph's dtype.
        y: (M, ...) targets, of the graph's dtype.

    Raises:
        ConfigError: graph, hyper-parameters and examples do not fit together.
    """

    kind: Kind
    """Of the graphs that it trains from."""
    failed: int
    """How many runs of the graph failed."""
    failure: str
    """Why the first of them did: for the owner alone."""

    def __init__(
        self,
        graph: TrainingGraph,
        engine: Engine,
        local: LocalConfig,
        x: NDArray[Any],
        y: NDArray[Any],
    ) -> None:
        if graph.kind != self.kind:
            raise ConfigError(f"a graph of kind {graph.kind}; one of kind {self.kind} is needed")
        check_examples(graph, x, y)
        self._check_batch(graph, local)
        self._graph, self._engine, self._local = graph, engine, local
        self._x, self._y = x, y
        self.failed = 0
        self.failure = ""

    def _check_batch(self, graph: TrainingGraph, local: LocalConfig) -> None:
        """Raise ConfigError unless the graph takes the examples of a step."""
        raise NotImplementedError

    def _start(self, start: NDArray[np.float32]) -> tuple[NDArray[np.float32], FlatOptimizer]:
        """(d,) a copy of the initial weights, and what changes it."""
        if start.shape != (self._graph.dimension,):
            raise TrainingError(
                f"a weight vector of shape {start.shape} does not fit the graph of task "
                f"{self._graph.task}, which has {self._graph.dimension} parameters"
            )
        weights = np.array(start, dtype=np.float32)
        return weights, FlatOptimizer(self._local, start, weights)

    def _inputs(
        self, weights: NDArray[np.float32], rows: NDArray[np.int64], *, seed: int, step: int
    ) -> dict[str, NDArray[Any]]:
        """The graph's inputs, but the examples' weights."""
        inputs = {"weights": weights, "x": self._x[rows], "y": self._y[rows]}
        for number, (name, type_, keep) in enumerate(self._graph.masks):
            inputs[name] = dropout_mask(type_, keep, seed=seed, step=step, number=number)
        return inputs

    def _run(self, inputs: dict[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Gradient and loss of one run of the graph, both zero if it fails.

        After vetting, what makes a run fail are numbers that the graph computed, such as an index
        outside its axis. Neither clipping nor noise hides a failure, so nobody but the owner is
        told: it counts as a gradient of zeros.
        """
        try:
            return self._engine.run(inputs)
        except Exception as error:  # whatever an engine raises
            self.failed += 1
            self.failure = self.failure or f"{type(error).__name__}: {error}"
            made = [np.zeros(each.shape, each.dtype) for each in self._graph.outputs.values()]
            return made[0], made[1]


class GraphTrainer(FromGraph):
    """Trains on one client's examples; ``local.batch_size`` is at most the graph's."""

    kind = "gradient"

    def _check_batch(self, graph: TrainingGraph, local: LocalConfig) -> None:
        if local.batch_size > graph.batch_size:
            raise ConfigError(
                f"local.batch_size = {local.batch_size}: the graph takes {graph.batch_size} "
                f"examples a step; export one with --batch-size {local.batch_size}"
            )

    def update(
        self, start: NDArray[np.float32], rows: NDArray[np.int64], seed: int
    ) -> tuple[NDArray[np.float32], list[float]]:
        """(d,) w_local - w_global, and the loss at each step.

        Args:
            start: (d,) the initial weights.
            rows: the rows of the examples to train on.
            seed: seed of the batches.

        Raises:
            TrainingError: the weights do not fit the graph.
        """
        weights, optimizer = self._start(start)
        losses = []
        for number, batch in enumerate(batches(rows, seed, self._local)):
            gradient, loss = self._run(self._batch(weights, batch, seed, number))
            losses.append(float(loss))
            optimizer.step(gradient)
        weights -= start
        return weights, losses

    def _batch(
        self, weights: NDArray[np.float32], rows: NDArray[np.int64], seed: int, step: int
    ) -> dict[str, NDArray[Any]]:
        size, real = self._graph.batch_size, len(rows)
        if real < size:
            rows = np.concatenate([rows, np.full(size - real, rows[0])])
        counts = np.zeros(size, dtype=np.float32)
        counts[:real] = 1 / real
        inputs = self._inputs(weights, rows, seed=seed, step=step)
        return {**inputs, "example_weights": counts}
