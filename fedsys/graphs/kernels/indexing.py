"""Elements and slices by number. A number outside its axis raises IndexError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsys.graphs.graph import Node, TensorType
from fedsys.graphs.inference import Value
from fedsys.graphs.kernels.base import Array, Kernel, Make

__all__ = ["KERNELS"]


def _gather(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    axis: int = node.attributes["axis"]
    index = inputs[1]
    if index.constant is not None and index.rank == 0:
        # One slice by a known number: no copy is needed, but what is taken must outlive its source.
        number = int(index.constant)
        size = inputs[0].shape[axis]
        if -size <= number < size:
            where = (slice(None),) * (axis % inputs[0].rank) + (number,)
            return lambda x, _: np.array(x[where])
    return lambda x, index: np.take(x, index, axis)


def _gather_elements(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    place = _places(node, inputs)
    return lambda x, index: x[place(index)]


def _places(node: Node, inputs: Sequence[Value]) -> Kernel:
    """The index of an array that picks, for each number, the element that it means."""
    shape = inputs[1].shape
    axis = int(node.attributes["axis"]) % len(shape)
    grid = list(np.indices(shape, sparse=True))

    def place(index: Array) -> tuple[Array, ...]:
        return (*grid[:axis], index, *grid[axis + 1 :])

    return place


def _gather_nd(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    return lambda x, index: x[tuple(np.moveaxis(index, -1, 0))]


def _scatter_elements(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    place = _places(node, inputs)
    if node.attributes["reduction"] == "none":

        def replace(x: Array, index: Array, updates: Array) -> Array:
            made = x.copy()
            made[place(index)] = updates
            return made

        return replace
    size = inputs[0].shape[0]
    if inputs[0].rank == 1 and inputs[0].dtype.kind == "f":

        def count(x: Array, index: Array, updates: Array) -> Array:
            # bincount would make room for whatever number comes, so numbers are checked first.
            if index.min() < -size or index.max() >= size:
                raise IndexError(f"a number outside an axis of {size}")
            found = np.bincount(index % size, weights=updates, minlength=size)
            found += x
            made: Array = found.astype(x.dtype)
            return made

        return count

    def add(x: Array, index: Array, updates: Array) -> Array:
        made = x.copy()
        np.add.at(made, place(index), updates)
        return made

    return add


def _scatter_nd(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    adds = node.attributes["reduction"] == "add"

    def run(x: Array, index: Array, updates: Array) -> Array:
        made = np.array(x)
        where = tuple(np.moveaxis(index, -1, 0))
        if adds:
            np.add.at(made, where, updates)
        else:
            made[where] = updates
        return made

    return run


def _one_hot(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    (depth,) = inputs[1].numbers()
    numbers = np.arange(depth)

    def run(index: Array, _: Array, values: Array) -> Any:
        # ONNX counts negative numbers from the end.
        wanted = np.where(index < 0, index + depth, index)
        return np.where(wanted[..., None] == numbers, values[1], values[0])

    return run


KERNELS: Mapping[str, Make] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
