"""What an operator makes of its inputs' types: shapes, work, memory; nothing is computed.

Every function takes the inputs, the attributes and the number of outputs wanted, and raises
`Mismatch` where they do not fit. Shapes that ONNX lets a graph compute (of ``Reshape``, ``Slice``,
``Expand``...) must be constants here, so that every size is known before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.graphs.graph import ELEMENT_TYPES, TensorType

__all__ = ["ANY", "FLOATS", "NUMBERS", "SIGNED", "TRUTH", "Infer", "Inferred", "Mismatch", "Value"]

DType = np.dtype[Any]
_FLOAT32: DType = np.dtype("<f4")
_FLOAT64: DType = np.dtype("<f8")
_INT32: DType = np.dtype("<i4")
_INT64: DType = np.dtype("<i8")
_BYTE: DType = np.dtype("u1")
_BOOL: DType = np.dtype("?")

FLOATS: frozenset[DType] = frozenset({_FLOAT32, _FLOAT64})
SIGNED: frozenset[DType] = FLOATS | {_INT32, _INT64}
NUMBERS: frozenset[DType] = SIGNED | {_BYTE}
TRUTH: frozenset[DType] = frozenset({_BOOL})
ANY: frozenset[DType] = NUMBERS | TRUTH

_MOST_CONSTANT = 8192
"""Elements of a constant that says a shape."""


class Mismatch(ValueError):
    """Inputs or attributes that do not fit one another."""


@dataclass(frozen=True)
class Value:
    """What is known of a value: its type, and its elements if it is a constant."""

    type: TensorType
    constant: NDArray[Any] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements."""
        return self.type.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.type.shape

    @property
    def rank(self) -> int:
        """Its number of dimensions."""
        return len(self.type.shape)

    def numbers(self) -> list[int]:
        """The integers (n,) that a constant holds.

        Raises:
            Mismatch: it is computed, or something else.
        """
        if self.constant is None:
            raise Mismatch("a shape or an axis is computed rather than given")
        if self.dtype != _INT64 or self.rank > 1 or self.type.count > _MOST_CONSTANT:
            raise Mismatch("a shape or an axis is not a short list of int64")
        return [int(each) for each in self.constant.reshape(-1)]


@dataclass(frozen=True)
class Inferred:
    """What an operator would make.

    Attributes:
        outputs: their types.
        work: floating-point operations, roughly.
        workspace: bytes that it needs while it runs, besides inputs and outputs.
    """

    outputs: tuple[TensorType, ...]
    work: float
    workspace: int = 0


Infer = Callable[[Sequence[Value], Mapping[str, Any], int], Inferred]
Attributes = Mapping[str, Any]


def made(dtype: np.dtype[Any], shape: Sequence[int], work: float = 1, space: int = 0) -> Inferred:
    """One output; `work` is counted for each of its elements."""
    type_ = TensorType(dtype, tuple(shape))
    return Inferred((type_,), work * type_.count, space)


def require(holds: bool, otherwise: str) -> None:
    """Raise `Mismatch` unless it holds."""
    if not holds:
        raise Mismatch(otherwise)


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from 0; ONNX counts from the end too."""
    require(-rank <= axis < rank, f"axis {axis} of {rank} dimensions")
    return axis % rank


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape to which all broadcast.

    >>> broadcast_shapes((3, 1), (4,))
    (3, 4)
    """
    rank = max(len(shape) for shape in shapes)
    found = [1] * rank
    for shape in shapes:
        for at, size in enumerate(shape, start=rank - len(shape)):
            require(size in (1, found[at]) or found[at] == 1, f"shapes {shapes} do not broadcast")
            found[at] = max(found[at], size)
    return tuple(found)


def elementwise(allowed: frozenset[np.dtype[Any]], work: float = 1) -> Infer:
    """One input, one output of its type."""

    def infer(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
        (x,) = inputs
        require(x.dtype in allowed, f"elements of type {x.dtype}")
        # Erf holds a few intermediates.
        return made(x.dtype, x.shape, work, 6 * x.type.nbytes if work > 1 else 0)

    return infer


def broadcast(allowed: frozenset[np.dtype[Any]], *, truth: bool = False, work: float = 1) -> Infer:
    """Two inputs of one type, one output of that type or of truth values."""

    def infer(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
        a, b = inputs
        require(a.dtype == b.dtype and a.dtype in allowed, f"types {a.dtype} and {b.dtype}")
        return made(_BOOL if truth else a.dtype, broadcast_shapes(a.shape, b.shape), work)

    return infer


def cast(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """``to`` is ONNX's number of a type."""
    require(attributes["to"] in ELEMENT_TYPES, f"a cast to type {attributes['to']}")
    return made(ELEMENT_TYPES[attributes["to"]], inputs[0].shape)


def where(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Condition, values where it holds, values where not."""
    condition, a, b = inputs
    require(condition.dtype == _BOOL and a.dtype == b.dtype, "types of a choice")
    return made(a.dtype, broadcast_shapes(condition.shape, a.shape, b.shape))


def softmax(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Along one axis."""
    (x,) = inputs
    require(x.dtype in FLOATS, f"elements of type {x.dtype}")
    axis_of(attributes["axis"], x.rank)
    return made(x.dtype, x.shape, 20, 2 * x.type.nbytes)


def _without(shape: tuple[int, ...], axes: set[int], keep: int) -> list[int]:
    require(keep in (0, 1), f"keepdims = {keep}")
    if keep:
        return [1 if at in axes else size for at, size in enumerate(shape)]
    return [size for at, size in enumerate(shape) if at not in axes]


def reduce(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Over the axes that the second input lists."""
    x, axes = inputs
    require(x.dtype in SIGNED, f"elements of type {x.dtype}")
    listed = [axis_of(each, x.rank) for each in axes.numbers()]
    require(len(set(listed)) == len(listed) > 0, f"axes {listed}")
    shape = _without(x.shape, set(listed), attributes["keepdims"])
    return Inferred((TensorType(x.dtype, tuple(shape)),), x.type.count)


def arg_max(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Along one axis."""
    (x,) = inputs
    require(x.dtype in SIGNED, f"elements of type {x.dtype}")
    axis = axis_of(attributes["axis"], x.rank)
    shape = _without(x.shape, {axis}, attributes["keepdims"])
    return Inferred((TensorType(_INT64, tuple(shape)),), x.type.count)


def reshape(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """To exactly the shape given; ONNX's 0 and -1 are not used."""
    x, shape = inputs
    sizes = shape.numbers()
    require(
        all(size >= 1 for size in sizes) and math.prod(sizes) == x.type.count,
        f"{x.type} as {sizes}",
    )
    return made(x.dtype, sizes)


def expand(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Broadcast to the shape given."""
    x, shape = inputs
    sizes = tuple(shape.numbers())
    require(
        all(size >= 1 for size in sizes) and broadcast_shapes(x.shape, sizes) == sizes,
        f"{x.type} to {list(sizes)}",
    )
    return made(x.dtype, sizes)


def transpose(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Axis i of the output is axis perm[i] of the input."""
    (x,) = inputs
    order = attributes["perm"]
    require(sorted(order) == list(range(x.rank)), f"perm = {order}")
    return made(x.dtype, [x.shape[at] for at in order])


def slice_(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Starts, ends, axes and steps, all counted from 0 and within the tensor."""
    x = inputs[0]
    starts, ends, axes, steps = (each.numbers() for each in inputs[1:])
    require(len(starts) == len(ends) == len(axes) == len(steps), "lists of different lengths")
    require(len(set(axes)) == len(axes), f"axes {axes}")
    shape = list(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        require(0 <= axis < x.rank, f"axis {axis}")
        require(0 <= start < end <= x.shape[axis] and step >= 1, f"{start}:{end}:{step}")
        shape[axis] = -(-(end - start) // step)
    return made(x.dtype, shape)


def split(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Into parts of the sizes given, along one axis."""
    x, listed = inputs
    axis, sizes = axis_of(attributes["axis"], x.rank), listed.numbers()
    require(len(sizes) == outputs and min(sizes, default=0) >= 1, f"sizes {sizes}")
    require(sum(sizes) == x.shape[axis], f"sizes {sizes} of {x.shape[axis]}")
    types = [TensorType(x.dtype, (*x.shape[:axis], s, *x.shape[axis + 1 :])) for s in sizes]
    return Inferred(tuple(types), x.type.count)


def concat(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Side by side along one axis."""
    first = inputs[0]
    axis = axis_of(attributes["axis"], first.rank)

    def rest(value: Value) -> tuple[int, ...]:
        return value.shape[:axis] + value.shape[axis + 1 :]

    require(
        all(
            each.dtype == first.dtype and each.rank == first.rank and rest(each) == rest(first)
            for each in inputs
        ),
        "parts of different types",
    )
    shape = list(first.shape)
    shape[axis] = sum(each.shape[axis] for each in inputs)
    return made(first.dtype, shape)


def pad(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """With a number, before and after each axis."""
    x, pads, value = inputs
    sizes = pads.numbers()
    require(len(sizes) == 2 * x.rank and min(sizes, default=0) >= 0, f"pads {sizes}")
    require(value.dtype == x.dtype and value.rank == 0, "the number to pad with")
    before, after = sizes[: x.rank], sizes[x.rank :]
    shape = [b + s + a for b, s, a in zip(before, x.shape, after, strict=True)]
    return made(x.dtype, shape)


def tile(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Repeated along each axis."""
    x, listed = inputs
    repeats = listed.numbers()
    require(len(repeats) == x.rank and min(repeats, default=1) >= 1, f"repeats {repeats}")
    shape = [size * by for size, by in zip(x.shape, repeats, strict=True)]
    return made(x.dtype, shape, space=TensorType(x.dtype, tuple(shape)).nbytes)


def trilu(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """The upper or lower triangle of the last two axes; zeros elsewhere."""
    x, diagonal = inputs
    require(x.rank >= 2 and diagonal.rank == 0 and len(diagonal.numbers()) == 1, "a matrix")
    require(attributes["upper"] in (0, 1), f"upper = {attributes['upper']}")
    return made(x.dtype, x.shape, 2, 2 * math.prod(x.shape[-2:]))


def gather(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Slices along one axis, by number."""
    x, index = inputs
    axis = axis_of(attributes["axis"], x.rank)
    require(index.dtype == _INT64, "numbers that are not int64")
    return made(x.dtype, [*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def gather_elements(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Elements along one axis, by number."""
    x, index = inputs
    axis = axis_of(attributes["axis"], x.rank)
    _check_elements(x, index, axis)
    return made(x.dtype, index.shape, 2, 2 * index.type.nbytes)


def _check_elements(x: Value, index: Value, axis: int) -> None:
    require(index.dtype == _INT64 and index.rank == x.rank, "numbers of another rank or type")
    require(
        all(index.shape[at] <= x.shape[at] for at in range(x.rank) if at != axis),
        "more numbers than there are elements",
    )


def gather_nd(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Slices by tuples of numbers, the last axis of the second input."""
    x, index = inputs
    return made(x.dtype, _selected(x, index), 2, index.type.nbytes)


def _selected(x: Value, index: Value) -> tuple[int, ...]:
    require(index.dtype == _INT64 and index.rank >= 1, "numbers that are not int64")
    depth = index.shape[-1]
    require(depth <= x.rank, f"{depth} numbers for {x.rank} axes")
    return (*index.shape[:-1], *x.shape[depth:])


def scatter_elements(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """A copy in which elements along one axis are replaced or added to."""
    x, index, updates = inputs
    axis = axis_of(attributes["axis"], x.rank)
    _check_elements(x, index, axis)
    require(updates.type == TensorType(x.dtype, index.shape), "updates of another type")
    require(attributes["reduction"] == "none" or x.dtype in SIGNED, f"a sum of {x.dtype}")
    space = 2 * index.type.nbytes + 8 * x.type.count
    return Inferred((x.type,), x.type.count + 20 * index.type.count, space)


def scatter_nd(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """A copy in which slices are replaced or added to."""
    x, index, updates = inputs
    require(updates.type == TensorType(x.dtype, _selected(x, index)), "updates of another type")
    require(attributes["reduction"] == "none" or x.dtype in SIGNED, f"a sum of {x.dtype}")
    space = 2 * index.type.nbytes + updates.type.nbytes
    return Inferred((x.type,), x.type.count + 20 * updates.type.count, space)


def one_hot(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Rows with one element on; a new last axis."""
    index, depth, values = inputs
    sizes = depth.numbers()
    require(index.dtype == _INT64 and depth.rank == 0 and len(sizes) == 1, "numbers and depth")
    require(sizes[0] >= 1 and values.shape == (2,) and attributes["axis"] == -1, "one-hot rows")
    shape = (*index.shape, sizes[0])
    return made(values.dtype, shape, 3, math.prod(shape))


def matmul(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """Matrices in the last two axes, stacked in the others."""
    a, b = inputs
    require(a.dtype == b.dtype and a.dtype in FLOATS, f"types {a.dtype} and {b.dtype}")
    require(a.rank >= 2 and b.rank >= 2 and a.shape[-1] == b.shape[-2], f"{a.type} x {b.type}")
    shape = (*broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    # BLAS wants its operands in rows: a transposed stack is copied.
    return made(a.dtype, shape, 2 * a.shape[-1], a.type.nbytes + b.type.nbytes)


def gemm(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """A B + C, where A and B may be given transposed."""
    a, b = inputs[:2]
    require(all(each.dtype == a.dtype for each in inputs) and a.dtype in FLOATS, "types")
    require(a.rank == 2 and b.rank == 2, "matrices")
    flags = (attributes["transA"], attributes["transB"])
    require(set(flags) <= {0, 1}, f"transA, transB = {flags}")
    rows, inner = a.shape[::-1] if flags[0] else a.shape
    inner_b, columns = b.shape[::-1] if flags[1] else b.shape
    require(inner == inner_b, f"{a.type} x {b.type}")
    if len(inputs) == 3:
        c = inputs[2]
        require(broadcast_shapes(c.shape, (rows, columns)) == (rows, columns), "what is added")
    return made(a.dtype, (rows, columns), 2 * inner, a.type.nbytes + b.type.nbytes)
