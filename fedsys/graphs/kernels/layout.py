"""Reductions, and operators that move elements without changing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedsys.graphs.graph import Node, TensorType
from fedsys.graphs.inference import Value
from fedsys.graphs.kernels.base import Array, Kernel, Make

__all__ = ["KERNELS"]


def _reduce(function: np.ufunc) -> Make:
    def make(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
        rank = inputs[0].rank
        axes = tuple(each % rank for each in inputs[1].numbers())
        keep = bool(node.attributes["keepdims"])
        return lambda x, _: function.reduce(x, axis=axes, keepdims=keep)

    return make


def _mean(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    total = _reduce(np.add)(node, inputs, outputs)
    (made,) = outputs
    count = inputs[0].type.count // made.count
    if made.dtype.kind == "f":
        share = made.dtype.type(1 / count)
        return lambda x, axes: total(x, axes) * share
    return lambda x, axes: total(x, axes) // count


def _arg_max(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    axis, keep = node.attributes["axis"], bool(node.attributes["keepdims"])
    return lambda x: np.argmax(x, axis=axis, keepdims=keep)


def _reshape(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    shape = outputs[0].shape
    return lambda x, _: x.reshape(shape)


def _expand(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    shape = outputs[0].shape
    return lambda x, _: np.broadcast_to(x, shape)


def _transpose(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    order = node.attributes["perm"]
    return lambda x: x.transpose(order)


def _slice(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    starts, ends, axes, steps = (each.numbers() for each in inputs[1:])
    where = [slice(None)] * inputs[0].rank
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        where[axis] = slice(start, end, step)
    index = tuple(where)
    return lambda x, *_: x[index]


def _split(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    rank = inputs[0].rank
    axis = int(node.attributes["axis"]) % rank
    parts, start = [], 0
    for size in inputs[1].numbers():
        where = [slice(None)] * rank
        where[axis] = slice(start, start + size)
        parts.append(tuple(where))
        start += size
    if len(parts) == 1:
        return lambda x, _: x
    return lambda x, _: [x[part] for part in parts]


def _concat(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    axis: int = node.attributes["axis"]
    return lambda *parts: np.concatenate(parts, axis)


def _pad(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    (made,) = outputs
    x = inputs[0]
    before = inputs[1].numbers()[: x.rank]
    index = tuple(slice(b, b + size) for b, size in zip(before, x.shape, strict=True))

    def run(x: Array, _: Array, value: Array) -> Array:
        padded = np.full(made.shape, value, made.dtype)
        padded[index] = x
        return padded

    return run


def _tile(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    repeats = inputs[1].numbers()
    return lambda x, _: np.tile(x, repeats)


def _trilu(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    (diagonal,) = inputs[1].numbers()
    rows, columns = inputs[0].shape[-2:]
    least = max(-rows, min(columns, diagonal))
    compare = np.greater_equal if node.attributes["upper"] else np.less_equal
    zero = inputs[0].dtype.type(0)
    # Row i keeps column j where j - i >= diagonal (upper), or <= diagonal (lower).
    across, down = np.arange(columns)[None, :] - least, np.arange(rows)[:, None]
    return lambda x, _: np.where(compare(across, down), x, zero)


KERNELS: Mapping[str, Make] = {
    "ArgMax": _arg_max,
    "Concat": _concat,
    "Expand": _expand,
    "Pad": _pad,
    "ReduceMax": _reduce(np.maximum),
    "ReduceMean": _mean,
    "ReduceMin": _reduce(np.minimum),
    "ReduceSum": _reduce(np.add),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
}
