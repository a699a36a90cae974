"""DP-SGD from a graph of per-example gradients: `client.training.example` without torch.

Abadi et al. 2016 (arXiv:1607.00133), algorithm 1. With the same key it takes the batches and the
noise of the trainer that uses Opacus, and its updates differ by the rounding of gradients alone.

The graph sees one example at a time. So whatever it computes, what it returns depends on that
example and the weights, and clipping bounds it: the guarantee does not rest on the graph's being a
gradient. If it fails at an example, that example's gradient is zero. One of several examples could
copy one of them into the gradients of all the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.graphs.trainer import FromGraph
from client.training.example_privacy import SLACK, UNITS, ExamplePrivacy, poisson_batch
from client.training.local import LocalConfig
from fedsys.errors import ConfigError
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


class ExampleGraphTrainer(FromGraph):
    """Trains on one client's examples; the number of them is taken to be public.

    Of ``local``, ``epochs`` and ``batch_size`` are replaced by the privacy's steps and rate. The
    graph computes the gradient of one example.
    """

    kind = "example-gradients"

    def _check_batch(self, graph: TrainingGraph, local: LocalConfig) -> None:
        if graph.batch_size != 1:
            raise ConfigError(
                f"a graph of {graph.batch_size} examples a step, which could mix them; export one "
                f"with --batch-size 1"
            )

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
        weights, optimizer = self._start(start)
        if not len(rows):
            return weights - start
        stream = AesCtrStream(private.key)
        sampler = RoundedGaussian(float(privacy.noise_multiplier * UNITS))
        unit = privacy.clip / UNITS / (privacy.example_rate * len(rows))
        runs = 0
        for _ in range(privacy.steps):
            batch = rows[poisson_batch(stream, len(rows), privacy.example_rate)]
            total = np.zeros(dimension, dtype=np.int64)
            for row in batch:
                # A dropout mask may follow a fixed seed: privacy rests on batches and noise alone.
                inputs = self._inputs(weights, row[None], seed=0, step=runs)
                (gradient,), _loss = self._run(inputs)
                runs += 1
                total += _on_lattice(gradient, privacy.clip)
            sampler.add_sum(total, [stream])
            optimizer.step((total * unit).astype(np.float32))
        weights -= start
        return weights


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
