"""Whether a graph computes what torch computes, on full and on padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedsys.graphs import Interpreter, Vetted
from fedsys.tasks.base import Examples, Task
from fedsys.tasks.export.lowering import UnsupportedError
from fedsys.tasks.export.tracing import plain_kernels, trainable

__all__ = ["ReplayedDropout", "check"]

aten = torch.ops.aten
_CLOSE, _TINY = 1e-4, 1e-7
"""The most that a gradient may differ, relative to its norm: about 1,000 units of float32's last
place. A formula that is wrong, or a batch whose examples mix, differs by far more."""
_TRIES = 3
"""Batches of each size. Where two elements of a pool's window, or an activation and its kink, agree
to the last place, torch and numpy may choose differently; a graph that is wrong differs on all."""


class ReplayedDropout(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """In it, dropout takes the masks given, in the order in which it asks for them.

    Args:
        masks: truth values; the first rows of each where fewer are asked for.
    """

    def __init__(self, masks: Sequence[NDArray[np.bool_]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._waiting = iter(masks)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Answers draws; passes everything else on."""
        if func is aten.bernoulli_.float:
            return args[0].copy_(self._next(args[0]))
        if func is aten.native_dropout.default:
            mask = self._next(args[0])
            return args[0] * mask * (1 / (1 - args[1])), mask
        return func(*args, **(kwargs or {}))

    def _next(self, like: Tensor) -> Tensor:
        mask = torch.from_numpy(next(self._waiting)[: len(like)])
        if mask.shape != like.shape:
            raise UnsupportedError(
                f"dropout of {tuple(like.shape)}, where the graph has {tuple(mask.shape)}: masks "
                f"must have a row for each example"
            )
        return mask


def check(task: Task, model: nn.Module, vetted: Vetted, examples: Examples) -> None:
    """Compare a graph with torch at weights that are not the initial ones.

    A padded batch is filled with *other* examples of weight 0: a model that mixes the examples of
    a batch gives another gradient for it.

    Args:
        task: for its loss.
        model: in training mode; its weights are changed.
        vetted: the graph.
        examples: to take batches from.

    Raises:
        UnsupportedError: the graph differs, and by how much.
    """
    batch = vetted.graph.batch_size
    step, rng = Interpreter(vetted), np.random.Generator(np.random.PCG64(batch))
    with torch.no_grad():
        for parameter in trainable(model).values():
            noise = rng.standard_normal(tuple(parameter.shape), dtype=np.float32)
            parameter.add_(torch.from_numpy(noise), alpha=0.02)
    masks = {
        name: rng.random(type_.shape, dtype=np.float32) < keep
        for name, type_, keep in vetted.graph.masks
    }
    for real in sorted({batch, max(1, batch - 1), max(1, batch // 2), 1}, reverse=True):
        for attempt in range(_TRIES):
            few = len(examples) < batch
            rows = torch.from_numpy(rng.choice(len(examples), size=batch, replace=few))
            found, expected = _both(task, model, step, vetted, examples, rows, real, masks)
            apart, size = _distance(found, expected)
            if apart <= _CLOSE * size + _TINY:
                break
            if attempt == _TRIES - 1:
                raise UnsupportedError(_differs(apart, size, real, batch))


def _both(
    task: Task,
    model: nn.Module,
    step: Interpreter,
    vetted: Vetted,
    examples: Examples,
    rows: Tensor,
    real: int,
    masks: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(d,) the gradient of the first `real` of some rows, by the graph and by torch."""
    batch = vetted.graph.batch_size
    inputs = {
        "weights": _flat(trainable(model).values()),
        "x": examples.x[rows].numpy(),
        "y": examples.y[rows].numpy(),
        **masks,
    }
    x, y = examples.x[rows[:real]], examples.y[rows[:real]]
    if vetted.graph.kind == "gradient":
        counts = (np.arange(batch) < real).astype(np.float32) / np.float32(real)
        found, _ = step.run({**inputs, "example_weights": counts})
        return found, _gradient(task, model, x, y, masks)
    gradients, _ = step.run(inputs)
    return gradients[:real].mean(0), _gradient(task, model, x, y, _rows_of(masks))


def _rows_of(masks: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Masks of single examples (B, 1, ...) as those of a batch (B, ...)."""
    return {name: mask.reshape(mask.shape[0], *mask.shape[2:]) for name, mask in masks.items()}


def _gradient(
    task: Task, model: nn.Module, x: Tensor, y: Tensor, masks: Mapping[str, NDArray[Any]]
) -> NDArray[Any]:
    with plain_kernels(), ReplayedDropout(list(masks.values())):
        loss = task.loss(model(x), y).mean()
        grads = torch.autograd.grad(loss, list(trainable(model).values()), allow_unused=True)
    return _flat(
        torch.zeros_like(parameter) if grad is None else grad
        for grad, parameter in zip(grads, trainable(model).values(), strict=True)
    )


def _flat(tensors: Any) -> NDArray[Any]:
    return torch.cat([each.detach().reshape(-1) for each in tensors]).numpy()


def _distance(found: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float]:
    """How far apart two gradients are, and the norm of the second."""
    return float(np.linalg.norm(found - expected)), float(np.linalg.norm(expected))


def _differs(apart: float, size: float, real: int, batch: int) -> str:
    mixing = ""
    if real < batch:
        mixing = ": the model mixes the examples of a batch, so that padding would change them"
    return (
        f"the graph's gradient of {real} examples in a batch of {batch} differs from torch's by "
        f"{apart:.3g}, its norm being {size:.3g}{mixing}"
    )
