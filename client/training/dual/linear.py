"""A linear layer of K clients in dual form: their weights are never built."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.training.dual.products import linear, sum_of_outer
from client.training.dual.progress import Progress, Room

__all__ = ["DualLinear", "KnownInputs"]

_CANCELLED = 1e-3
"""Below this fraction of the bound that its terms could reach, a squared norm is not computed from
Gram matrices: float32 errors of about 1e-7 of that bound would then be 1e-4 of the square, close to
the 1e-4 of the norm that `fedsys.privacy.encoding.float_sums` allows for."""


@dataclass(frozen=True, kw_only=True)
class KnownInputs:
    """The inputs of all steps of a layer that is fed with data.

    Attributes:
        x: (K, total, in) each client's inputs, in the order of visits or in the client's own
            order; zeros in steps in which the client takes no part.
        visits: (K total,) for each visit, the row of `x` (K total, in); None if `x` is in the order
            of visits.
        visited: (K total,) the inverse permutation: for each row of `x`, its visit.
        grams: (K, total, total) X X^T in the order of visits, overwritten by the layer. None to
            compute the products step by step, which needs `x` in the order of visits.
    """

    x: Tensor
    visits: Tensor | None = None
    visited: Tensor | None = None
    grams: Tensor | None = None


class DualLinear:
    """A linear layer whose K weight matrices are never built.

    Let X_s (B, in) be a client's inputs in step s and G_s (B, out) the gradient of its loss with
    respect to the outputs. The weight gradient is g_s = G_s^T X_s, so by
    `client.training.dual.coefficients` W_t = alpha_t W_0 + sum_s c_{t,s} G_s^T X_s. Then

        X W_t^T = alpha_t X W_0^T + sum_{s<t} c_{t,s} (X X_s^T) G_s     (outputs),
        dY W_t  = alpha_t dY W_0  + sum_{s<t} c_{t,s} (dY G_s^T) X_s    (inputs' gradient).

    The product with W_0 is one for all clients; the others are with the small Gram matrices
    X X_s^T and dY G_s^T. In exact arithmetic both lines equal what each client's own W_t gives.

    A bias is one more column of W whose input is always 1. The bias trick: instead of appending a
    column of ones to X, 1 is added to each entry of the Gram matrix, since
    [X 1] [X_s 1]^T = X X_s^T + 1 1^T. Momentum, decay and FedProx treat b as a column of W, so the
    coefficients are the same, and alpha_t X W_0^T becomes alpha_t (X W_0^T + 1 b_0^T).

    A layer that is fed with data knows the inputs of all steps beforehand: a single product with
    W_0 serves all steps, and no inputs are copied into a history.
    """

    def __init__(self, like: nn.Linear) -> None:
        self.outputs, self.inputs = like.out_features, like.in_features
        self._weight: Tensor
        self._bias: Tensor | None
        self._progress: Progress
        self._history: Tensor
        self._visited: Tensor | None = None
        self._gradients: Tensor
        self._base: Tensor | None = None
        self._grams: Tensor | None = None
        self._scaled: Tensor | None = None
        self._known = False
        self._kept = 0
        self._room = Room()

    def start(
        self,
        progress: Progress,
        weight: Tensor,
        bias: Tensor | None,
        *,
        summing: bool = False,
        data: KnownInputs | None = None,
    ) -> None:
        """Start all clients from the same weights.

        Args:
            progress: where the training of the chunk stands.
            weight: (out, in) W_0.
            bias: (out,) b_0, or None.
            summing: whether norms and a sum will be asked for instead of single updates.
            data: the inputs of all steps, if they are known.
        """
        self._weight, self._bias, self._progress = weight, bias, progress
        rows = (progress.clients, progress.total)
        self._base = self._visited = self._scaled = None
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
        self._kept = 0
        if self._grams is not None:
            if bias is not None:
                self._grams += 1.0  # X X^T + 1 1^T, the Gram matrix of [X 1]
        elif summing and progress.total**2 <= self.inputs * self.outputs:
            self._grams = self._room.take("grams", (*rows, progress.total), weight).zero_()
        if progress.ragged:  # rows of clients that have finished are never written; they add zero
            self._gradients.zero_()
            if data is None:
                self._history.zero_()

    def output(self, x: Tensor | None) -> Tensor:
        """(A, B, out) X W_t^T + b_t for `x` (A B, in), or for the known data if `x` is None."""
        progress, fed = self._progress, self._base is not None
        self._fill(progress.past)
        own = progress.current(self._history)
        if x is not None:
            own.copy_(x.view(own.shape))
            base = functional.linear(x, self._weight, self._bias).view(*own.shape[:2], -1)
        elif self._base is not None:
            base = progress.current(self._base)
        gram = self._gram(own)
        return progress.combined(base, gram, self._gradients, inside=not fed).contiguous()

    def _gram(self, own: Tensor) -> Tensor:
        """(A, B, past) X X_s^T, plus 1 1^T with a bias, for all earlier steps s side by side.

        If norms will be asked for, the matrix is kept, with the current step's own X X^T. That
        fills the blocks s <= t of the whole Gram matrix, which is symmetric; see `Progress.pairs`.
        """
        progress = self._progress
        past = progress.past
        if self._grams is not None and self._known:
            return progress.current(self._grams)[..., :past]
        if self._grams is None and not past:
            return own[..., :0]
        until = past if self._grams is None else past + progress.batch
        gram = torch.bmm(own, self._history[: progress.active, :until].transpose(1, 2))
        if self._bias is not None:
            gram += 1.0  # the bias's column of ones, as in `start`
        if self._grams is not None:
            progress.current(self._grams)[..., :until] = gram
        return gram[..., :past]

    def input_gradient(self, dy: Tensor, wanted: bool) -> Tensor | None:
        """(A, B, in) dY W_t if wanted, else None; dY (A B, out) is kept as G_t either way."""
        progress = self._progress
        kept = progress.current(self._gradients)
        own = dy.view(kept.shape)
        kept.copy_(own)
        self._kept = progress.past + progress.batch
        if not wanted:
            return None
        dx = (dy @ self._weight).view(*own.shape[:2], -1)
        gram = own[..., :0]  # no bias here: its input, the constant 1, has no gradient
        if progress.past:
            gram = torch.bmm(own, progress.earlier(self._gradients).transpose(1, 2))
        return progress.combined(dx, gram, self._history, inside=True)

    def write_updates(self, weight: Tensor, bias: Tensor | None) -> None:
        """Write each client's W_T - W_0 into `weight` (K, out, in), b_T - b_0 into `bias` (K, out).

        W_T - W_0 = (alpha_T - 1) W_0 + sum_s c_{T,s} G_s^T X_s. The bias is the column of W whose
        inputs are ones: its sum is that of the rows of c_{T,s} G_s.
        """
        progress = self._progress
        scaled = self._like_history(self._updates_by_row())
        torch.bmm(scaled.transpose(1, 2), self._history, out=weight)
        share = progress.start_share()
        decayed = bool((share != 0).any())
        if decayed:
            weight += share[:, None, None] * self._weight
        if bias is not None and self._bias is not None:
            torch.sum(scaled, dim=1, out=bias)
            if decayed:
                bias += share[:, None] * self._bias

    def squared_norms(self) -> Tensor:
        """(K,) float64 |W_T - W_0|^2 + |b_T - b_0|^2, provided that alpha_T = 1 (no decay).

        Let x_i be the i-th row of a client's history and h_i = c_{T,s(i)} g_i its scaled output
        gradient, so that W_T - W_0 = sum_i h_i x_i^T. The Frobenius norm is then

            |W_T - W_0|^2 = sum_{i,j} <x_i, x_j> <h_i, h_j>,

        the sum over the elementwise product of two Gram matrices. With 1 added to <x_i, x_j>, it
        includes |sum_i h_i|^2 = |b_T - b_0|^2. If the history is so long that building the weights
        is cheaper, they are built.

        Each term is at most |x_i| |x_j| |h_i| |h_j| (Cauchy-Schwarz), and these bounds add up to
        (sum_i |x_i| |h_i|)^2. Where the terms cancel to less than `_CANCELLED` of that, rounding
        would show: the result is NaN, and the caller builds the updates instead.
        """
        scaled = self._updates_by_row()
        if self._grams is None:  # then the history is in the order of visits
            weight = torch.bmm(scaled.transpose(1, 2), self._history)
            squares = _squares(weight)
            return squares if self._bias is None else squares + _squares(scaled.sum(1))
        products = torch.bmm(scaled, scaled.transpose(1, 2)).mul_(self._grams)
        if not self._known:  # only the blocks s <= t were filled: count earlier steps twice
            products *= self._progress.pairs()
        squares = products.flatten(1).sum(1, dtype=torch.float64)
        lengths = torch.linalg.vector_norm(scaled, dim=2).double()
        lengths *= self._grams.diagonal(dim1=1, dim2=2).double().sqrt_()
        return torch.where(squares >= _CANCELLED * lengths.sum(1).square_(), squares, torch.nan)

    def write_sum(self, factors: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Write sum_k f_k (W_T - W_0)_k, one product over all clients' histories end to end.

        Args:
            factors: (K,) f_k; 0 does not remove a client whose numbers are not finite.
            weight: (out, in), overwritten.
            bias: (out,), overwritten; or None.
        """
        scaled = self._like_history(self._updates_by_row() * factors[:, None, None])
        scaled = scaled.view(-1, self.outputs)
        sum_of_outer(scaled, self._history.view(-1, self.inputs), weight)
        if bias is not None:
            torch.sum(scaled, dim=0, out=bias)

    def _updates_by_row(self) -> Tensor:
        """(K, total, out) c_{T,s} G_s in the order of visits, once training is over."""
        if self._scaled is None:
            self._fill(self._progress.total)
            self._scaled = self._gradients * self._progress.final().unsqueeze(-1)
        return self._scaled

    def _fill(self, until: int) -> None:
        """Let rows before `until` add zero that a step left unwritten, because autograd did not
        reach the layer in it."""
        if self._kept < until:
            self._gradients[:, self._kept : until] = 0
            if self._base is None:
                self._history[:, self._kept : until] = 0
            self._kept = until

    def _like_history(self, scaled: Tensor) -> Tensor:
        """(K, total, out) `scaled`, brought from the order of visits to that of the history."""
        if self._visited is None:
            return scaled
        return scaled.view(-1, self.outputs).index_select(0, self._visited).view(scaled.shape)


def _squares(rows: Tensor) -> Tensor:
    """(K,) sums of squares of (K, ...)."""
    norms: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return norms.double().square_()
