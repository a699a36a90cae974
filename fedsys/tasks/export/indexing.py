"""Rules for elements and rows by number, and for the gradients that write them back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from fedsys.tasks.export.lowering import Lowering, lowers, numpy_dtype

__all__: list[str] = []

aten = torch.ops.aten
_ONE_HOT = 512
"""Rows of an embedding up to which its gradient is a product with one-hot rows: faster than adding
row by row."""


@lowers(aten.embedding.default)
def _embedding(low: Lowering, weight: Any, rows: Any, *_: Any) -> str:
    return low.op("Gather", low.value(weight), low.value(rows, torch.int64), axis=0)


@lowers(aten.embedding_dense_backward.default)
def _embedding_backward(
    low: Lowering, grad: fx.Node, rows: fx.Node, count: int, padding: int, scaled: bool
) -> str:
    if scaled:
        low.refuse("scale_grad_by_freq")
    width, total = low.shape(grad)[-1], math.prod(low.shape(rows))
    numbers = low.reshape(low.value(rows, torch.int64), [total])
    updates = low.reshape(low.value(grad), [total, width])
    if padding >= 0:
        skipped = low.op("Equal", numbers, low.number(padding, torch.int64))
        skipped = low.reshape(skipped, [total, 1])
        updates = low.op("Where", skipped, low.number(0), updates)
    if count <= _ONE_HOT:
        onoff = low.array(np.array([0, 1], numpy_dtype(low.dtype())))
        hot = low.op("OneHot", numbers, low.number(count, torch.int64), onoff, axis=-1)
        return low.op("Gemm", hot, updates, transA=1, transB=0)
    zeros = low.filled(0, [count, width])
    return low.op("ScatterND", zeros, low.reshape(numbers, [total, 1]), updates, reduction="add")


@lowers(aten.gather.default)
def _gather(low: Lowering, x: Any, dim: int, index: Any, **_: Any) -> str:
    return low.op(
        "GatherElements", low.value(x), low.value(index, torch.int64), axis=dim % len(low.shape())
    )


@lowers(aten.scatter.value, aten.scatter.src)
def _scatter(low: Lowering, x: Any, dim: int, index: fx.Node, source: Any) -> str:
    if isinstance(source, fx.Node):
        updates = low.value(source)
        if low.shape(source) != low.shape(index):
            ends = low.shape(index)
            updates = low.slice(updates, list(range(len(ends))), [0] * len(ends), ends)
    else:
        updates = low.filled(source, low.shape(index))
    axis = dim % len(low.shape())
    return low.op(
        "ScatterElements", low.value(x), low.value(index), updates, axis=axis, reduction="none"
    )


@lowers(aten.scatter_add.default)
def _scatter_add(low: Lowering, x: Any, dim: int, index: Any, source: Any) -> str:
    axis = dim % len(low.shape())
    values = low.value(x), low.value(index), low.value(source)
    return low.op("ScatterElements", *values, axis=axis, reduction="add")


@lowers(aten.index_select.default)
def _index_select(low: Lowering, x: Any, dim: int, index: Any) -> str:
    axis = dim % len(low.shape())
    return low.op("Gather", low.value(x), low.value(index, torch.int64), axis=axis)


def _tuples(low: Lowering, indices: Sequence[fx.Node]) -> tuple[str, tuple[int, ...]]:
    """(*shape, n) the numbers of n index tensors side by side, and the shape they broadcast to."""
    shape = np.broadcast_shapes(*(low.shape(each) for each in indices))
    columns = []
    for each in indices:
        wide = low.value(each, torch.int64)
        if low.shape(each) != shape:
            wide = low.expand(wide, shape)
        columns.append(low.reshape(wide, (*shape, 1)))
    if len(columns) == 1:
        return columns[0], shape
    return low.op("Concat", *columns, axis=len(shape)), shape


def _check_numbers(low: Lowering, indices: Sequence[Any]) -> None:
    if any(each is not None and low.dtype(each) == torch.bool for each in indices):
        low.refuse("a mask as an index: the shape of the result would depend on the data")


@lowers(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(low: Lowering, x: Any, indices: Sequence[Any]) -> str:
    _check_numbers(low, indices)
    given = [(at, each) for at, each in enumerate(indices) if each is not None]
    if len(given) == 1:
        at, index = given[0]
        return low.op("Gather", low.value(x), low.value(index, torch.int64), axis=at)
    if [at for at, _ in given] != list(range(len(given))):
        low.refuse("indices that are not those of the first axes")
    tuples, _ = _tuples(low, [each for _, each in given])
    return low.op("GatherND", low.value(x), tuples)


@lowers(aten.index_put.default, aten._unsafe_index_put.default)
def _index_put(
    low: Lowering, x: Any, indices: Sequence[Any], values: fx.Node, accumulate: bool = False
) -> str:
    _check_numbers(low, indices)
    axes = [at for at, each in enumerate(indices) if each is not None]
    first, last = axes[0], axes[-1] + 1
    if axes != list(range(first, last)):
        low.refuse("indices of axes that are not next to each other")
    tuples, shape = _tuples(low, [indices[at] for at in axes])
    whole, rank = low.shape(), len(low.shape())
    wanted = (*whole[:first], *shape, *whole[last:])
    updates = low.value(values, low.dtype())
    if low.shape(values) != wanted:
        updates = low.expand(updates, wanted)
    # ScatterND's numbers are of the first axes: those that are indexed are moved there, and back.
    order = [*axes, *range(first), *range(last, rank)]
    middle = range(first, first + len(shape))
    moved = [*middle, *range(first), *range(first + len(shape), len(wanted))]
    found = low.op(
        "ScatterND",
        low.transpose(low.value(x), order),
        tuples,
        low.transpose(updates, moved),
        reduction="add" if accumulate else "none",
    )
    return low.transpose(found, [order.index(at) for at in range(rank)])
