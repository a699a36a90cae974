"""From a file that anybody may have written to a training graph, field by field.

Nothing is kept of the file itself: names, numbers and shapes are checked one by one and the graph
is built from them. That the graph makes sense as a whole is checked by `fedsys.graphs.vetting`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from fedsys.graphs import training_graph_pb2 as pb
from fedsys.graphs.encoding import FORMAT, INT, INTS, IR_VERSION, OPSET, STRING, encode, text_of
from fedsys.graphs.errors import GraphError
from fedsys.graphs.graph import (
    ELEMENT_TYPES,
    KINDS,
    OUTPUTS,
    Attribute,
    Kind,
    Node,
    TensorType,
    TrainingGraph,
    input_names,
)
from fedsys.graphs.operators import OPERATORS
from fedsys.printable import printable

__all__ = ["Bounds", "decode"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_FACTS = frozenset({"fedsys.graph", "keep", "kind", "options", "task"})
_MOST_MASKS = 256
_MOST_TEXT = 4096
_MOST_TASK = 200
_LARGEST = 1 << 31
"""No dimension, axis or stride is as large as this."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much of a file is read at all.

    Attributes:
        file: bytes of the file.
        constants: bytes of all constants together.
        nodes: operators.
        rank: dimensions of a tensor.
    """

    file: int = 16 << 20
    constants: int = 4 << 20
    nodes: int = 20_000
    rank: int = 8


def decode(raw: bytes, bounds: Bounds) -> TrainingGraph:
    """The graph that these bytes are the encoding of.

    Raises:
        GraphError: they are not one that `fedsys.graphs.encoding.encode` writes.
    """
    if len(raw) > bounds.file:
        raise GraphError(f"a graph of {len(raw)} bytes; at most {bounds.file} are read")
    model = pb.ModelProto()
    try:
        model.ParseFromString(raw)
    except DecodeError:
        raise GraphError(
            "not a training graph: the file is no ONNX model; make one with `fedsys task export`"
        ) from None
    size = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != size:
        raise GraphError(
            "the model has fields that a training graph does not have (functions, subgraphs, "
            "external data, names of nodes, documentation...); make it with `fedsys task export`"
        )
    _header(model)
    facts = _facts(model)
    kind, keep = _kind(facts["kind"]), _keep(facts["keep"])
    if not 1 <= len(model.graph.node) <= bounds.nodes:
        raise GraphError(f"{len(model.graph.node)} operators; allowed are 1 to {bounds.nodes}")
    graph = TrainingGraph(
        task=_task(facts["task"]),
        options=_options(facts["options"]),
        kind=kind,
        keep=keep,
        inputs=_types(model.graph.input, input_names(kind, len(keep)), "inputs", bounds),
        constants=_constants(model.graph.initializer, bounds),
        nodes=tuple(_node(each) for each in model.graph.node),
        outputs=_types(model.graph.output, OUTPUTS[kind], "outputs", bounds),
    )
    if encode(graph) != raw:
        raise GraphError("the graph is spelled in another way than `fedsys task export` writes it")
    return graph


def _header(model: Any) -> None:
    if model.ir_version != IR_VERSION or model.producer_name != "fedsys":
        raise GraphError("an ONNX model, but no training graph; make one with `fedsys task export`")
    if [(each.domain, each.version) for each in model.opset_import] != [("", OPSET)]:
        raise GraphError(f"only operators of ONNX's standard domain, opset {OPSET}, are known")


def _facts(model: Any) -> dict[str, str]:
    facts = {each.key: each.value for each in model.metadata_props}
    if len(facts) != len(model.metadata_props) or facts.keys() != _FACTS:
        raise GraphError(f"metadata other than {', '.join(sorted(_FACTS))}, once each")
    if facts["fedsys.graph"] != FORMAT:
        raise GraphError(
            f"a training graph of format {printable(facts['fedsys.graph'], 20)}; this version "
            f"reads format {FORMAT}"
        )
    if any(len(value) > _MOST_TEXT for value in facts.values()):
        raise GraphError(f"metadata of more than {_MOST_TEXT} characters")
    return facts


def _kind(text: str) -> Kind:
    for known in KINDS:
        if text == known:
            return known
    raise GraphError(f"kind {printable(text, 40)!r}; known are {', '.join(KINDS)}")


def _keep(text: str) -> tuple[float, ...]:
    try:
        found = json.loads(text)
        if type(found) is not list or len(found) > _MOST_MASKS:
            raise ValueError
        if not all(type(each) is float and 0 < each <= 1 for each in found):
            raise ValueError
    except (ValueError, RecursionError):
        raise GraphError(
            f"keep: expected at most {_MOST_MASKS} chances above 0 and up to 1"
        ) from None
    return tuple(found)


def _task(text: str) -> str:
    if not text or len(text) > _MOST_TASK or not text.isprintable():
        raise GraphError("task: expected the name of a task")
    return text


def _options(text: str) -> Mapping[str, Any]:
    def refuse(_: str) -> NoReturn:
        raise ValueError

    try:
        found = json.loads(text, parse_constant=refuse)
        if type(found) is not dict or text_of(found) != text:
            raise ValueError
    except (ValueError, RecursionError):
        raise GraphError("options: expected a task's options as canonical JSON") from None
    return found


def _name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise GraphError(f"a value is called {printable(text, 40)!r}; names are like w, x1, keep_0")
    return text


def _dtype(number: int, name: str) -> np.dtype[Any]:
    found = ELEMENT_TYPES.get(number)
    if found is None:
        raise GraphError(f"value {name}: elements of ONNX's type {number} are not known")
    return found


def _shape(sizes: list[int], name: str, bounds: Bounds) -> tuple[int, ...]:
    if len(sizes) > bounds.rank or not all(1 <= size < _LARGEST for size in sizes):
        raise GraphError(
            f"value {name}: at most {bounds.rank} dimensions, each a number from 1, are allowed"
        )
    return tuple(sizes)


def _types(
    given: Any, expected: tuple[str, ...], what: str, bounds: Bounds
) -> dict[str, TensorType]:
    if tuple(each.name for each in given) != expected:
        raise GraphError(f"{what} other than {', '.join(expected)}, in this order")
    return {
        each.name: TensorType(
            _dtype(each.type.tensor_type.elem_type, each.name),
            _shape([each.dim_value for each in each.type.tensor_type.shape.dim], each.name, bounds),
        )
        for each in given
    }


def _constants(given: Any, bounds: Bounds) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    total = 0
    for tensor in given:
        name = _name(tensor.name)
        dtype = _dtype(tensor.data_type, name)
        shape = _shape(list(tensor.dims), name, bounds)
        if len(tensor.raw_data) != math.prod(shape) * dtype.itemsize:
            raise GraphError(f"constant {name} has another number of bytes than its shape says")
        total += len(tensor.raw_data)
        if name in found or total > bounds.constants:
            raise GraphError(
                f"constant {name} comes twice, or there are more than {bounds.constants} bytes "
                f"of constants"
            )
        array = np.frombuffer(tensor.raw_data, dtype).reshape(shape)
        if dtype == np.bool_ and array.view(np.uint8).max() > 1:
            raise GraphError(f"constant {name} has truth values that are neither 0 nor 1")
        found[name] = array
    return found


def _node(given: Any) -> Node:
    operator = OPERATORS.get(given.op_type)
    if operator is None:
        raise GraphError(f"operator {printable(given.op_type, 40)} is not allowed")
    low, high = operator.inputs
    if not low <= len(given.input) <= high or not 1 <= len(given.output) <= operator.outputs:
        raise GraphError(
            f"operator {given.op_type} with {len(given.input)} inputs and {len(given.output)} "
            f"outputs"
        )
    attributes = {each.name: _attribute(given.op_type, each) for each in given.attribute}
    wanted = dict(operator.attributes)
    if (
        len(attributes) != len(given.attribute)
        or {name: type(value) for name, value in attributes.items()} != wanted
    ):
        expected = ", ".join(wanted) or "none"
        raise GraphError(f"operator {given.op_type}: its attributes are, once each: {expected}")
    return Node(
        operator=given.op_type,
        inputs=tuple(_name(each) for each in given.input),
        outputs=tuple(_name(each) for each in given.output),
        attributes=attributes,
    )


def _attribute(operator: str, given: Any) -> Attribute:
    if given.type == INT and -_LARGEST < given.i < _LARGEST:
        return int(given.i)
    if given.type == STRING and given.s in (b"none", b"add"):
        return str(given.s, "ascii")
    if given.type == INTS and len(given.ints) <= 32:
        values = tuple(given.ints)
        if all(-_LARGEST < each < _LARGEST for each in values):
            return values
    raise GraphError(
        f"operator {operator}: attribute {printable(given.name, 40)!r} has a value that is not "
        f"allowed"
    )
