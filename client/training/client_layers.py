"""Layers that hold the weights of K clients, for inputs in which the clients follow one another.

A batch is (A B, ...): B examples of each of the A clients that still train, the longest-training
first. Layers without parameters need no twin: they treat every example alike.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from client.training.local import LocalConfig
from client.training.optimizer import Stepper

__all__ = ["ClientConv2d", "Cohort", "DualLinear", "Room", "UnsupportedLayerError"]


class UnsupportedLayerError(Exception):
    """A model, or a use of a layer, that this path cannot carry; the message says which."""


class Room:
    """Buffers that are used again for every chunk: fresh memory costs a page fault a page."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor, valid until `name` is taken again."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or len(held) < size or held.dtype != like.dtype:
            held = self._held[name] = like.new_empty(size)
        return held[:size].view(shape)


class Cohort:
    """What all layers of a chunk share: where training stands.

    Attributes:
        clients: K.
        active: A, how many of them take part in the current step.
        batch: B of the current step.
        past: Rows of history that each client has at the current step.
        rows: (total,) the step of each row of history.
        alpha: (steps + 1,) and
        combine: (steps + 1, steps): see `coefficients.combination`.
        anchor: A scalar that requires a gradient, so that layers fed with data are differentiated.
    """

    def __init__(
        self,
        *,
        widths: list[int],
        lengths: NDArray[np.int64],
        ragged: bool,
        alpha: NDArray[np.float64],
        combine: NDArray[np.float64],
        like: Tensor,
    ) -> None:
        self.clients = len(lengths)
        self.ragged = ragged
        self.alpha, self.combine = alpha, combine
        self.step = self.active = self.batch = self.past = 0
        self._widths, self._lengths, self._like = widths, lengths, like
        self._step_of_row = np.repeat(np.arange(len(widths)), widths)
        self.total = sum(widths)
        self.anchor = like.new_zeros((), requires_grad=True)
        self._now: Tensor | None = None

    def begin(self, step: int, active: int) -> None:
        """`step` starts, with the first `active` clients."""
        self.step, self.active = step, active
        self.batch = self._widths[step]
        self.past = sum(self._widths[:step])
        self._now = None

    def now(self) -> Tensor:
        """(past,) c_{t,s} of each row of history, for the current step t."""
        if self._now is None:
            self._now = self._tensor(self.combine[self.step, self._step_of_row[: self.past]])
        return self._now

    def final(self) -> Tensor:
        """(K, total) c_{T,s} of each row of history, T being where its client ended."""
        return self._tensor(self.combine[self._lengths][:, self._step_of_row])

    def start_share(self) -> Tensor:
        """(K,) alpha_T - 1: what remains of W_0 in a client's update."""
        return self._tensor(self.alpha[self._lengths] - 1.0)

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(device=self._like.device, dtype=self._like.dtype)


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

    def squared_norms(self) -> Tensor:
        """(K,) ||W_T - W_0||^2 + ||b_T - b_0||^2, from Gram matrices; needs alpha_T = 1."""
        scaled = self._gradients * self._cohort.final().unsqueeze(-1)
        gram = torch.bmm(self._history, self._history.transpose(1, 2))
        if self._bias is not None:
            gram += 1.0
        return (gram * torch.bmm(scaled, scaled.transpose(1, 2))).sum((1, 2))

    def add_weighted_sum(self, factors: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """sum_k factors_k (W_T - W_0) onto `weight` (out, in): one matrix product."""
        scaled = self._gradients * (self._cohort.final() * factors[:, None]).unsqueeze(-1)
        rows = scaled.view(-1, self.outputs)
        weight.addmm_(rows.T, self._history.view(-1, self.inputs))
        if bias is not None and self._bias is not None:
            bias += rows.sum(0)


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


class ClientConv2d(nn.Module):
    """A convolution with each client's own weights, explicitly."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        if like.padding_mode != "zeros" or isinstance(like.padding, str) or like.groups != 1:
            raise UnsupportedLayerError(
                f"Conv2d with padding {like.padding!r}, padding_mode {like.padding_mode!r}, "
                f"groups {like.groups}"
            )
        self._geometry = (like.stride, like.padding, like.dilation)
        self._cohort: Cohort
        self.parameters_of_clients: list[Tensor]
        self._stepper: Stepper

    def start(
        self, cohort: Cohort, local: LocalConfig, weight: Tensor, bias: Tensor | None
    ) -> None:
        """All clients have the weights `weight` (out, in, h, w) and `bias` (out,)."""
        self._cohort = cohort
        self._start = [weight] if bias is None else [weight, bias]
        self.parameters_of_clients = [
            each.expand(cohort.clients, *each.shape).clone() for each in self._start
        ]
        self._stepper = Stepper(local, self._start, self.parameters_of_clients)

    def begin_step(self) -> list[Tensor]:
        """The active clients' weights as leaves, whose gradients `end_step` takes."""
        self._leaves = [
            each[: self._cohort.active].detach().requires_grad_()
            for each in self.parameters_of_clients
        ]
        return self._leaves

    def end_step(self, grads: list[Tensor]) -> None:
        """One optimizer step."""
        self._stepper.step(grads, self._cohort.active)

    def forward(self, x: Tensor) -> Tensor:
        """(A B, in, H, W) to (A B, out, H', W')."""
        clients, batch = self._cohort.active, self._cohort.batch
        weight, *bias = self._leaves
        pieces = [
            functional.conv2d(own, weight[k], bias[0][k] if bias else None, *self._geometry)
            for k, own in enumerate(x.view(clients, batch, *x.shape[1:]).unbind(0))
        ]
        return torch.cat(pieces)

    def write_updates(self, weight: Tensor, bias: Tensor | None) -> None:
        """Each client's update into `weight` (K, out, in, h, w) and `bias` (K, out)."""
        for into, end, start in zip(
            [weight, bias], self.parameters_of_clients, self._start, strict=False
        ):
            if into is not None:
                torch.sub(end, start, out=into)

    def squared_norms(self) -> Tensor:
        """(K,) the squared norm of each client's update."""
        norms = [
            (end - start).flatten(1).square().sum(1)
            for end, start in zip(self.parameters_of_clients, self._start, strict=True)
        ]
        return torch.stack(norms).sum(0)

    def add_weighted_sum(self, factors: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """sum_k factors_k times client k's update, onto `weight` and `bias`."""
        for into, end, start in zip(
            [weight, bias], self.parameters_of_clients, self._start, strict=False
        ):
            if into is not None:
                into += torch.tensordot(factors, end - start, dims=1)
