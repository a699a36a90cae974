"""State that the layers of one chunk of clients share: the progress of training, and buffers.

A batch is (A B, ...): B examples of each of the A clients that still train, those with the most
steps first. Layers without parameters need no twin: they treat every example alike.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training.dual.coefficients import Combination

__all__ = ["Progress", "Room", "UnsupportedLayerError"]


class UnsupportedLayerError(Exception):
    """The path cannot train this model, or this use of a layer; the message says which."""


class Room:
    """Buffers that are reused for every chunk: fresh memory costs a fault per page."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor of dtype and device `like`, valid until `name` is taken again."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or len(held) < size or held.dtype != like.dtype:
            held = self._held[name] = like.new_empty(size)
        return held[:size].view(shape)


class Progress:
    """The progress of a chunk's training, which all of its layers share.

    The history of a client is one row per visited example: `total` rows, step after step.

    Attributes:
        clients: K, the chunk's clients.
        active: A, the clients that take part in the current step: the first A.
        alone: the only client whose batch the model is fed now; None if all active ones are.
        batch: B, the examples per client in the current step.
        past: rows of history before the current step, the same for every client.
        total: rows of history after the last step.
        step: t, the current step, from 0.
        ragged: whether some clients finish before the last step.
        weights: the coefficients alpha_t and c_{t,s}.
        anchor: a scalar that requires a gradient, so that autograd also visits layers whose inputs
            are data.
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
        """The clients whose examples the current batch holds."""
        return range(self.active) if self.alone is None else range(self.alone, self.alone + 1)

    def begin(self, step: int, active: int) -> None:
        """Begin `step`, in which the first `active` clients take part."""
        self.step, self.active = step, active
        self.batch = self._widths[step]
        self.past = self._starts[step]
        self._rate = self.weights.rates[step]
        if step and self._rate is None:
            self._now = self._tensor(self.weights.past[step, self._step_of_row[: self.past]])

    def current(self, history: Tensor) -> Tensor:
        """(A, B, ...) the current step's rows of a history (K, total, ...)."""
        return self._of_active(history.narrow(1, self.past, self.batch))

    def earlier(self, history: Tensor) -> Tensor:
        """(A, past, ...) the rows of a history (K, total, ...) before the current step."""
        return self._of_active(history.narrow(1, 0, self.past))

    def _of_active(self, rows: Tensor) -> Tensor:
        return rows if self.active == self.clients else rows[: self.active]

    def combined(self, base: Tensor, gram: Tensor, history: Tensor, *, inside: bool) -> Tensor:
        """(A, B, n) alpha_t base + sum_{s<t} c_{t,s} gram_s history_s at the current step t.

        Under plain SGD, c_{t,s} is the same for all s and scales the product as a whole; else each
        column of `gram` is scaled by its step's coefficient first.

        Args:
            base: (A, B, n) the product with W_0.
            gram: (A, B, past) the blocks gram_s side by side.
            history: (K, total, n) the blocks history_s, one below the other.
            inside: whether `base` may be overwritten.
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
        """(total, total) the multiplicity of a pair of rows in a squared norm.

        Entry (i, j) is 2 if j belongs to an earlier step than i, 1 if to the same step, else 0.
        The Gram matrix is filled only up to each step's own rows; by its symmetry, counting the
        lower blocks twice gives the sum over all pairs.
        """
        if self._pairs is None:
            step = self._step_of_row
            weights = 2.0 * (step[:, None] > step) + 1.0 * (step[:, None] == step)
            self._pairs = self._tensor(weights)
        return self._pairs

    def final(self) -> Tensor:
        """(K, total) c_{T,s} for each row of history, with T the client's number of steps."""
        if self._final is None:
            self._final = self._tensor(self.weights.past[self._lengths][:, self._step_of_row])
        return self._final

    def start_share(self) -> Tensor:
        """(K,) alpha_T - 1, the coefficient of W_0 in a client's update W_T - W_0."""
        return self._tensor(self.weights.alpha[self._lengths] - 1.0)

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(device=self._like.device, dtype=self._like.dtype)
