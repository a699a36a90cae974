"""Opacus' privacy engine with injected entropy: batches and noise come from AES-CTR streams.

Opacus' own secure mode needs ``torchcsprng``, which is no longer maintained; without it, batches
and noise follow torch's Mersenne Twister. `PrivacyEngine.make_private` assembles model, optimizer,
criterion and batches here as in Opacus; only the sources of randomness are replaced.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import PrivacyEngine
from opacus.optimizers import DPOptimizer
from torch import nn

from client.training.example.gradients import GhostModule
from client.training.example.optimizer import GhostLatticeOptimizer, LatticeOptimizer
from client.training.example_privacy import UNITS, poisson_batch
from fedsys.privacy.noise import RoundedGaussian
from fedsys.privacy.randomness import AesCtrStream

__all__ = ["EntropyEngine", "PoissonBatches"]


class PoissonBatches:
    """One client's batches by Poisson sampling: independently, each example is in each batch with
    the same probability. A batch is (n,) booleans, whether each row is in it.

    Args:
        rows: (n,) the client's rows of the pool.
        rate: The sampling probability.
        steps: The number of batches.
        stream: Source of the sampling coins.
    """

    def __init__(
        self, rows: NDArray[np.int64], *, rate: float, steps: int, stream: AesCtrStream
    ) -> None:
        self.dataset, self.rate = rows, rate
        self._steps, self._stream = steps, stream

    def __len__(self) -> int:
        """Batches per epoch on average, which is how Opacus reads it."""
        return max(1, round(1 / self.rate))

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        for _ in range(self._steps):
            yield poisson_batch(self._stream, len(self.dataset), self.rate)


class EntropyEngine(PrivacyEngine):  # type: ignore[misc]
    """`PrivacyEngine` whose optimizers draw exact noise from `stream`.

    Args:
        noise_multiplier: z; fixed for an engine, so that its sampler is prepared once.
    """

    def __init__(self, noise_multiplier: float) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Secure RNG turned off")  # it is not used
            super().__init__(accountant="prv")
        self._sampler = RoundedGaussian(float(noise_multiplier * UNITS))

    def _prepare_model(self, module: nn.Module, *, grad_sample_mode: str, **given: Any) -> Any:
        if grad_sample_mode != "ghost":
            return super()._prepare_model(module, grad_sample_mode=grad_sample_mode, **given)
        if isinstance(module, GhostModule):
            return module
        self.validate(module=module, optimizer=None, data_loader=None)
        known = ("batch_first", "max_grad_norm", "loss_reduction")
        return GhostModule(module, **{name: given[name] for name in known})

    def _prepare_data_loader(self, data_loader: PoissonBatches, **_: object) -> PoissonBatches:
        return data_loader

    def _prepare_optimizer(
        self,
        *,
        optimizer: torch.optim.Optimizer,
        grad_sample_mode: str,
        stream: AesCtrStream,
        examples: float,
        noise_multiplier: float,
        max_grad_norm: float,
        loss_reduction: str,
        **_: object,
    ) -> DPOptimizer:
        """As in the base class, with the optimizers of `client.training.example.optimizer`;
        `examples` is the expected batch size, unrounded."""
        kind = GhostLatticeOptimizer if grad_sample_mode == "ghost" else LatticeOptimizer
        return kind(
            optimizer,
            sampler=self._sampler,
            stream=stream,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=examples,
            loss_reduction=loss_reduction,
        )

    def _prepare_criterion(self, **given: Any) -> Any:
        known = ("module", "optimizer", "criterion", "loss_reduction")
        return super()._prepare_criterion(**{name: given[name] for name in known})
