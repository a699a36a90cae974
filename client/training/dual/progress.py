"""What the layers of one chunk of clients share: where training stands, and buffers.

A batch is (A B, ...): B examples of each of the A clients that still train, the longest-training
first. Layers without parameters need no twin: they treat every example alike.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training.dual.coefficients import Combination

__all__ = ["Cohort", "Room", "UnsupportedLayerError"]


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
        alone: the only client whose batch the model is fed now; None for all active ones.
        batch: B of the current step.
        past: Rows of history that each client has at the current step.
        rows: (total,) the step of each row of history.
        weights: of the start and of past gradients in each step's weights.
        anchor: A scalar that requires a gradient, so that layers fed with data are differentiated.
    """

    def __init__(
        self,
        *,
        widths: list[int],
        lengths: NDArray[np.int64],
        ragged: bool,
        weights: Combination,
        like: Tensor,
    ) -> None:
        self.clients = len(lengths)
        self.ragged = ragged
        self.weights = weights
        self.step = self.active = self.batch = self.past = 0
        self.alone: int | None = None
        self._widths, self._lengths, self._like = widths, lengths, like
        self._step_of_row = np.repeat(np.arange(len(widths)), widths)
        self._starts = [0, *itertools.accumulate(widths)]
        self.total = self._starts[-1]
        self.anchor = like.new_zeros((), requires_grad=True)
        self._rate: float | None = None
        self._now = like
        self._final: Tensor | None = None
        self._pairs: Tensor | None = None

    @property
    def fed(self) -> range:
        """The clients whose batch the model is fed now."""
        return range(self.active) if self.alone is None else range(self.alone, self.alone + 1)

    def begin(self, step: int, active: int) -> None:
        """`step` starts, with the first `active` clients."""
        self.step, self.active = step, active
        self.batch = self._widths[step]
        self.past = self._starts[step]
        self._rate = self.weights.rates[step]
        if step and self._rate is None:
            self._now = self._tensor(self.weights.past[step, self._step_of_row[: self.past]])

    def current(self, history: Tensor) -> Tensor:
        """(A, B, ...) the current step's rows of a history (K, total, ...)."""
        return history[: self.active, self.past : self.past + self.batch]

    def earlier(self, history: Tensor) -> Tensor:
        """(A, past, ...) the rows of a history (K, total, ...) before the current step."""
        return history[: self.active, : self.past]

    def combined(self, base: Tensor, gram: Tensor, history: Tensor, *, inside: bool) -> Tensor:
        """(A, B, n) alpha_t base + sum_s c_{t,s} gram_s history_s at the current step t.

        Args:
            base: (A, B, n) what W_0 gives.
            gram: (A, B, past).
            history: (K, total, n).
            inside: whether `base` may be written over.
        """
        share = float(self.weights.alpha[self.step])
        if not self.past:
            return base if share == 1.0 else base * share
        rate = self._rate
        if rate is None:
            gram, rate = gram * self._now, 1.0
        past = self.earlier(history)
        if inside:
            return base.baddbmm_(gram, past, beta=share, alpha=rate)
        return torch.baddbmm(base, gram, past, beta=share, alpha=rate)

    def pairs(self) -> Tensor:
        """(total, total) how often the product of two rows counts in a norm whose Gram matrix was
        kept up to each step's own rows: 2 for a row of an earlier step, 1 in the step, else 0."""
        if self._pairs is None:
            step = self._step_of_row
            weights = 2.0 * (step[:, None] > step) + 1.0 * (step[:, None] == step)
            self._pairs = self._tensor(weights)
        return self._pairs

    def final(self) -> Tensor:
        """(K, total) c_{T,s} of each row of history, T being where its client ended."""
        if self._final is None:
            self._final = self._tensor(self.weights.past[self._lengths][:, self._step_of_row])
        return self._final

    def start_share(self) -> Tensor:
        """(K,) alpha_T - 1: what remains of W_0 in a client's update."""
        return self._tensor(self.weights.alpha[self._lengths] - 1.0)

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(device=self._like.device, dtype=self._like.dtype)
