"""From torch's operators to ONNX's: what all rules share, and the pass that applies them.

A rule turns one node of a flat FX graph of ATen operators into operators of a training graph::

    @lowers(aten.rsqrt.default)
    def _rsqrt(low, x):
        return low.op("Reciprocal", low.op("Sqrt", low.value(x)))

Shapes are those that the trace saw. An operator without a rule is refused by name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from fedsys.graphs.graph import ELEMENT_TYPES, Kind, Node, TensorType, TrainingGraph

__all__ = ["RULES", "Builder", "Lowering", "Rule", "UnsupportedError", "lower", "lowers", "type_of"]

Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}
"""By ATen's operator."""

_NUMPY: Mapping[torch.dtype, str] = {
    torch.float32: "<f4",
    torch.float64: "<f8",
    torch.int64: "<i8",
    torch.int32: "<i4",
    torch.uint8: "u1",
    torch.bool: "?",
}
_NUMBERS = {dtype: number for number, dtype in ELEMENT_TYPES.items()}
_SMALL = 16
"""Elements up to which a constant tensor is written out; a larger one is expanded as it runs."""


class UnsupportedError(Exception):
    """Something of a task that no training graph can say; the message names it."""


def lowers(*targets: Any) -> Callable[[Rule], Rule]:
    """Registers a rule."""

    def register(rule: Rule) -> Rule:
        for target in targets:
            RULES[target] = rule
        return rule

    return register


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """A torch type as numpy's.

    Raises:
        UnsupportedError: a training graph has no such type.
    """
    if dtype not in _NUMPY:
        raise UnsupportedError(f"tensors of {dtype}")
    return np.dtype(_NUMPY[dtype])


def type_of(tensor: Any) -> TensorType:
    """The type of a tensor, or of what stands for one in a trace."""
    return TensorType(numpy_dtype(tensor.dtype), tuple(int(size) for size in tensor.shape))


class Builder:
    """Collects constants, nodes and dropout masks; equal operators are written once."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.masks: list[tuple[TensorType, float]] = []
        self._known: dict[Any, str] = {}
        self._made: dict[Any, tuple[str, ...]] = {}
        self._count = 0

    def constant(self, array: NDArray[Any]) -> str:
        """The name of a constant."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = f"c{len(self.constants)}"
            self.constants[name] = array
            self._known[key] = name
        return self._known[key]

    def emit(
        self, kind: str, inputs: Sequence[str], attributes: Mapping[str, Any], outputs: int
    ) -> tuple[str, ...]:
        """The names of an operator's outputs."""
        key = (kind, tuple(inputs), tuple(sorted(attributes.items())), outputs)
        if key not in self._made:
            names = tuple(f"v{self._count + at}" for at in range(outputs))
            self._count += outputs
            self._made[key] = names
            self.nodes.append(
                Node(
                    operator=kind,
                    inputs=tuple(inputs),
                    outputs=names,
                    attributes=dict(attributes),
                )
            )
        return self._made[key]

    def mask(self, type_: TensorType, keep: float) -> str:
        """A new dropout mask, an input of the graph."""
        self.masks.append((type_, keep))
        return f"keep_{len(self.masks) - 1}"


class Lowering:
    """One node of the FX graph while it is lowered, and what its rule writes with.

    Attributes:
        node: the FX node.
    """

    def __init__(self, builder: Builder, names: Mapping[fx.Node, Any], node: fx.Node) -> None:
        self.node, self._builder, self._names = node, builder, names

    def refuse(self, why: str) -> NoReturn:
        """Raise UnsupportedError, naming the operator."""
        raise UnsupportedError(f"{self.node.target}: {why}")

    def shape(self, arg: fx.Node | None = None) -> tuple[int, ...]:
        """Of an argument, or of this node."""
        value = (arg or self.node).meta["val"]
        return tuple(int(size) for size in value.shape)

    def dtype(self, arg: fx.Node | None = None) -> torch.dtype:
        """Of an argument, or of this node."""
        found: torch.dtype = (arg or self.node).meta["val"].dtype
        return found

    def value(self, arg: Any, dtype: torch.dtype | None = None) -> str:
        """The name of an argument; with `dtype`, converted to it. A number becomes a constant."""
        if isinstance(arg, fx.Node):
            name: str = self._names[arg]
            if dtype is None or self.dtype(arg) == dtype:
                return name
            return self.cast(name, dtype)
        if isinstance(arg, bool | int | float):
            return self.number(arg, dtype or self.dtype())
        self.refuse(f"argument {arg!r}")

    def parts(self, arg: fx.Node) -> Any:
        """The names of the outputs of an argument that has several."""
        return self._names[arg]

    def number(self, value: float, dtype: torch.dtype | None = None) -> str:
        """A constant (), of this node's type unless another is given."""
        return self._builder.constant(np.array(value, numpy_dtype(dtype or self.dtype())))

    def array(self, values: NDArray[Any]) -> str:
        """A constant."""
        return self._builder.constant(np.ascontiguousarray(values))

    def ints(self, values: Sequence[int]) -> str:
        """A constant (n,) of int64: a shape, axes, sizes."""
        return self._builder.constant(np.array([int(each) for each in values], np.int64))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """An operator with one output."""
        return self._builder.emit(kind, inputs, attributes, 1)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """An operator with several outputs."""
        return list(self._builder.emit(kind, inputs, attributes, outputs))

    def mask(self, shape: Sequence[int], keep: float) -> str:
        """A dropout mask."""
        return self._builder.mask(TensorType(np.dtype("?"), tuple(shape)), keep)

    def cast(self, name: str, dtype: torch.dtype) -> str:
        """A value converted."""
        return self.op("Cast", name, to=_NUMBERS[numpy_dtype(dtype)])

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """A value in another shape."""
        return self.op("Reshape", name, self.ints(shape))

    def expand(self, name: str, shape: Sequence[int]) -> str:
        """A value broadcast."""
        return self.op("Expand", name, self.ints(shape))

    def transpose(self, name: str, order: Sequence[int]) -> str:
        """A value with its axes in another order."""
        if list(order) == list(range(len(order))):
            return name
        return self.op("Transpose", name, perm=tuple(order))

    def slice(
        self,
        name: str,
        axes: Sequence[int],
        starts: Sequence[int],
        ends: Sequence[int],
        steps: Sequence[int] | None = None,
    ) -> str:
        """A part of a value."""
        listed = (starts, ends, axes, steps or [1] * len(axes))
        return self.op("Slice", name, *(self.ints(each) for each in listed))

    def pad(self, name: str, before: Sequence[int], after: Sequence[int], value: str) -> str:
        """A value with a number around it."""
        return self.op("Pad", name, self.ints([*before, *after]), value)

    def total(self, kind: str, name: str, axes: Sequence[int], *, keep: bool) -> str:
        """A reduction."""
        return self.op(kind, name, self.ints(axes), keepdims=int(keep))

    def filled(self, value: float, shape: Sequence[int], dtype: torch.dtype | None = None) -> str:
        """A tensor of one number."""
        if math.prod(shape) <= _SMALL:
            kind = numpy_dtype(dtype or self.dtype())
            return self.array(np.full(tuple(shape), value, kind))
        return self.expand(self.number(value, dtype), shape)


def lower(
    module: fx.GraphModule,
    *,
    kind: Kind,
    inputs: Sequence[str],
    outputs: Sequence[str],
    task: str,
    options: Mapping[str, Any],
) -> TrainingGraph:
    """A training graph of a flat FX graph whose nodes carry example values.

    Args:
        module: the FX graph, with its constants.
        kind: of the training graph.
        inputs: names of the placeholders, in order.
        outputs: names of the outputs, in order.
        task: its name.
        options: of the task.

    Raises:
        UnsupportedError: names every operator that has no rule, or the first that its rule refuses.
    """
    missing = sorted(
        {
            str(node.target)
            for node in module.graph.nodes
            if node.op == "call_function"
            and node.target is not operator.getitem
            and node.target not in RULES
        }
    )
    if missing:
        raise UnsupportedError(f"operators that have no rule: {', '.join(missing)}")
    builder, names = Builder(), dict[fx.Node, Any]()
    given: dict[str, TensorType] = {}
    results: Sequence[fx.Node] = ()
    waiting = iter(inputs)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            names[node] = next(waiting)
            given[names[node]] = type_of(node.meta["val"])
        elif node.op == "get_attr":
            tensor = operator.attrgetter(node.target)(module).detach().cpu()
            node.meta.setdefault("val", tensor)
            names[node] = builder.constant(np.ascontiguousarray(tensor.numpy()))
        elif node.op == "output":
            results = node.args[0]
        elif node.target is operator.getitem:
            names[node] = names[node.args[0]][node.args[1]]
        else:
            names[node] = RULES[node.target](
                Lowering(builder, names, node), *node.args, **node.kwargs
            )
    made = [type_of(node.meta["val"]) for node in results]
    nodes = [
        *builder.nodes,
        *(
            Node(operator="Identity", inputs=(names[node],), outputs=(name,), attributes={})
            for node, name in zip(results, outputs, strict=True)
        ),
    ]
    nodes = _needed(nodes, set(outputs))
    used = {name for node in nodes for name in node.inputs}
    for at, (type_, _) in enumerate(builder.masks):
        given[f"keep_{at}"] = type_
    return TrainingGraph(
        task=task,
        options=options,
        kind=kind,
        keep=tuple(keep for _, keep in builder.masks),
        inputs=given,
        constants={name: array for name, array in builder.constants.items() if name in used},
        nodes=tuple(nodes),
        outputs=dict(zip(outputs, made, strict=True)),
    )


def _needed(nodes: Sequence[Node], wanted: set[str]) -> list[Node]:
    """Nodes on which an output depends, in order."""
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]
