"""A linear layer of K clients in dual form: their weights are never built."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.training.cohort import Cohort, Room, UnsupportedLayerError

__all__ = ["DualLinear"]


class DualLinear(nn.Module):
    """A linear layer whose K weight matrices are never built.

    With g_s = G_s^T X_s (outputs' gradient, inputs), W_t = alpha_t W_0 + sum_s c_{t,s} G_s^T X_s,
    so X W_t^T = alpha_t X W_0^T + sum_s c_{t,s} (X X_s^T) G_s: one matrix product with W_0 that
    all clients share, and products with the small Gram matrix X X_s^T. The inputs' gradient
    expands alike. A bias is a column of ones appended to the inputs: 1 is added to the Gram.
    """

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.outputs, self.inputs = like.out_features, like.in_features
        self.biased = like.bias is not None
        self._weight: Tensor
        self._bias: Tensor | None
        self._cohort: Cohort
        self._history: Tensor
        self._gradients: Tensor
        self._room = Room()
        self._calls = -1

    def start(self, cohort: Cohort, weight: Tensor, bias: Tensor | None) -> None:
        """All clients have the weights W_0 = `weight` (out, in) and `bias` (out,)."""
        self._weight, self._bias, self._cohort, self._calls = weight, bias, cohort, -1
        rows = (cohort.clients, cohort.total)
        self._history = self._room.take("history", (*rows, self.inputs), weight)
        self._gradients = self._room.take("gradients", (*rows, self.outputs), weight)
        if cohort.ragged:
            self._history.zero_()
            self._gradients.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(A B, in) to (A B, out)."""
        if x.dim() != 2:
            raise UnsupportedLayerError(f"a Linear layer is fed {x.dim() - 1}-dimensional examples")
        if self._calls == self._cohort.step:
            raise UnsupportedLayerError("a Linear layer is used more than once in a forward pass")
        self._calls = self._cohort.step
        outputs: Tensor = _DualLinear.apply(x, self._cohort.anchor, self)  # type: ignore[no-untyped-call]
        return outputs

    def _own(self, rows: Tensor) -> Tensor:
        return rows.view(self._cohort.active, self._cohort.batch, -1)

    def _past(self, history: Tensor) -> Tensor:
        return history[: self._cohort.active, : self._cohort.past]

    def _record(self, history: Tensor, rows: Tensor) -> None:
        now = slice(self._cohort.past, self._cohort.past + self._cohort.batch)
        history[: self._cohort.active, now] = rows

    def output(self, x: Tensor) -> Tensor:
        """(A B, out) X W_t^T + b_t."""
        cohort = self._cohort
        share = float(cohort.alpha[cohort.step])
        own = self._own(x)
        self._record(self._history, own)
        y = functional.linear(x, self._weight, self._bias)
        if share != 1.0:
            y *= share
        if cohort.past:
            gram = torch.bmm(own, self._past(self._history).transpose(1, 2))
            if self._bias is not None:
                gram += 1.0
            gram *= cohort.now()
            self._own(y).baddbmm_(gram, self._past(self._gradients))
        return y

    def input_gradient(self, dy: Tensor, wanted: bool) -> Tensor | None:
        """(A B, in) dY W_t, where wanted; dY is kept in any case."""
        cohort = self._cohort
        own = self._own(dy)
        self._record(self._gradients, own)
        if not wanted:
            return None
        dx = dy @ self._weight
        share = float(cohort.alpha[cohort.step])
        if share != 1.0:
            dx *= share
        if cohort.past:
            gram = torch.bmm(own, self._past(self._gradients).transpose(1, 2))
            gram *= cohort.now()
            self._own(dx).baddbmm_(gram, self._past(self._history))
        return dx

    def write_updates(self, weight: Tensor, bias: Tensor | None) -> None:
        """Each client's W_T - W_0 into `weight` (K, out, in), b_T - b_0 into `bias` (K, out)."""
        cohort = self._cohort
        scaled = self._gradients * cohort.final().unsqueeze(-1)
        _product(scaled, self._history, weight)
        share = cohort.start_share()
        decayed = bool((share != 0).any())
        if decayed:
            weight += share[:, None, None] * self._weight
        if bias is not None and self._bias is not None:
            torch.sum(scaled, dim=1, out=bias)
            if decayed:
                bias += share[:, None] * self._bias


def _product(left: Tensor, right: Tensor, into: Tensor) -> None:
    """``into[k] = left[k].T @ right[k]``; `into` is (K, out, in), a slice of a wider matrix."""
    torch.bmm(left.transpose(1, 2), right, out=into)


class _DualLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: DualLinear) -> Tensor:
        ctx.layer, ctx.wanted = layer, x.requires_grad
        return layer.output(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        return ctx.layer.input_gradient(grads[0].contiguous(), ctx.wanted), None, None
