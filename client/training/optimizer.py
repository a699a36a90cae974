"""SGD and Adam: one implementation for one client's tensors and for K clients' stacked tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from client.training.local import LocalConfig

__all__ = ["Stepper"]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Stepper:
    """Updates parameters in place, by the formulas of ``torch.optim.SGD`` and ``torch.optim.Adam``.

    Args:
        local: The hyper-parameters.
        start: w_global, one tensor per parameter; FedProx pulls towards it.
        params: The weights to train, each shaped as in `start`, or with a leading client axis.
    """

    def __init__(self, local: LocalConfig, start: Sequence[Tensor], params: Sequence[Tensor]):
        self._local, self._start, self._params = local, list(start), list(params)
        self._steps = 0
        moments = local.optimizer == "adam"
        states = 2 if moments else int(local.momentum > 0)
        self._state = [[torch.zeros_like(p) for p in params] for _ in range(states)]
        self._fuses = moments and _one_pass(self._params)
        self._taken = [torch.zeros((), dtype=torch.float32) for _ in params] if self._fuses else []

    def step(self, grads: Sequence[Tensor], active: int | None = None) -> None:
        """Take one step; with `active`, only the first `active` clients take part."""
        self._steps += 1
        if self._fuses:
            self._fused(grads, active)
            return
        for at, grad in enumerate(grads):
            param = self._params[at] if active is None else self._params[at][:active]
            state = [s[at] if active is None else s[at][:active] for s in self._state]
            self._update(param, self._direction(param, self._start[at], grad), state)

    def _fused(self, grads: Sequence[Tensor], active: int | None) -> None:
        """A step of Adam that reads and writes each weight once."""
        params, first, second = (
            [each[:active] for each in held] if active is not None else held
            for held in (self._params, *self._state)
        )
        moves = [
            _laid_out_as(param, self._direction(param, start, grad))
            for param, start, grad in zip(params, self._start, grads, strict=True)
        ]
        adam(
            params,
            moves,
            first,
            second,
            [],
            self._taken,
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=self._local.learning_rate,
            weight_decay=0.0,  # in the direction already
            eps=EPSILON,
            maximize=False,
        )

    def _direction(self, param: Tensor, start: Tensor, grad: Tensor) -> Tensor:
        if self._local.weight_decay:
            grad = grad.add(param, alpha=self._local.weight_decay)
        if self._local.proximal_mu:
            grad = grad.add(param - start, alpha=self._local.proximal_mu)
        return grad

    def _update(self, param: Tensor, grad: Tensor, state: list[Tensor]) -> None:
        rate = self._local.learning_rate
        if self._local.optimizer == "adam":
            first, second = state
            first.lerp_(grad, 1 - BETA1)
            second.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
            scale = (second / (1 - BETA2**self._steps)).sqrt_().add_(EPSILON)
            param.addcdiv_(first, scale, value=-rate / (1 - BETA1**self._steps))
        elif state:
            state[0].mul_(self._local.momentum).add_(grad)
            param.add_(state[0], alpha=-rate)
        else:
            param.add_(grad, alpha=-rate)


def _one_pass(params: Sequence[Tensor]) -> bool:
    """Whether torch's fused kernel may train these: it is used on a CPU only, and as it walks
    through memory without regard to strides, each tensor must fill its own memory."""
    return all(
        param.device.type == "cpu"
        and param.dtype in (torch.float32, torch.float64)
        and torch.empty_like(param).stride() == param.stride()
        for param in params
    )


def _laid_out_as(param: Tensor, grad: Tensor) -> Tensor:
    """`grad` with the strides of `param`, which the fused kernel assumes."""
    return grad if grad.stride() == param.stride() else torch.empty_like(param).copy_(grad)
