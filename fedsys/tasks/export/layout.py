"""Rules for shapes, reductions, softmax and matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fedsys.tasks.export.lowering import Lowering, Rule, lowers

__all__: list[str] = []

aten = torch.ops.aten


@lowers(
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.unsqueeze_copy.default,
    aten.view.default,
    aten.view_copy.default,
)
def _view(low: Lowering, x: fx.Node, *_: Any) -> str:
    if low.shape(x) == low.shape():
        return low.value(x)
    return low.reshape(low.value(x), low.shape())


@lowers(aten.expand.default, aten.expand_copy.default)
def _expand(low: Lowering, x: fx.Node, *_: Any, **__: Any) -> str:
    if low.shape(x) == low.shape():
        return low.value(x)
    return low.expand(low.value(x), low.shape())


@lowers(aten.permute.default, aten.permute_copy.default)
def _permute(low: Lowering, x: Any, order: Sequence[int]) -> str:
    return low.transpose(low.value(x), [each % len(order) for each in order])


@lowers(aten.numpy_T.default, aten.t.default, aten.t_copy.default)
def _t(low: Lowering, x: Any) -> str:
    return low.transpose(low.value(x), range(len(low.shape()))[::-1])


@lowers(aten.transpose.int, aten.transpose_copy.int)
def _transpose(low: Lowering, x: Any, first: int, second: int) -> str:
    order = list(range(len(low.shape())))
    if order:
        order[first], order[second] = order[second], order[first]
    return low.transpose(low.value(x), order)


@lowers(aten.cat.default)
def _cat(low: Lowering, parts: Sequence[fx.Node], dim: int = 0) -> str:
    some = [low.value(each, low.dtype()) for each in parts if math.prod(low.shape(each))]
    if len(some) == 1:
        return some[0]
    return low.op("Concat", *some, axis=dim % len(low.shape()))


@lowers(aten.stack.default)
def _stack(low: Lowering, parts: Sequence[fx.Node], dim: int = 0) -> str:
    axis = dim % len(low.shape())
    shape = list(low.shape())
    shape[axis] = 1
    return low.op("Concat", *(low.reshape(low.value(each), shape) for each in parts), axis=axis)


def _bound(at: int | None, size: int, default: int) -> int:
    """A bound of a slice as torch reads it, counted from 0."""
    if at is None:
        return default
    return max(at + size, 0) if at < 0 else min(at, size)


@lowers(aten.slice.Tensor, aten.slice_copy.Tensor)
def _slice(
    low: Lowering, x: fx.Node, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> str:
    if low.shape() == low.shape(x):
        return low.value(x)
    axis = dim % len(low.shape())
    size = low.shape(x)[axis]
    first, last = _bound(start, size, 0), _bound(end, size, size)
    return low.slice(low.value(x), [axis], [first], [last], [step])


def _one(low: Lowering, x: fx.Node, dim: int, index: int) -> str:
    axis = dim % len(low.shape(x))
    return low.op("Gather", low.value(x), low.number(index, torch.int64), axis=axis)


@lowers(aten.select.int, aten.select_copy.int)
def _select(low: Lowering, x: fx.Node, dim: int, index: int) -> str:
    return _one(low, x, dim, index % low.shape(x)[dim])


@lowers(aten.unbind.int, aten.unbind_copy.int)
def _unbind(low: Lowering, x: fx.Node, dim: int = 0) -> list[str]:
    return [_one(low, x, dim, index) for index in range(low.shape(x)[dim])]


@lowers(
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_copy.Tensor,
    aten.split_with_sizes.default,
    aten.split_with_sizes_copy.default,
)
def _split(low: Lowering, x: fx.Node, _: Any, dim: int = 0) -> list[str]:
    sizes = [int(each.shape[dim]) for each in low.node.meta["val"]]
    if len(sizes) == 1:
        return [low.value(x)]
    axis = dim % len(low.shape(x))
    return low.ops("Split", len(sizes), low.value(x), low.ints(sizes), axis=axis)


@lowers(aten.constant_pad_nd.default)
def _pad(low: Lowering, x: fx.Node, pads: Sequence[int], value: float = 0) -> str:
    rank = len(low.shape())
    before, after = [0] * rank, [0] * rank
    for at in range(len(pads) // 2):  # torch lists the last axis first
        before[rank - 1 - at], after[rank - 1 - at] = pads[2 * at], pads[2 * at + 1]
    name = low.value(x)
    if min(pads, default=0) < 0:  # a crop
        axes, size = list(range(rank)), low.shape(x)
        starts = [max(0, -each) for each in before]
        ends = [s - max(0, -each) for s, each in zip(size, after, strict=True)]
        name = low.slice(name, axes, starts, ends)
        before = [max(0, each) for each in before]
        after = [max(0, each) for each in after]
    return low.pad(name, before, after, low.number(value))


def _within_zeros(low: Lowering, name: str, axis: int, start: int, length: int) -> str:
    """A gradient of a part, as a gradient of the whole."""
    before, after = [0] * len(low.shape()), [0] * len(low.shape())
    before[axis], after[axis] = start, low.shape()[axis] - start - length
    return low.pad(name, before, after, low.number(0))


@lowers(aten.select_backward.default)
def _select_backward(low: Lowering, grad: Any, size: Sequence[int], dim: int, index: int) -> str:
    axis, shape = dim % len(size), list(size)
    shape[axis] = 1
    name = low.reshape(low.value(grad), shape)
    return _within_zeros(low, name, axis, index % size[axis], 1)


@lowers(aten.slice_backward.default)
def _slice_backward(
    low: Lowering, grad: fx.Node, size: Sequence[int], dim: int, start: int, end: int, step: int
) -> str:
    if step != 1:
        low.refuse(f"slices with a step of {step}")
    axis = dim % len(size)
    first = _bound(start, size[axis], 0)
    return _within_zeros(low, low.value(grad), axis, first, low.shape(grad)[axis])


@lowers(aten.tril.default, aten.triu.default)
def _triangle(low: Lowering, x: Any, diagonal: int = 0) -> str:
    upper = int(low.node.target is aten.triu.default)
    return low.op("Trilu", low.value(x), low.number(diagonal, torch.int64), upper=upper)


@lowers(aten.flip.default)
def _flip(low: Lowering, x: fx.Node, dims: Sequence[int]) -> str:
    name = low.value(x)
    for dim in dims:
        size = low.shape()[dim]
        name = low.op("Gather", name, low.ints(range(size)[::-1]), axis=dim % len(low.shape()))
    return name


@lowers(aten.cumsum.default)
def _cumsum(low: Lowering, x: fx.Node, dim: int, **_: Any) -> str:
    """A product with a triangle of ones along the axis, which is made the last."""
    rank, name = len(low.shape()), low.value(x, low.dtype())
    if rank < 2 or not low.dtype().is_floating_point:
        low.refuse("of a vector, or of integers")
    size, order = low.shape()[dim], list(range(rank))
    order[dim], order[-1] = order[-1], order[dim]
    ones = low.expand(low.number(1), [size, size])
    triangle = low.op("Trilu", ones, low.number(0, torch.int64), upper=1)
    return low.transpose(low.op("MatMul", low.transpose(name, order), triangle), order)


@lowers(aten.repeat.default)
def _repeat(low: Lowering, x: fx.Node, repeats: Sequence[int]) -> str:
    shape = low.shape(x)
    name = low.value(x)
    if len(repeats) > len(shape):
        name = low.reshape(name, [1] * (len(repeats) - len(shape)) + list(shape))
    return low.op("Tile", name, low.ints(repeats))


# -- reductions ---------------------------------------------------------------------------------


def _reduce(kind: str) -> Rule:
    def rule(low: Lowering, x: fx.Node, dims: Any = None, keepdim: bool = False, **_: Any) -> str:
        rank, name = len(low.shape(x)), low.value(x, low.dtype())
        listed = [dims] if isinstance(dims, int) else list(dims or range(rank))
        axes = [each % rank for each in listed]
        if low.shape() and all(low.shape(x)[axis] == 1 for axis in axes):
            return low.reshape(name, low.shape())
        return low.total(kind, name, axes, keep=keepdim)

    return rule


lowers(aten.sum.default, aten.sum.dim_IntList)(_reduce("ReduceSum"))
lowers(aten.mean.default, aten.mean.dim)(_reduce("ReduceMean"))
lowers(aten.amax.default)(_reduce("ReduceMax"))
lowers(aten.amin.default)(_reduce("ReduceMin"))


@lowers(aten.any.dim)
def _any(low: Lowering, x: Any, dim: int, keepdim: bool = False) -> str:
    numbers = low.cast(low.value(x, torch.bool), torch.int32)
    return low.cast(low.total("ReduceMax", numbers, [dim], keep=keepdim), torch.bool)


@lowers(aten.argmax.default)
def _argmax(low: Lowering, x: Any, dim: int | None = None, keepdim: bool = False) -> str:
    if dim is None:
        low.refuse("without an axis")
    return low.op("ArgMax", low.value(x), axis=dim, keepdims=int(keepdim))


@lowers(aten._softmax.default)
def _softmax(low: Lowering, x: Any, dim: int, half_to_float: bool) -> str:
    return low.op("Softmax", low.value(x), axis=dim % len(low.shape()))


@lowers(aten._log_softmax.default)
def _log_softmax(low: Lowering, x: Any, dim: int, half_to_float: bool) -> str:
    return low.op("LogSoftmax", low.value(x), axis=dim % len(low.shape()))


@lowers(aten._softmax_backward_data.default)
def _softmax_backward(low: Lowering, grad: Any, output: Any, dim: int, _: Any) -> str:
    y = low.value(output)
    product = low.op("Mul", low.value(grad), y)
    total = low.total("ReduceSum", product, [dim % len(low.shape())], keep=True)
    return low.op("Sub", product, low.op("Mul", y, total))


@lowers(aten._log_softmax_backward_data.default)
def _log_softmax_backward(low: Lowering, grad: Any, output: Any, dim: int, _: Any) -> str:
    above = low.value(grad)
    total = low.total("ReduceSum", above, [dim % len(low.shape())], keep=True)
    return low.op("Sub", above, low.op("Mul", low.op("Exp", low.value(output)), total))


# -- products -----------------------------------------------------------------------------------


def _matrix(low: Lowering, arg: fx.Node) -> tuple[str, int]:
    """A matrix, or the one of which it is the transpose and 1: Gemm transposes by itself."""
    transposed = (
        arg.op == "call_function"
        and (
            arg.target in (aten.t.default, aten.numpy_T.default)
            or (arg.target is aten.permute.default and [d % 2 for d in arg.args[1]] == [1, 0])  # type: ignore[union-attr,operator]
            or (arg.target is aten.transpose.int and {int(d) % 2 for d in arg.args[1:3]} == {0, 1})  # type: ignore[arg-type]
        )
    )
    if transposed:
        return low.value(arg.args[0]), 1
    return low.value(arg), 0


@lowers(aten.mm.default)
def _mm(low: Lowering, a: fx.Node, b: fx.Node) -> str:
    (left, turn_left), (right, turn_right) = _matrix(low, a), _matrix(low, b)
    return low.op("Gemm", left, right, transA=turn_left, transB=turn_right)


@lowers(aten.addmm.default)
def _addmm(
    low: Lowering, bias: Any, a: fx.Node, b: fx.Node, beta: float = 1, alpha: float = 1
) -> str:
    if alpha != 1 or beta != 1:
        product = _mm(low, a, b)
        scaled = low.op("Mul", product, low.number(alpha))
        return low.op("Add", scaled, low.op("Mul", low.value(bias), low.number(beta)))
    (left, turn_left), (right, turn_right) = _matrix(low, a), _matrix(low, b)
    return low.op("Gemm", left, right, low.value(bias), transA=turn_left, transB=turn_right)


@lowers(aten.bmm.default)
def _bmm(low: Lowering, a: Any, b: Any) -> str:
    return low.op("MatMul", low.value(a), low.value(b))


@lowers(aten.baddbmm.default)
def _baddbmm(low: Lowering, x: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> str:
    product = low.op("MatMul", low.value(a), low.value(b))
    if alpha != 1:
        product = low.op("Mul", product, low.number(alpha))
    if beta == 0:
        return product
    added = low.value(x)
    if beta != 1:
        added = low.op("Mul", added, low.number(beta))
    return low.op("Add", product, added)


@lowers(aten.mv.default)
def _mv(low: Lowering, a: fx.Node, b: fx.Node) -> str:
    column = low.reshape(low.value(b), (*low.shape(b), 1))
    return low.reshape(low.op("MatMul", low.value(a), column), low.shape())


@lowers(aten.dot.default)
def _dot(low: Lowering, a: fx.Node, b: fx.Node) -> str:
    row = low.reshape(low.value(a), (1, *low.shape(a)))
    column = low.reshape(low.value(b), (*low.shape(b), 1))
    return low.reshape(low.op("MatMul", row, column), ())
