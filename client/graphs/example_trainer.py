"""DP-SGD from a graph of per-example gradients: `client.training.example` without torch.

Abadi et al. 2016 (arXiv:1607.00133), algorithm 1. With the same key it takes the batches and the
noise of the trainer that uses Opacus, and its updates differ by the rounding of gradients alone.

The graph sees one example at a time. So whatever it computes, what it returns depends on that
example and the weights, and clipping bounds it: the guarantee does not rest on the graph's being a
gradient. One of several examples could copy one of them into the gradients of all the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.graphs.engine import Engine
from client.graphs.optimizer import FlatOptimizer
from client.graphs.trainer import check_examples, dropout_mask
from client.training.example_privacy import SLACK, UNITS, ExamplePrivacy, poisson_batch
from client.training.local import LocalConfig
from fedsys.errors import ConfigError, TrainingError
from fedsys.graphs import TrainingGraph
from fedsys.privacy.noise import RoundedGaussian
from fedsys.privacy.randomness import AesCtrStream

__all__ = ["ExampleGraphTrainer", "PrivateSteps"]


@dataclass(frozen=True, kw_only=True)
class PrivateSteps:
    """One local training with example-level privacy.

    Attributes:
        privacy: the guarantee.
        key: 32 fresh bytes, from which batches and noise are drawn.
    """

    privacy: ExamplePrivacy
    key: bytes = field(repr=False)


class ExampleGraphTrainer:
    """Trains on one client's examples; the number of them is taken to be public.

    Args:
        graph: computes the gradient of one example.
        engine: runs the graph.
        local: optimizer and its hyper-parameters; ``epochs`` and ``batch_size`` are replaced by
            the privacy's steps and rate.
        x: (M, ...) inputs, of the graph's dtype.
        y: (M, ...) targets, of the graph's dtype.

    Raises:
        ConfigError: graph and examples do not fit together.
    """

    def __init__(
        self,
        graph: TrainingGraph,
        engine: Engine,
        local: LocalConfig,
        x: NDArray[Any],
        y: NDArray[Any],
    ) -> None:
        if graph.kind != "example-gradients":
            raise ConfigError(f"a graph of kind {graph.kind}; each example's gradient is needed")
        if graph.batch_size != 1:
            raise ConfigError(
                f"a graph of {graph.batch_size} examples a step, which could mix them; export one "
                f"with --batch-size 1"
            )
        check_examples(graph, x, y)
        self._graph, self._engine, self._local = graph, engine, local
        self._x, self._y = x, y

    def update(
        self, start: NDArray[np.float32], rows: NDArray[np.int64], private: PrivateSteps
    ) -> NDArray[np.float32]:
        """(d,) w_local - w_global, differentially private in each of the rows.

        Args:
            start: (d,) the initial weights.
            rows: the rows of the examples to train on; without any, the update is zero.
            private: the guarantee, and the key of batches and noise.

        Raises:
            TrainingError: the weights do not fit the graph.
        """
        privacy, dimension = private.privacy, self._graph.dimension
        if start.shape != (dimension,):
            raise TrainingError(
                f"a weight vector of shape {start.shape} does not fit the graph of task "
                f"{self._graph.task}, which has {dimension} parameters"
            )
        weights = np.array(start, dtype=np.float32)
        if not len(rows):
            return weights - start
        optimizer = FlatOptimizer(self._local, start, weights)
        stream = AesCtrStream(private.key)
        sampler = RoundedGaussian(float(privacy.noise_multiplier * UNITS))
        unit = privacy.clip / UNITS / (privacy.example_rate * len(rows))
        runs = 0
        for _ in range(privacy.steps):
            batch = rows[poisson_batch(stream, len(rows), privacy.example_rate)]
            total = np.zeros(dimension, dtype=np.int64)
            for row in batch.tolist():
                (gradient,), _loss = self._engine.run(self._inputs(weights, row, runs))
                runs += 1
                total += _on_lattice(gradient, privacy.clip)
            sampler.add_sum(total, [stream])
            optimizer.step((total * unit).astype(np.float32))
        weights -= start
        return weights

    def _inputs(
        self, weights: NDArray[np.float32], row: int, number: int
    ) -> dict[str, NDArray[Any]]:
        inputs: dict[str, NDArray[Any]] = {
            "weights": weights,
            "x": self._x[row : row + 1],
            "y": self._y[row : row + 1],
        }
        # A dropout mask may follow a fixed seed: privacy rests on batches and noise alone.
        for mask, (name, type_, keep) in enumerate(self._graph.masks):
            inputs[name] = dropout_mask(type_, keep, seed=0, step=number, number=mask)
        return inputs


def _on_lattice(gradient: NDArray[np.float32], clip: float) -> NDArray[np.int64]:
    """(d,) integers of norm at most 2^20, for a gradient clipped to just below C.

    A gradient that is not finite counts as zero: a refusal would reveal its example. Truncation
    towards zero cannot lengthen a gradient.
    """
    wide = gradient.astype(np.float64)
    norm = math.sqrt(float(np.einsum("d,d->", wide, wide)))
    if not math.isfinite(norm):
        return np.zeros(len(gradient), dtype=np.int64)
    wide *= SLACK * UNITS / max(norm, clip)
    return np.trunc(wide, out=wide).astype(np.int64)
