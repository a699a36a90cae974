"""A `Trainer` whose updates are themselves differentially private in each example."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from client.training.example.privacy import ExamplePrivacy, ExamplePrivateTrainer
from client.training.local import LocalConfig
from client.training.procedure.visit import Visit
from client.training.trainer import ClippedSum, Trainer
from fedsys.errors import ConfigError
from fedsys.privacy.randomness import Entropy
from fedsys.tasks import Examples, Task

__all__ = ["ExampleTrainer"]


class ExampleTrainer(Trainer):
    """Evaluates like its base; trains by DP-SGD with batches and noise from `entropy`.

    Args:
        task: model, loss and metrics.
        local: optimizer and its hyper-parameters.
        privacy: what each client guarantees to its examples.
        device: where gradients are computed.
        seed: seed of the initial weights.
        entropy: source of batches and noise; the seeds given to `train` are not used.
        sample: at least one example, which gives lazy modules their shapes.
    """

    def __init__(
        self,
        task: Task,
        local: LocalConfig,
        privacy: ExamplePrivacy,
        device: str | torch.device = "cpu",
        *,
        seed: int = 0,
        entropy: Entropy = os.urandom,
        sample: Examples | None = None,
    ) -> None:
        super().__init__(task, local, device, "loop", 1, seed, sample)
        if self.has_procedure:
            raise ConfigError(
                "privacy.mechanism = 'example-gaussian' trains by DP-SGD itself: leave "
                "local.procedure, schedules, local.gradient_clip and other optimizers out"
            )
        self._private = ExamplePrivateTrainer(task, local, privacy, device, seed, sample=sample)
        self._entropy = entropy

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
        """(K, d) w_local - w_global, each differentially private in the client's examples."""
        updates = self._private.train(weights, examples, client_rows, self._entropy, names=names)
        if out is None:
            return updates
        out[:] = updates
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
        """Not available: each client sends its own integer vector.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("mechanism 'example-gaussian' has no protocol 'float'; use 'ideal'")
