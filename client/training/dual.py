"""The dual path: linear layers in dual form, everything else once for all clients of the chunk.

Each Linear and Conv2d of the model is replaced by its twin of K clients (`dual_linear`,
`convolution`); the clients' examples then pass through the model as one long batch. That is right
for any model that treats the examples of a batch independently, which the self-check finds out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.training.batched import gather
from client.training.coefficients import combination
from client.training.cohort import Cohort, UnsupportedLayerError
from client.training.convolution import ClientConv2d
from client.training.dual_linear import DualLinear
from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.parameter_free import BitDropout, replacement, swap_relu_and_pool
from client.training.schedule import Schedule
from fedsys.tasks import Examples, Task, seeded

__all__ = ["DualPath", "pays"]


def pays(model: nn.Module, rows: int) -> bool:
    """Whether a history of so many rows a client is shorter than the widest layer is wide: then
    Gram matrices are smaller than the weights that they stand for."""
    widths = [each.in_features for each in model.modules() if isinstance(each, nn.Linear)]
    return rows <= max(widths, default=0)


class DualPath:
    """Trains K clients at once without building their linear weights.

    Args:
        task: For its loss.
        model: A model whose trainable parameters all belong to Linear and Conv2d layers, each
            used once; it is copied.
        local: Hyper-parameters; the optimizer must be SGD.

    Raises:
        UnsupportedLayerError: another layer has parameters, or another optimizer is asked for.
    """

    name = "dual"

    def __init__(self, task: Task, model: nn.Module, local: LocalConfig) -> None:
        if local.optimizer != "sgd":
            raise UnsupportedLayerError(f"optimizer {local.optimizer!r} has no dual form")
        self._task, self._local = task, local
        self._layout = FlatLayout.of(model)
        _check_trainable_once(model, self._layout)
        model = copy.deepcopy(model)
        self._linear: dict[str, DualLinear] = {}
        self._conv: dict[str, ClientConv2d] = {}
        self._dropouts: list[BitDropout] = []
        self._model = self._swap(model, "")
        swap_relu_and_pool(self._model)
        self._model.train()

    def _swap(self, module: nn.Module, prefix: str) -> nn.Module:
        if type(module) is nn.Linear:
            return self._linear.setdefault(prefix, DualLinear(module))
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
        """Each client's w_local - w_global into `out` (K, d); zeros where it has no examples."""
        if not schedule.steps:
            out.zero_()
            return
        self._train(start, examples, schedule, seeds)
        into = self._layout.views(out)
        for prefix, layer in self._layers():
            name = f"{prefix}." if prefix else ""
            layer.write_updates(into[f"{name}weight"], into.get(f"{name}bias"))

    def _layers(self) -> list[tuple[str, DualLinear | ClientConv2d]]:
        return [*self._linear.items(), *self._conv.items()]

    def _train(
        self, start: Tensor, examples: Examples, schedule: Schedule, seeds: Sequence[int]
    ) -> None:
        cohort = self._begin(start, schedule)
        seed = seeds[0] & 0xFFFFFFFFFFFFFFFF
        for number, dropout in enumerate(self._dropouts):
            dropout.reseed((seed << 16) + number)
        with seeded(seed):
            for number, step in enumerate(schedule.steps):
                cohort.begin(number, len(step.counts))
                x, y, weight = gather(examples, step, start.dtype)
                outputs = self._model(x.flatten(0, 1))
                losses = self._task.loss(outputs, y.flatten(0, 1))
                # The layers take their steps in the backward pass.
                torch.dot(losses, weight.flatten()).backward()  # type: ignore[no-untyped-call]

    def _begin(self, start: Tensor, schedule: Schedule) -> Cohort:
        alpha, combine = combination(self._local, len(schedule.steps))
        first = schedule.steps[0]
        cohort = Cohort(
            widths=[step.rows.shape[1] for step in schedule.steps],
            lengths=schedule.lengths,
            ragged=any(len(step.counts) < schedule.clients for step in schedule.steps),
            alpha=alpha,
            combine=combine,
            like=start,
        )
        cohort.begin(0, len(first.counts))
        views = self._layout.views(start)
        for prefix, linear in self._linear.items():
            name = f"{prefix}." if prefix else ""
            linear.start(cohort, views[f"{name}weight"], views.get(f"{name}bias"))
        for prefix, conv in self._conv.items():
            name = f"{prefix}." if prefix else ""
            conv.start(cohort, self._local, views[f"{name}weight"], views.get(f"{name}bias"))
        return cohort


def _check_trainable_once(model: nn.Module, layout: FlatLayout) -> None:
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name not in layout.names:
            raise UnsupportedLayerError(
                f"parameter {name!r} is frozen or shared with another layer"
            )
