"""Stacked weights of K clients, each trained by its client's own steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from client.training.local import LocalConfig
from client.training.optimizer import Stepper

__all__ = ["OwnWeights", "copies", "plain"]


class OwnWeights:
    """A weight (K, ...) and, where the layer has one, a bias (K, out)."""

    _start: list[Tensor]
    _params: list[Tensor]
    _stepper: Stepper

    def own(self, local: LocalConfig, start: Sequence[Tensor | None], params: list[Tensor]) -> None:
        """Train `params`, each client's copies of `start` (weight, bias or None)."""
        self._start = [each for each in start if each is not None]
        self._params = params
        self._stepper = Stepper(local, self._start, params)

    def squared_norms(self) -> Tensor:
        """(K,) float64 the squared norm of each client's update."""
        total = self._params[0].new_zeros(len(self._params[0]), dtype=torch.float64)
        for end, start in zip(self._params, self._start, strict=True):
            total += torch.linalg.vector_norm((end - start).flatten(1), dim=1).double().square_()
        return total

    def write_sum(self, factors: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Write sum_k f_k update_k into `weight` (...) and `bias` (out,); `factors` is (K,)."""
        for into, end, start in zip([weight, bias], self._params, self._start, strict=False):
            if into is not None:
                into.copy_((factors @ (end - start).flatten(1)).view(into.shape))

    def write_updates(self, weight: Tensor, bias: Tensor | None) -> None:
        """Write each client's update into `weight` (K, ...) and `bias` (K, out)."""
        for into, end, start in zip([weight, bias], self._params, self._start, strict=False):
            if into is not None:
                torch.sub(end, start, out=into)


def copies(weight: Tensor, clients: int) -> Tensor:
    """(K, ...) contiguous copies; never a view of `weight`, not even for a single client."""
    return weight.expand(clients, *weight.shape).clone(memory_format=torch.contiguous_format)


def plain(local: LocalConfig) -> bool:
    """Whether a step is just w -= learning_rate * gradient."""
    other = local.momentum or local.weight_decay or local.proximal_mu
    return local.optimizer == "sgd" and not other
