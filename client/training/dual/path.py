"""The dual path: linear layers in dual form, everything else batched over a chunk's clients.

Each Linear and Conv2d of the model is replaced by its twin for K clients (`own_or_dual`,
`convolution`); the clients' examples then pass through the model as one long batch. That is correct
for any model that treats the examples of a batch independently, which the self-check verifies.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.privatize.floats import clip_factors, clipped_sum_of
from client.training.dual.chain import Chain
from client.training.dual.coefficients import combination
from client.training.dual.convolution import ClientConv2d
from client.training.dual.gram_bank import GramBank
from client.training.dual.linear import KnownInputs
from client.training.dual.losses import loss_gradient
from client.training.dual.own_or_dual import ClientLinear
from client.training.dual.parameter_free import (
    BitDropout,
    ImageFlatten,
    replacement,
    swap_relu_and_pool,
)
from client.training.dual.progress import Progress, Room, UnsupportedLayerError
from client.training.dual.trunk import ChainedTrunk, TrunkAndHead, in_sequence
from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.schedule import Schedule
from client.training.step_tensors import examples_of, loss_weights
from fedsys.tasks import Examples, Task, seeded
from fedsys.tasks.classification import Rescale

__all__ = ["DualPath", "pays"]

Rows = NDArray[np.int64]

_AT_ONCE = 128
"""Rows of history per client up to which the Gram matrix of known inputs is one product: twice the
operations of one product per step, but fewer and larger calls."""


_CACHED = 1 << 19
"""Bytes of inputs that are gathered and rescaled at once, so that a core's cache holds them."""


def pays(model: nn.Module, rows: int) -> bool:
    """Whether `rows`, the length of a client's history, is at most the width of the widest layer:
    Gram matrices are then smaller than the weights that they replace."""
    widths = [each.in_features for each in model.modules() if isinstance(each, nn.Linear)]
    return rows <= max(widths, default=0)


class DualPath:
    """Trains K clients at once without building their linear weights.

    Args:
        task: provides the loss.
        model: a model whose trainable parameters all belong to Linear and Conv2d layers, each
            used once; it is copied.
        local: hyper-parameters; the optimizer must be SGD.

    Raises:
        UnsupportedLayerError: another layer has parameters, or the optimizer is not SGD.
    """

    name = "dual"

    def __init__(self, task: Task, model: nn.Module, local: LocalConfig) -> None:
        if local.optimizer != "sgd":
            raise UnsupportedLayerError(f"optimizer {local.optimizer!r} has no dual form")
        self._task, self._local = task, local
        self._layout = FlatLayout.of(model)
        if not self._layout.uniform:
            raise UnsupportedLayerError("parameters of several dtypes, or of 16 bits")
        _check_trainable_once(model, self._layout)
        model = copy.deepcopy(model)
        self._linear: dict[str, ClientLinear] = {}
        self._conv: dict[str, ClientConv2d] = {}
        self._dropouts: list[BitDropout] = []
        self._model = self._swap(model, "")
        swap_relu_and_pool(self._model)
        self._model.train()
        self._data = _DataLayers.of(self._model)
        self._cut = TrunkAndHead.of(self._model)
        self._chain = self._chained()
        self._room = Room()

    def _chained(self) -> Chain | ChainedTrunk | None:
        """The model as a chain, without the autograd engine; None if a layer has no rule."""
        if self._data is not None:
            return Chain.of([self._data.layer, *in_sequence(self._data.after)])
        return (
            Chain.of(in_sequence(self._model)) if self._cut is None else ChainedTrunk.of(self._cut)
        )

    def _swap(self, module: nn.Module, prefix: str) -> nn.Module:
        if type(module) is nn.Linear:
            return self._linear.setdefault(prefix, ClientLinear(module))
        if type(module) is nn.Conv2d:
            return self._conv.setdefault(prefix, ClientConv2d(module))
        if any(True for _ in module.parameters(recurse=False)):
            raise UnsupportedLayerError(f"{type(module).__name__} has parameters of its own")
        faster = replacement(module)
        if isinstance(faster, BitDropout):
            self._dropouts.append(faster)
        if faster is not None:
            return faster
        for name, child in list(module.named_children()):
            setattr(module, name, self._swap(child, f"{prefix}.{name}" if prefix else name))
        return module

    def updates(
        self,
        start: Tensor,
        examples: Examples,
        schedule: Schedule,
        seeds: Sequence[int],
        out: Tensor,
    ) -> None:
        """Write each client's w_local - w_global into `out` (K, d); zeros if it has no examples."""
        _refuse_several(examples)
        if not schedule.steps:
            out.zero_()
            return
        with self._without_autograd():
            self._train(start, examples, schedule, seeds)
            self._write(out)

    def clipped_sum(
        self,
        start: Tensor,
        examples: Examples,
        schedule: Schedule,
        seeds: Sequence[int],
        clip: float,
    ) -> tuple[Tensor, Tensor]:
        """(d,) the sum of updates, each scaled down to norm `clip`, and (K,) the norms; a client
        whose update is not finite adds zeros and has the norm NaN.

        With f_k = min(1, clip / |update_k|), the clients' linear updates dW_k are not built:
        sum_k f_k dW_k is one matrix product, and the norms come from Gram matrices. The updates are
        built after all under weight decay and FedProx, and for a chunk in which some norm is NaN or
        infinite: a factor of 0 does not remove such numbers from a product.
        """
        if not schedule.steps:
            return torch.zeros_like(start), start.new_zeros(schedule.clients)
        with self._without_autograd():
            summing = not (self._local.weight_decay or self._local.proximal_mu)
            progress = self._train(start, examples, schedule, seeds, summing=summing)
            summed = self._sum_of_layers(progress, start, clip) if summing else None
            if summed is None:
                updates = self._room.take("updates", (progress.clients, len(start)), start)
                self._write(updates)
                summed = clipped_sum_of(updates, clip)
            return summed

    def _sum_of_layers(
        self, progress: Progress, start: Tensor, clip: float
    ) -> tuple[Tensor, Tensor] | None:
        """The clipped sum, layer by layer; None if a norm is not finite."""
        squares = start.new_zeros(progress.clients, dtype=torch.float64)
        for _, layer in self._layers():
            squares += layer.squared_norms()
        if not bool(torch.isfinite(squares).all()):
            return None
        factors, norms = clip_factors(squares.sqrt_().to(start.dtype), clip)
        total = torch.empty_like(start)
        into = self._layout.views(total)
        for prefix, layer in self._layers():
            name = f"{prefix}." if prefix else ""
            layer.write_sum(factors, into[f"{name}weight"], into.get(f"{name}bias"))
        return total, norms

    def _without_autograd(self) -> AbstractContextManager[object]:
        """Inference mode if a chain does the backward pass: autograd's bookkeeping of tensors
        costs a twentieth of a small model's time."""
        return nullcontext() if self._chain is None else torch.inference_mode()

    def _write(self, out: Tensor) -> None:
        into = self._layout.views(out)
        for prefix, layer in self._layers():
            name = f"{prefix}." if prefix else ""
            layer.write_updates(into[f"{name}weight"], into.get(f"{name}bias"))

    def _layers(self) -> list[tuple[str, ClientLinear | ClientConv2d]]:
        return [*self._linear.items(), *self._conv.items()]

    def _train(
        self,
        start: Tensor,
        examples: Examples,
        schedule: Schedule,
        seeds: Sequence[int],
        *,
        summing: bool = False,
    ) -> Progress:
        rows = schedule.rows()
        data = None if self._data is None else self._data.inputs(examples, schedule, rows)
        progress = self._begin(start, schedule, data, summing)
        model: nn.Module = self._model
        if self._cut is not None:
            model, self._cut.progress = self._cut, progress
        if self._chain is not None:
            self._chain.reset()
        which = torch.from_numpy(rows).to(examples.device)
        held = examples.y.index_select(0, which.view(-1)).view(*which.shape, *examples.y.shape[1:])
        gradient_of = loss_gradient(self._task, held)
        even: dict[tuple[int, ...], Tensor] = {}
        seed = seeds[0] & 0xFFFFFFFFFFFFFFFF
        for number, dropout in enumerate(self._dropouts):
            dropout.reseed((seed << 16) + number)
        with seeded(seed):
            for number, step in enumerate(schedule.steps):
                progress.begin(number, len(step.counts))
                x = None if data is not None else examples_of(examples.x, step).flatten(0, 1)
                if self._chain is not None:
                    outputs = self._chain.forward(self._chain.prepared(x))
                elif self._data is not None:
                    outputs = self._data.after(self._data.layer(None))
                else:
                    outputs = model(x)
                targets = progress.current(held).flatten(0, 1)
                weight = even.get(step.rows.shape) if step.full else None
                if weight is None:
                    weight = loss_weights(step, start.dtype, start.device).flatten()
                    if step.full:
                        even[step.rows.shape] = weight
                # The layers take their steps in the backward pass.
                if self._chain is not None:
                    self._chain.backward(gradient_of(outputs, targets, weight))
                else:
                    torch.autograd.backward(self._task.loss(outputs, targets), weight)
        return progress

    def _begin(
        self, start: Tensor, schedule: Schedule, data: KnownInputs | None, summing: bool
    ) -> Progress:
        first = schedule.steps[0]
        progress = Progress(
            widths=[step.rows.shape[1] for step in schedule.steps],
            lengths=schedule.lengths,
            ragged=schedule.ragged,
            weights=combination(self._local, len(schedule.steps)),
            like=start,
        )
        progress.begin(0, len(first.counts))
        views = self._layout.views(start)
        fed = None if self._data is None else self._data.layer
        for prefix, linear in self._linear.items():
            name = f"{prefix}." if prefix else ""
            weight, bias = views[f"{name}weight"], views.get(f"{name}bias")
            known = data if linear is fed else None
            linear.start(progress, self._local, weight, bias, summing=summing, data=known)
        for prefix, conv in self._conv.items():
            name = f"{prefix}." if prefix else ""
            conv.start(progress, self._local, views[f"{name}weight"], views.get(f"{name}bias"))
        return progress


class _DataLayers:
    """A model that begins with a linear layer fed with data, cut in three.

    Attributes:
        layer: the linear layer.
        after: the layers that follow it.
    """

    def __init__(self, before: nn.Sequential, layer: ClientLinear, after: nn.Module) -> None:
        self._before, self.layer, self.after = before, layer, after
        self._rescale, self._flattens = _only_rescaling(before)
        self._bank, self._room = GramBank(), Room()

    @classmethod
    def of(cls, model: nn.Module) -> _DataLayers | None:
        """The cut model; None if a layer with parameters or dropout precedes the linear one."""
        layers = list(in_sequence(model))
        for at, layer in enumerate(layers):
            if isinstance(layer, ClientLinear):
                before, after = nn.Sequential(*layers[:at]), nn.Sequential(*layers[at + 1 :])
                return cls(before, layer, after)
            if any(isinstance(part, _NO_DATA) for part in layer.modules()):
                return None
        return None

    @torch.no_grad()
    def inputs(self, examples: Examples, schedule: Schedule, rows: Rows) -> KnownInputs:
        """The layer's inputs in all steps, whose `rows` are those of the schedule."""
        short = rows.shape[1] <= _AT_ONCE
        if short and not schedule.ragged and examples.x.device.type == "cpu":
            return self._in_own_order(examples, rows)
        x, grams = self._visited(examples, schedule, rows), None
        if short:
            grams = self._room.take("grams", (*rows.shape, rows.shape[1]), x)
            torch.bmm(x, x.transpose(1, 2), out=grams)
        return KnownInputs(x=x, grams=grams)

    def _in_own_order(self, examples: Examples, rows: Rows) -> KnownInputs:
        """Each client's inputs in the order of its rows, not of this round's visits, so that their
        Gram matrices can be reused in other rounds."""
        clients = np.arange(len(rows))[:, None]
        order = np.argsort(rows, axis=1, kind="stable")
        rows = rows[clients, order]
        visits = np.empty_like(order)
        visits[clients, order] = np.arange(rows.shape[1])
        x = self._made_of(examples, rows)
        grams = self._room.take("grams", (*rows.shape, rows.shape[1]), x)
        self._bank.take(x, examples.x, rows, visits, grams)
        first = clients * rows.shape[1]
        return KnownInputs(
            x=x,
            visits=torch.from_numpy((first + visits).reshape(-1)),
            visited=torch.from_numpy((first + order).reshape(-1)),
            grams=grams,
        )

    def _visited(self, examples: Examples, schedule: Schedule, rows: Rows) -> Tensor:
        """(K, total, in) inputs in the order of visits; zeros where a client takes no step."""
        inputs = self._made_of(examples, rows)
        at = 0
        for step in schedule.steps:
            active, width = step.rows.shape
            if active < schedule.clients:
                inputs[active:, at : at + width] = 0
            at += width
        return inputs

    def _made_of(self, examples: Examples, rows: Rows) -> Tensor:
        """(K, total, in) the linear layer's inputs for these rows (K, total) of the pool."""
        pool = examples.x
        which = torch.from_numpy(rows.reshape(-1)).to(pool.device)
        flat = self._flattens or pool.dim() == 2
        if self._rescale is not None and flat and pool.device.type == "cpu":
            width = math.prod(pool.shape[1:])
            found = self._room.take("inputs", (len(which), width), self._rescale.mean)
            block = max(1, _CACHED // max(1, width * found.element_size()))
            for at in range(0, len(which), block):
                some = pool.index_select(0, which[at : at + block])
                self._rescale(some.flatten(1), out=found[at : at + block])
        else:
            found = self._before(pool.index_select(0, which))
        if found.dim() != 2:
            raise UnsupportedLayerError(f"a Linear layer is fed {found.dim() - 1}-dimensional rows")
        return found.view(*rows.shape, -1)


def _only_rescaling(before: nn.Sequential) -> tuple[Rescale | None, bool]:
    """The rescaling layer, if it leads and nothing but flattening follows; whether that is so."""
    first, *others = [*before] or [None]
    if type(first) is not Rescale or not all(type(each) is ImageFlatten for each in others):
        return None, False
    return first, bool(others)


_NO_DATA = (ClientLinear, ClientConv2d, BitDropout, nn.modules.dropout._DropoutNd)


def _refuse_several(examples: Examples) -> None:
    if not examples.plain:
        raise UnsupportedLayerError("inputs or targets of several tensors")


def _check_trainable_once(model: nn.Module, layout: FlatLayout) -> None:
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name not in layout.names:
            raise UnsupportedLayerError(
                f"parameter {name!r} is frozen or shared with another layer"
            )
