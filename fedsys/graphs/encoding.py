"""From a training graph to the one file that says it: equal graphs have equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.graphs import training_graph_pb2 as pb
from fedsys.graphs.graph import ELEMENT_TYPES, Attribute, TensorType, TrainingGraph

__all__ = ["FORMAT", "INT", "INTS", "IR_VERSION", "OPSET", "STRING", "encode"]

OPSET = 18
IR_VERSION = 8
FORMAT = "1"
"""Version of this use of ONNX: which inputs, outputs and facts there are."""

INT, STRING, INTS = 2, 3, 7
"""ONNX's numbers of the types of attributes."""

_NUMBERS = {dtype: number for number, dtype in ELEMENT_TYPES.items()}


def encode(graph: TrainingGraph) -> bytes:
    """The graph's file. A device accepts no other spelling of the same graph.

    Protobuf fields are written in the order of their numbers, attributes and facts sorted by name,
    constants and nodes as they stand.
    """
    model = pb.ModelProto(ir_version=IR_VERSION, producer_name="fedsys")
    model.opset_import.add(domain="", version=OPSET)
    facts = {
        "fedsys.graph": FORMAT,
        "keep": json.dumps(list(graph.keep)),
        "kind": graph.kind,
        "options": text_of(graph.options),
        "task": graph.task,
    }
    for key, value in sorted(facts.items()):
        model.metadata_props.add(key=key, value=value)
    model.graph.name = "step"
    for name, array in graph.constants.items():
        model.graph.initializer.append(_constant(name, array))
    for name, given in graph.inputs.items():
        _describe(model.graph.input.add(), name, given)
    for name, made in graph.outputs.items():
        _describe(model.graph.output.add(), name, made)
    for node in graph.nodes:
        added = model.graph.node.add(
            op_type=node.operator, input=list(node.inputs), output=list(node.outputs)
        )
        for name, attribute in sorted(node.attributes.items()):
            added.attribute.append(_attribute(name, attribute))
    encoded: bytes = model.SerializeToString(deterministic=True)
    return encoded


def text_of(options: Mapping[str, Any]) -> str:
    """A task's options as JSON: sorted keys, no blanks, no NaN."""
    return json.dumps(dict(options), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _constant(name: str, array: NDArray[Any]) -> Any:
    return pb.TensorProto(
        name=name,
        dims=array.shape,
        data_type=_NUMBERS[array.dtype],
        raw_data=np.ascontiguousarray(array).tobytes(),
    )


def _describe(info: Any, name: str, type_: TensorType) -> None:
    info.name = name
    info.type.tensor_type.elem_type = _NUMBERS[type_.dtype]
    info.type.tensor_type.shape.SetInParent()
    for size in type_.shape:
        info.type.tensor_type.shape.dim.add(dim_value=size)


def _attribute(name: str, value: Attribute) -> Any:
    if isinstance(value, int):
        return pb.AttributeProto(name=name, type=INT, i=value)
    if isinstance(value, str):
        return pb.AttributeProto(name=name, type=STRING, s=value.encode("ascii"))
    return pb.AttributeProto(name=name, type=INTS, ints=value)
