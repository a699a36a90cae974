"""Opacus' optimizers with integer sums and noise from AES-CTR.

`DPOptimizer` clips, adds, noises, scales and steps. Two of these five are replaced here. Gradients
are added as integers, in units of C / 2^20, so the sum over physical batches is exact; and the
noise is round(sigma N) on that integer sum, from a stream keyed by the operating system's entropy.
It depends neither on torch's generator nor on the low bits of a floating-point sum, of which ghost
clipping alone has one: the sum within a physical batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from torch import Tensor, nn

from client.training.example.gradients import norms_of
from client.training.example_privacy import SLACK, UNITS
from fedsys.privacy.noise import RoundedGaussian
from fedsys.privacy.randomness import AesCtrStream

__all__ = ["GhostLatticeOptimizer", "LatticeOptimizer", "proximal_hook"]

# Ghost clipping also adds in float32: the measured error is at most 1.3e-5 C with 256 examples.
_GHOST_SLACK = 1.0 - 1e-4


class _OnLattice:
    """Mixin for an optimizer of Opacus: adds exact noise to its integer sum.

    Args:
        optimizer: Takes the step, e.g. ``torch.optim.SGD``.
        sampler: Draws the noise round(sigma N), in units of C / 2^20; its sigma is z 2^20.
        stream: Source of the noise.
        settings: Arguments of Opacus' optimizer.
    """

    params: list[nn.Parameter]
    max_grad_norm: float

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        sampler: RoundedGaussian,
        stream: AesCtrStream,
        **settings: Any,
    ) -> None:
        super().__init__(optimizer, **settings)  # type: ignore[call-arg]
        self._sampler, self._stream = sampler, stream

    def add_noise(self) -> None:
        """Set ``grad`` to ``summed_grad`` (int64 units) plus noise, in the gradient's own scale."""
        unit = self.max_grad_norm / UNITS
        for param in self.params:
            noise = torch.from_numpy(self._sampler.draw((param.numel(),), self._stream))
            noise = noise.view(param.shape)
            noisy = param.summed_grad.cpu() + noise  # type: ignore[attr-defined]
            param.grad = (noisy.double() * unit).to(param)
            param.summed_grad = None  # type: ignore[attr-defined]


class LatticeOptimizer(_OnLattice, DPOptimizer):  # type: ignore[misc]
    """Adds clipped gradients, each truncated to the lattice: the sum's sensitivity is C."""

    def clip_and_accumulate(self) -> None:
        """Adds the physical batch's clipped gradients to ``summed_grad``, in integer units."""
        params: list[nn.Parameter] = self.params
        each = torch.cat(
            [
                grads.reshape(len(grads), param.numel())
                for grads, param in zip(self.grad_samples, params, strict=True)
            ],
            dim=1,
        )
        norms = norms_of(each)
        # A gradient that is not finite counts as zero: a refusal would reveal its example.
        each[~torch.isfinite(norms)] = 0
        norms = torch.nan_to_num(norms, nan=0.0, posinf=0.0)
        factors = (self.max_grad_norm / norms.clamp_min(1e-30)).clamp_max(1.0)
        each *= (factors * (SLACK * UNITS / self.max_grad_norm)).to(each).unsqueeze(1)
        # Truncation towards zero cannot lengthen a gradient; float64 adds these integers exactly.
        total = each.trunc_().sum(0, dtype=torch.float64).to(torch.int64)
        for param, part in zip(
            params, torch.split(total, [p.numel() for p in params]), strict=True
        ):
            _add(param, part.view_as(param))


class GhostLatticeOptimizer(_OnLattice, DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """As `LatticeOptimizer`, but rounds the sum of a whole batch as ghost clipping returns it.

    No example's gradient is ever built. Physical batches are added in float64, and their sum S is
    rounded once, to the nearest point of the lattice. |rint(S + g) - rint(S)| <= |g| + sqrt(d)
    units: there are two rounding errors of at most 1/2 in each of d coordinates. So gradients are
    clipped to C less sqrt(d) units, and less 10^-4 C for the float32 sum within the one physical
    batch that holds the example: that error is measured, not proven.
    """

    def accumulate(self) -> None:
        """Adds the physical batch's sum to ``summed_grad``, in float64."""
        for param in self.params:
            _add(param, param.grad.double())  # type: ignore[union-attr]

    def add_noise(self) -> None:
        """As in the base, after the rounding."""
        room = _GHOST_SLACK * UNITS - math.sqrt(sum(param.numel() for param in self.params))
        for param in self.params:
            scaled = param.summed_grad * (room / self.max_grad_norm)  # type: ignore[attr-defined]
            param.summed_grad = scaled.round_().to(torch.int64)  # type: ignore[attr-defined]
        super().add_noise()


def proximal_hook(
    params: Sequence[nn.Parameter], start: Sequence[Tensor], weight: float
) -> Callable[[DPOptimizer], None]:
    """A step hook that adds FedProx's ``weight (w - w_global)`` after the noise was added."""

    def pull(_: DPOptimizer) -> None:
        for param, origin in zip(params, start, strict=True):
            if param.grad is not None:
                param.grad.add_(param.detach() - origin, alpha=weight)

    return pull


def _add(param: nn.Parameter, part: Tensor) -> None:
    already = param.summed_grad  # type: ignore[attr-defined]
    param.summed_grad = part if already is None else already + part  # type: ignore[attr-defined]
