"""A linear layer of K clients in dual form: their weights are never built."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.training.dual.products import linear
from client.training.dual.progress import Cohort, Room

__all__ = ["DualLinear", "KnownInputs"]

_CANCELLED = 1e-3
"""Below this share of what its terms could reach, a squared norm is not taken of Gram matrices: the
error, some 1e-7 of that reach, would approach the 1e-4 that `encoding.float_sums` allows for."""


@dataclass(frozen=True, kw_only=True)
class KnownInputs:
    """The inputs of all steps of a layer that is fed with data.

    Attributes:
        x: (K, total, in) each client's rows in the order of its visits, or of its own; zeros where
            it does not take part.
        visits: (K total,) the row of `x` (K total, in) that is visited there; None: the same.
        visited: (K total,) when that row of `x` is visited: the inverse.
        grams: (K, total, total) X X^T in the order of visits; is written over. None: products a
            step instead, for which `x` is in that order too.
    """

    x: Tensor
    visits: Tensor | None = None
    visited: Tensor | None = None
    grams: Tensor | None = None


class DualLinear:
    """A linear layer whose K weight matrices are never built.

    With g_s = G_s^T X_s (outputs' gradient, inputs), W_t = alpha_t W_0 + sum_s c_{t,s} G_s^T X_s,
    so X W_t^T = alpha_t X W_0^T + sum_s c_{t,s} (X X_s^T) G_s: one matrix product with W_0 that
    all clients share, and products with the small Gram matrix X X_s^T. The inputs' gradient
    expands alike. A bias is a column of ones appended to the inputs: 1 is added to the Gram.

    A layer that is fed with data knows the inputs of all steps beforehand: one product with W_0
    serves them all, and nothing is copied into a history.
    """

    def __init__(self, like: nn.Linear) -> None:
        self.outputs, self.inputs = like.out_features, like.in_features
        self._weight: Tensor
        self._bias: Tensor | None
        self._cohort: Cohort
        self._history: Tensor
        self._visited: Tensor | None = None
        self._gradients: Tensor
        self._base: Tensor | None = None
        self._grams: Tensor | None = None
        self._known = False
        self._room = Room()

    def start(
        self,
        cohort: Cohort,
        weight: Tensor,
        bias: Tensor | None,
        *,
        summing: bool = False,
        data: KnownInputs | None = None,
    ) -> None:
        """All clients have the weights W_0 = `weight` (out, in) and `bias` (out,).

        Args:
            cohort: who trains.
            weight: of the start.
            bias: of the start.
            summing: whether norms and a sum will be asked for instead of single updates.
            data: the inputs of all steps, where they are known.
        """
        self._weight, self._bias, self._cohort = weight, bias, cohort
        rows = (cohort.clients, cohort.total)
        self._base = self._visited = None
        if data is None:
            self._history = self._room.take("history", (*rows, self.inputs), weight)
        else:
            self._history, self._visited = data.x, data.visited
            base = linear(data.x.view(-1, self.inputs), weight, bias)
            if data.visits is not None:
                base = base.index_select(0, data.visits)
            self._base = base.view(*rows, -1)
        self._gradients = self._room.take("gradients", (*rows, self.outputs), weight)
        self._grams = None if data is None else data.grams
        self._known = self._grams is not None
        if self._grams is not None:
            if bias is not None:
                self._grams += 1.0
        elif summing and cohort.total**2 <= self.inputs * self.outputs:
            self._grams = self._room.take("grams", (*rows, cohort.total), weight).zero_()
        if cohort.ragged:
            self._gradients.zero_()
            if data is None:
                self._history.zero_()

    def output(self, x: Tensor | None) -> Tensor:
        """(A, B, out) X W_t^T + b_t of `x` (A B, in); None stands for the known data."""
        cohort, fed = self._cohort, self._base is not None
        own = cohort.current(self._history)
        if x is not None:
            own.copy_(x.view(own.shape))
            base = functional.linear(x, self._weight, self._bias).view(*own.shape[:2], -1)
        elif self._base is not None:
            base = cohort.current(self._base)
        gram = self._gram(own)
        return cohort.combined(base, gram, self._gradients, inside=not fed).contiguous()

    def _gram(self, own: Tensor) -> Tensor:
        """(A, B, past) X X_s^T; kept, up to the current rows, where norms will be asked for."""
        cohort = self._cohort
        past = cohort.past
        if self._grams is not None and self._known:
            return cohort.current(self._grams)[..., :past]
        if self._grams is None and not past:
            return own[..., :0]
        until = past if self._grams is None else past + cohort.batch
        gram = torch.bmm(own, self._history[: cohort.active, :until].transpose(1, 2))
        if self._bias is not None:
            gram += 1.0
        if self._grams is not None:
            cohort.current(self._grams)[..., :until] = gram
        return gram[..., :past]

    def input_gradient(self, dy: Tensor, wanted: bool) -> Tensor | None:
        """(A, B, in) dY W_t, where wanted; dY (A B, out) is kept in any case."""
        cohort = self._cohort
        kept = cohort.current(self._gradients)
        own = dy.view(kept.shape)
        kept.copy_(own)
        if not wanted:
            return None
        dx = (dy @ self._weight).view(*own.shape[:2], -1)
        gram = own[..., :0]
        if cohort.past:
            gram = torch.bmm(own, cohort.earlier(self._gradients).transpose(1, 2))
        return cohort.combined(dx, gram, self._history, inside=True)

    def write_updates(self, weight: Tensor, bias: Tensor | None) -> None:
        """Each client's W_T - W_0 into `weight` (K, out, in), b_T - b_0 into `bias` (K, out)."""
        cohort = self._cohort
        scaled = self._like_history(self._scaled())
        torch.bmm(scaled.transpose(1, 2), self._history, out=weight)
        share = cohort.start_share()
        decayed = bool((share != 0).any())
        if decayed:
            weight += share[:, None, None] * self._weight
        if bias is not None and self._bias is not None:
            torch.sum(scaled, dim=1, out=bias)
            if decayed:
                bias += share[:, None] * self._bias

    def squared_norms(self) -> Tensor:
        """(K,) float64 |W_T - W_0|^2 + |b_T - b_0|^2, where nothing of W_0 decayed.

        |sum_s c_s G_s^T X_s|^2 = sum_{s,r} <X_s, X_r> <c_s G_s, c_r G_r>: small products, unless
        the history is longer than the weights are wide. NaN where the terms cancel so much that
        rounding would show.
        """
        scaled = self._scaled()
        if self._grams is None:  # then the history is in the order of visits
            weight = torch.bmm(scaled.transpose(1, 2), self._history)
            squares = _squares(weight)
            return squares if self._bias is None else squares + _squares(scaled.sum(1))
        products = torch.bmm(scaled, scaled.transpose(1, 2)).mul_(self._grams)
        if not self._known:
            products *= self._cohort.pairs()
        squares = products.flatten(1).sum(1, dtype=torch.float64)
        lengths = torch.linalg.vector_norm(scaled, dim=2).double()
        lengths *= self._grams.diagonal(dim1=1, dim2=2).double().sqrt_()
        return torch.where(squares >= _CANCELLED * lengths.sum(1).square_(), squares, torch.nan)

    def write_sum(self, factors: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """sum_k f_k (W_T - W_0)_k into `weight` (out, in), likewise into `bias` (out,).

        Args:
            factors: (K,); 0 does not remove a client whose numbers are not finite.
            weight: written.
            bias: written.
        """
        scaled = self._like_history(self._scaled() * factors[:, None, None])
        scaled = scaled.view(-1, self.outputs)
        history = self._history.view(-1, self.inputs)
        weight.copy_(linear(scaled.T, history.T))
        if bias is not None:
            torch.sum(scaled, dim=0, out=bias)

    def _scaled(self) -> Tensor:
        """(K, total, out) c_{T,s} G_s."""
        return self._gradients * self._cohort.final().unsqueeze(-1)

    def _like_history(self, scaled: Tensor) -> Tensor:
        """(K, total, out) `scaled`, of visits, in the order of the history's rows."""
        if self._visited is None:
            return scaled
        return scaled.view(-1, self.outputs).index_select(0, self._visited).view(scaled.shape)


def _squares(rows: Tensor) -> Tensor:
    """(K,) sums of squares of (K, ...)."""
    norms: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return norms.double().square_()
