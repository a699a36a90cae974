"""Small training graphs that need no torch, and inputs for any graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.graphs import Node, TensorType, TrainingGraph

FLOAT, LONG, BOOL = np.dtype("<f4"), np.dtype("<i8"), np.dtype("?")


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> Node:
    """An operator, names separated by blanks."""
    return Node(
        operator=operator,
        inputs=tuple(inputs.split()),
        outputs=tuple(outputs.split()),
        attributes=attributes,
    )


def softmax_regression(
    batch: int = 4, features: int = 6, classes: int = 3, *, dropout: bool = False
) -> TrainingGraph:
    """The gradient of cross-entropy on linear scores, written by hand: x^T (p - onehot(y))."""
    size = features * classes
    inputs = {
        "weights": TensorType(FLOAT, (size,)),
        "x": TensorType(FLOAT, (batch, features)),
        "y": TensorType(LONG, (batch,)),
        "example_weights": TensorType(FLOAT, (batch,)),
    }
    nodes = [
        node("Reshape", "weights c_matrix", "w"),
        node("Identity", "x", "seen"),
        node("Gemm", "seen w", "scores", transA=0, transB=0),
        node("LogSoftmax", "scores", "logp", axis=1),
        node("OneHot", "y c_depth c_onoff", "hot", axis=-1),
        node("Mul", "logp hot", "picked"),
        node("ReduceSum", "picked c_last", "each", keepdims=0),
        node("Neg", "each", "losses"),
        node("Mul", "losses example_weights", "weighted"),
        node("ReduceSum", "weighted c_first", "loss", keepdims=0),
        node("Exp", "logp", "p"),
        node("Sub", "p hot", "error"),
        node("Reshape", "example_weights c_column", "column"),
        node("Mul", "error column", "scaled"),
        node("Gemm", "seen scaled", "matrix", transA=1, transB=0),
        node("Reshape", "matrix c_flat", "gradient"),
    ]
    if dropout:
        inputs["keep_0"] = TensorType(BOOL, (batch, features))
        nodes[1:2] = [
            node("Cast", "keep_0", "mask", to=1),
            node("Mul", "x mask", "kept"),
            node("Mul", "kept c_scale", "seen"),
        ]
    constants: dict[str, NDArray[Any]] = {
        "c_matrix": np.array([features, classes]),
        "c_depth": np.array(classes),
        "c_onoff": np.array([0, 1], np.float32),
        "c_last": np.array([1]),
        "c_first": np.array([0]),
        "c_column": np.array([batch, 1]),
        "c_flat": np.array([size]),
    }
    if dropout:
        constants["c_scale"] = np.array(1 / 0.75, np.float32)
    return TrainingGraph(
        task="sample",
        options={"a": 1},
        kind="gradient",
        keep=(0.75,) if dropout else (),
        inputs=inputs,
        constants=constants,
        nodes=tuple(nodes),
        outputs={"gradient": TensorType(FLOAT, (size,)), "loss": TensorType(FLOAT, ())},
    )


def inputs_of(graph: TrainingGraph, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random inputs of a graph's types; classes and symbols are small numbers."""
    rng = np.random.default_rng(seed)
    found: dict[str, NDArray[Any]] = {}
    for name, type_ in graph.inputs.items():
        few = min(type_.count, 10_000)  # repeated, so that a large input takes its size once
        drawn = rng.standard_normal(few) if type_.dtype.kind == "f" else rng.integers(0, 2, few)
        found[name] = np.resize(drawn.astype(type_.dtype), type_.shape)
    return found
