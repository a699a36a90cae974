"""What the layers of one chunk of clients share: where training stands, and buffers.

A batch is (A B, ...): B examples of each of the A clients that still train, the longest-training
first. Layers without parameters need no twin: they treat every example alike.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
