from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedsys.graphs import (
    GraphError,
    Interpreter,
    Limits,
    TensorType,
    TrainingGraph,
    encode,
    vet,
)
from fedsys.graphs import training_graph_pb2 as pb
from fedsys.graphs.decoding import Bounds
from tests.fedsys.graphs.samples import FLOAT, inputs_of, node, softmax_regression


def _model(graph: TrainingGraph | None = None) -> Any:
    model = pb.ModelProto()
    model.ParseFromString(encode(graph or softmax_regression()))
    return model


def _with(**change: Any) -> bytes:
    return encode(dataclasses.replace(softmax_regression(), **change))


def _appended(*nodes: Any, **constants: Any) -> bytes:
    graph = softmax_regression()
    return _with(
        nodes=(*graph.nodes, *nodes),
        constants={**graph.constants, **{name: np.array(v) for name, v in constants.items()}},
    )


@pytest.mark.parametrize("dropout", [False, True])
def test_a_graph_survives_its_encoding_and_computes_what_it_says(dropout: bool) -> None:
    graph = softmax_regression(dropout=dropout)
    raw = encode(graph)
    vetted = vet(raw)
    assert vetted.encoded == raw
    assert vetted.sha256 == hashlib.sha256(raw).hexdigest()
    assert (vetted.graph.dimension, vetted.graph.batch_size) == (18, 4)
    inputs = inputs_of(graph)
    gradient, loss = Interpreter(vetted).run(inputs)
    seen = inputs["x"] * inputs["keep_0"] / np.float32(0.75) if dropout else inputs["x"]
    scores = seen @ inputs["weights"].reshape(6, 3)
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    hot = np.eye(3)[inputs["y"]]
    weight = inputs["example_weights"]
    np.testing.assert_allclose(loss, -(weight * np.log((p * hot).sum(1))).sum(), rtol=1e-5)
    expected = seen.T @ ((p - hot) * weight[:, None])
    np.testing.assert_allclose(gradient, expected.reshape(-1), rtol=1e-4, atol=1e-6)


def test_onnx_reads_the_file_and_finds_nothing_wrong() -> None:
    onnx = pytest.importorskip("onnx", reason="needs `pip install onnx`")
    from onnx.reference import ReferenceEvaluator

    graph = softmax_regression(dropout=True)
    model = onnx.load_from_string(encode(graph))
    onnx.checker.check_model(model, full_check=True)
    assert model.SerializeToString(deterministic=True) == encode(graph)
    inputs = inputs_of(graph)
    for ours, theirs in zip(
        Interpreter(vet(encode(graph))).run(inputs),
        ReferenceEvaluator(model).run(None, inputs),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_outputs_share_no_memory_with_inputs() -> None:
    graph = softmax_regression()
    nodes = (*graph.nodes[:-1], node("Identity", "weights", "gradient"))
    vetted = vet(encode(dataclasses.replace(graph, nodes=nodes)))
    inputs = inputs_of(graph)
    gradient, _ = Interpreter(vetted).run(inputs)
    assert not np.shares_memory(gradient, inputs["weights"])


def test_an_input_of_another_type_is_refused_when_it_runs() -> None:
    step = Interpreter(vet(encode(softmax_regression())))
    inputs = inputs_of(softmax_regression())
    with pytest.raises(GraphError, match=r"input x is float64 \[4, 6\]; expected float32"):
        step.run({**inputs, "x": inputs["x"].astype(np.float64)})
    with pytest.raises(GraphError, match="missing or unknown: y"):
        step.run({name: array for name, array in inputs.items() if name != "y"})


def _set(path: Callable[[Any], None]) -> bytes:
    model = _model()
    path(model)
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def _unknown_field(_: Any) -> bytes:
    # Field 25 of ModelProto holds ONNX's functions.
    return encode(softmax_regression()) + bytes([25 << 3 & 0x7F | 2 | 0x80, 25 >> 4, 1, 0])


def _unknown_in_a_node(_: Any) -> bytes:
    raw = pb.NodeProto(op_type="Neg").SerializeToString() + b"\x3a\x01x"  # 7: another domain
    model = _model()
    body = pb.GraphProto()
    body.CopyFrom(model.graph)
    inner = pb.NodeProto()
    inner.ParseFromString(raw)
    model.graph.node.append(inner)
    whole: bytes = model.SerializeToString(deterministic=True)
    assert b"x" in whole
    return whole


HOSTILE: dict[str, tuple[Callable[[Any], bytes], str]] = {
    "no protobuf": (lambda _: b"\xff" * 40, "no ONNX model"),
    "empty": (lambda _: b"", "no training graph"),
    "functions": (_unknown_field, "fields that a training graph does not have"),
    "another domain": (_unknown_in_a_node, "fields that a training graph does not have"),
    "another opset": (
        lambda _: _set(lambda m: m.opset_import.add(domain="ai.onnx.ml", version=3)),
        "only operators of ONNX's standard domain",
    ),
    "another producer": (
        lambda _: _set(lambda m: setattr(m, "producer_name", "x")),
        "no training graph",
    ),
    "unknown metadata": (
        lambda _: _set(lambda m: m.metadata_props.add(key="x", value="y")),
        "metadata other than",
    ),
    "another spelling": (
        lambda _: _set(lambda m: m.graph.node[0].attribute.add(name="x", type=2)),
        "its attributes are",
    ),
    "another name of the graph": (
        lambda _: _set(lambda m: setattr(m.graph, "name", "x")),
        "spelled in another way",
    ),
    "an operator that reads files": (
        lambda _: _set(lambda m: setattr(m.graph.node[0], "op_type", "StringNormalizer")),
        "operator StringNormalizer is not allowed",
    ),
    "control flow": (
        lambda _: _set(lambda m: setattr(m.graph.node[0], "op_type", "Loop")),
        "operator Loop is not allowed",
    ),
    "a name that moves the cursor": (
        lambda _: _set(lambda m: m.graph.node[0].output.__setitem__(0, "\x1b[2J")),
        "a value is called",
    ),
    "a constant shorter than its shape": (
        lambda _: _set(lambda m: setattr(m.graph.initializer[0], "raw_data", b"")),
        "another number of bytes",
    ),
    "a dimension below 1": (
        lambda _: _set(
            lambda m: setattr(m.graph.input[1].type.tensor_type.shape.dim[0], "dim_value", 0)
        ),
        "each a number from 1",
    ),
    "batches of different sizes": (
        lambda _: _set(
            lambda m: setattr(m.graph.input[1].type.tensor_type.shape.dim[0], "dim_value", 5)
        ),
        "as many rows in both",
    ),
    "an output of another shape": (
        lambda _: _with(
            outputs={"gradient": TensorType(FLOAT, (17,)), "loss": TensorType(FLOAT, ())}
        ),
        "the outputs are not",
    ),
    "an output that nobody makes": (
        lambda _: _with(nodes=softmax_regression().nodes[:-1]),
        "output gradient is not made",
    ),
    "a value before it is made": (
        lambda _: _with(nodes=softmax_regression().nodes[::-1]),
        "does not come before it",
    ),
    "a value made twice": (lambda _: _appended(node("Neg", "x", "p")), "made twice"),
    "a shape that is computed": (
        lambda _: _appended(node("Reshape", "p y", "again")),
        "computed rather than given",
    ),
    "types that do not fit": (lambda _: _appended(node("Add", "x y", "v")), "types"),
    "a huge tensor": (
        lambda _: _appended(node("Expand", "loss c_big", "v"), c_big=[1 << 20, 1 << 20]),
        "MiB of memory",
    ),
    "a tensor beyond all numbers": (
        lambda _: _appended(node("Expand", "loss c_big", "v"), c_big=[2**31 - 1] * 8),
        "MiB of memory",
    ),
    "too many dimensions": (
        lambda _: _appended(node("Expand", "loss c_big", "v"), c_big=[1] * 9),
        "9 dimensions",
    ),
    "endless work": (
        lambda _: _appended(
            node("Expand", "loss c_big", "v"),
            *(node("MatMul", f"v{'' if i == 0 else i} v", f"v{i + 1}") for i in range(99)),
            c_big=[4000, 4000],
        ),
        "MFLOP|MiB",
    ),
    "a window of many elements": (
        lambda _: _appended(
            node("Expand", "loss c_big", "v"),
            node(
                "AveragePool",
                "v",
                "pooled",
                count_include_pad=1,
                kernel_shape=(1000, 1000),
                pads=(0, 0, 0, 0),
                strides=(1, 1),
            ),
            c_big=[1, 1, 1000, 1000],
        ),
        "the window is too large",
    ),
    "a truth value of 2": (
        lambda _: _with(
            constants={
                **softmax_regression().constants,
                "c_bool": np.array([2], np.uint8).view(np.bool_),
            }
        ),
        "neither 0 nor 1",
    ),
    "chances above 1": (lambda _: _with(keep=(1.5,)), "chances above 0 and up to 1"),
    "a task that moves the cursor": (lambda _: _with(task="\x1b[2J"), "the name of a task"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused_by_name(name: str) -> None:
    make, why = HOSTILE[name]
    with pytest.raises(GraphError, match=why):
        vet(make(None))


def test_limits_hold() -> None:
    raw = encode(softmax_regression())
    for limits, why in (
        (Limits(bounds=Bounds(file=100)), "at most 100 are read"),
        (Limits(bounds=Bounds(nodes=3)), "allowed are 1 to 3"),
        (Limits(bounds=Bounds(constants=8)), "more than 8 bytes"),
        (Limits(memory=100), "MiB of memory"),
        (Limits(work=10), "MFLOP"),
    ):
        with pytest.raises(GraphError, match=why):
            vet(raw, limits)


def test_memory_counts_what_a_view_holds_on_to() -> None:
    """A slice of a large value keeps the whole of it in memory."""
    large = [1 << 20]
    graph = softmax_regression()

    def cost(*more: Any) -> int:
        constants = {
            **graph.constants,
            "c_large": np.array(large),
            "c_0": np.array([0]),
            "c_1": np.array([1]),
        }
        nodes = (*more, *graph.nodes)
        made = dataclasses.replace(graph, nodes=nodes, constants=constants)
        return vet(encode(made)).memory

    def held(at: int) -> list[Any]:
        return [
            node("Expand", "c_zero c_large", f"e{at}"),
            node("Neg", f"e{at}", f"n{at}"),
            node("Slice", f"n{at} c_0 c_1 c_0 c_1", f"s{at}"),
        ]

    graph = dataclasses.replace(
        graph, constants={**graph.constants, "c_zero": np.array(0, np.float32)}
    )
    one, two = held(0), held(1)
    used = node("Add", "s0 s1", "both")
    apart = cost(*one, *two) - cost(*one)
    together = cost(*one, *two, used) - cost(*one)
    assert together - apart >= 4 << 20


def test_equal_graphs_have_equal_bytes_whatever_the_order_of_attributes() -> None:
    graph = softmax_regression()
    turned = tuple(
        dataclasses.replace(each, attributes=dict(reversed(list(each.attributes.items()))))
        for each in graph.nodes
    )
    assert encode(graph) == encode(dataclasses.replace(graph, nodes=turned))
