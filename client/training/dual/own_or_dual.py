"""A linear layer of K clients, in whichever form is cheaper for their histories."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from client.training.dual.linear import DualLinear, KnownInputs
from client.training.dual.own_weights import OwnWeights, copies, plain
from client.training.dual.progress import Progress, UnsupportedLayerError
from client.training.local import LocalConfig

__all__ = ["ClientLinear"]


class ClientLinear(nn.Module):
    """A linear layer in dual form, or with each client's own weights where these are small.

    Per client and example, a step in dual form costs on average about total / 2 (in + out)
    multiplications, with `total` the rows of the whole history; with weights of its own it costs
    in out. The cheaper form is taken. A layer that is fed with data always takes the dual form,
    which knows its whole history beforehand.
    """

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.outputs, self.inputs = like.out_features, like.in_features
        self._dual, self._own = DualLinear(like), _OwnLinear()
        self._form: DualLinear | _OwnLinear = self._dual
        self._progress: Progress
        self._calls = -1

    def __setattr__(self, name: str, value: Any) -> None:
        # Skips nn.Module's search for parameters and submodules: there are none.
        object.__setattr__(self, name, value)

    def start(
        self,
        progress: Progress,
        local: LocalConfig,
        weight: Tensor,
        bias: Tensor | None,
        *,
        summing: bool = False,
        data: KnownInputs | None = None,
    ) -> None:
        """Start all clients from the same weights.

        Args:
            progress: where the training of the chunk stands.
            local: hyper-parameters.
            weight: (out, in) W_0.
            bias: (out,) b_0, or None.
            summing: whether norms and a sum will be asked for instead of single updates.
            data: the inputs of all steps, if they are known.
        """
        self._progress, self._calls = progress, -1
        history = progress.total * (self.inputs + self.outputs) // 2
        if data is None and self.inputs * self.outputs <= history:
            self._form = self._own
            self._own.start(progress, local, weight, bias)
        else:
            self._form = self._dual
            self._dual.start(progress, weight, bias, summing=summing, data=data)

    def forward(self, x: Tensor | None) -> Tensor:
        """(A B, in) to (A B, out); None means the data that the layer was started with."""
        outputs: Tensor = _ClientLinear.apply(x, self._progress.anchor, self)  # type: ignore[no-untyped-call]
        return outputs

    def output(self, x: Tensor | None) -> Tensor:
        """(A B, out) X W_t^T + b_t.

        Raises:
            UnsupportedLayerError: the input is not 2-dimensional, or the layer is used a second
                time in one forward pass.
        """
        if x is not None and x.dim() != 2:
            raise UnsupportedLayerError(f"a Linear layer is fed {x.dim() - 1}-dimensional examples")
        if self._calls == self._progress.step:
            raise UnsupportedLayerError("a Linear layer is used more than once in a forward pass")
        self._calls = self._progress.step
        return self._form.output(x).view(-1, self.outputs)

    def input_gradient(self, dy: Tensor, wanted: bool) -> Tensor | None:
        """(A B, in) dY W_t if wanted, else None; the step from dY (A B, out) is taken anyway."""
        dx = self._form.input_gradient(dy, wanted)
        return None if dx is None else dx.view(-1, self.inputs)

    def squared_norms(self) -> Tensor:
        """(K,) float64 the squared norm of each client's update, or NaN; see `DualLinear`."""
        return self._form.squared_norms()

    def write_sum(self, factors: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Write sum_k f_k update_k.

        Args:
            factors: (K,) f_k; 0 does not remove a client whose numbers are not finite.
            weight: (out, in), overwritten.
            bias: (out,), overwritten; or None.
        """
        self._form.write_sum(factors, weight, bias)

    def write_updates(self, weight: Tensor, bias: Tensor | None) -> None:
        """Write each client's W_T - W_0 to `weight` (K, out, in), b_T - b_0 to `bias` (K, out)."""
        self._form.write_updates(weight, bias)


class _OwnLinear(OwnWeights):
    """K weight matrices, stacked."""

    _progress: Progress
    _x: Tensor
    _rate: float | None

    def start(
        self, progress: Progress, local: LocalConfig, weight: Tensor, bias: Tensor | None
    ) -> None:
        self._progress, self._rate = progress, local.learning_rate if plain(local) else None
        own = [copies(each, progress.clients) for each in (weight, bias) if each is not None]
        self.own(local, (weight, bias), own)

    def output(self, x: Tensor | None) -> Tensor:
        """(A, B, out)."""
        if x is None:
            raise ValueError("weights of their own are not started with data")
        weight, *bias = self._active()
        self._x = x = x.view(len(weight), -1, weight.shape[2])
        if bias:
            return torch.bmm(x, weight.transpose(1, 2)).add_(bias[0].unsqueeze(1))
        return torch.bmm(x, weight.transpose(1, 2))

    def input_gradient(self, dy: Tensor, wanted: bool) -> Tensor | None:
        """(A, B, in)."""
        weight, *bias = self._active()
        dy = dy.view(len(weight), -1, weight.shape[1])
        dx = torch.bmm(dy, weight) if wanted else None
        if self._rate is not None:  # W -= eta dY^T X in one call: the gradient is never built
            weight.baddbmm_(dy.transpose(1, 2), self._x, alpha=-self._rate)
            if bias:
                bias[0].add_(dy.sum(1), alpha=-self._rate)
            return dx
        learnt = [torch.bmm(dy.transpose(1, 2), self._x)]
        if bias:
            learnt.append(dy.sum(1))
        self._stepper.step(learnt, len(weight))
        return dx

    def _active(self) -> list[Tensor]:
        active = self._progress.active
        if active == self._progress.clients:
            return self._params
        return [each[:active] for each in self._params]


class _ClientLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor | None, anchor: Tensor, layer: ClientLinear) -> Tensor:
        ctx.layer, ctx.wanted = layer, x is not None and x.requires_grad
        return layer.output(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        return ctx.layer.input_gradient(grads[0].contiguous(), ctx.wanted), None, None
