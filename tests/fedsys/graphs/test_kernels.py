"""Each operator against torch and against ONNX's own reference evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from fedsys.graphs import Node, TensorType
from fedsys.graphs.inference import Value
from fedsys.graphs.kernels import KERNELS
from fedsys.graphs.kernels.elementwise import erf
from fedsys.graphs.operators import OPERATORS

Array = NDArray[Any]
_RNG = np.random.default_rng(7)


def _floats(*shape: int, low: float = -2, high: float = 2) -> Array:
    return _RNG.uniform(low, high, shape).astype(np.float32)


def _ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def _scalar(value: float, dtype: Any = np.int64) -> Array:
    return np.array(value, dtype)


@dataclass(frozen=True)
class Case:
    """An operator on example inputs, and what torch makes of the tensors among them."""

    operator: str
    inputs: list[Array]
    torch: Callable[..., Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    onnx: bool = True
    note: str = ""

    def __str__(self) -> str:
        return f"{self.operator}-{self.note}" if self.note else self.operator


X, Y = _floats(3, 4), _floats(3, 4)
POSITIVE = _floats(3, 4, low=0.1)
B, C = X > 0, Y > 0
STACK_A, STACK_B = _floats(2, 3, 4), _floats(2, 4, 5)
IMAGE = _floats(2, 4, 7, 6)
WEIGHT, GROUPED, BIAS = _floats(6, 4, 3, 3), _floats(6, 2, 3, 3), _floats(6)
BACK, BACK_GROUPED = _floats(4, 6, 3, 3), _floats(4, 3, 3, 3)
NUMBERS = np.array([[0, 2, 1], [2, 2, 0]], dtype=np.int64)


def _unary(name: str, function: Callable[..., Any], x: Array = X) -> Case:
    return Case(name, [x], function)


def _binary(name: str, function: Callable[..., Any], a: Array = X, b: Array = Y) -> Case:
    return Case(name, [a, b], function)


def _window(kernel: tuple[int, ...], **given: Any) -> dict[str, Any]:
    rank = len(kernel)
    found: dict[str, Any] = {"strides": (1,) * rank, "pads": (0,) * (2 * rank)}
    return {**found, "kernel_shape": kernel, **given}


def _conv(weight: Array, *, group: int = 1, **given: Any) -> dict[str, Any]:
    base = _window(weight.shape[2:], dilations=(1, 1), group=group)
    return {**base, **given}


def _pooled_places(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """torch counts places within a plane, ONNX through the whole tensor."""
    found, where = functional.max_pool2d(x, 3, 2, 1, return_indices=True)
    planes = torch.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], 1, 1)
    return found, where + planes * x.shape[2] * x.shape[3]


def _scattered(x: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return x.scatter(1, index, source)


def _rows_added(x: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return x.index_put((index[:, 0],), rows, accumulate=True)


ELEMENTWISE = [
    _unary("Abs", torch.abs),
    _unary("Cos", torch.cos),
    _unary("Erf", torch.erf),
    _unary("Exp", torch.exp),
    _unary("Floor", torch.floor),
    _unary("Identity", lambda x: x),
    _unary("Log", torch.log, POSITIVE),
    _unary("Neg", torch.neg),
    _unary("Not", torch.logical_not, B),
    _unary("Reciprocal", torch.reciprocal, POSITIVE),
    _unary("Relu", torch.relu),
    _unary("Sigmoid", torch.sigmoid),
    _unary("Sign", torch.sign),
    _unary("Sin", torch.sin),
    _unary("Softplus", functional.softplus),
    _unary("Sqrt", torch.sqrt, POSITIVE),
    _unary("Tanh", torch.tanh),
    _binary("Add", torch.add),
    _binary("Sub", torch.sub),
    _binary("Mul", torch.mul, X, _floats(4)),
    _binary("Div", torch.div, X, POSITIVE),
    _binary("Max", torch.maximum),
    _binary("Min", torch.minimum),
    _binary("Pow", torch.pow, POSITIVE, Y),
    _binary("Equal", torch.eq, NUMBERS, NUMBERS[:, ::-1].copy()),
    _binary("Greater", torch.gt),
    _binary("GreaterOrEqual", torch.ge, X, X),
    _binary("Less", torch.lt),
    _binary("LessOrEqual", torch.le, X, X),
    _binary("And", torch.logical_and, B, C),
    _binary("Or", torch.logical_or, B, C),
    Case("Where", [B, X, Y], torch.where),
    Case("Cast", [X * 3], lambda x: x.to(torch.int64), {"to": 7}, note="to integers"),
    Case("Cast", [B], lambda x: x.to(torch.float32), {"to": 1}, note="of truth values"),
    Case("Softmax", [X], lambda x: x.softmax(1), {"axis": -1}),
    Case("LogSoftmax", [X * 5], lambda x: x.log_softmax(0), {"axis": 0}),
]
LAYOUT = [
    Case("ReduceSum", [X, _ints(0, 1)], lambda x: x.sum((0, 1)), {"keepdims": 0}),
    Case("ReduceMean", [X, _ints(-1)], lambda x: x.mean(1, keepdim=True), {"keepdims": 1}),
    Case("ReduceMax", [X, _ints(0)], lambda x: x.amax(0), {"keepdims": 0}),
    Case("ReduceMin", [X, _ints(1)], lambda x: x.amin(1), {"keepdims": 0}),
    Case("ArgMax", [X], lambda x: x.argmax(1), {"axis": 1, "keepdims": 0}),
    Case("Reshape", [X.T.copy().T, _ints(2, 6)], lambda x: x.reshape(2, 6)),
    Case("Expand", [_floats(3, 1), _ints(2, 3, 4)], lambda x: x.expand(2, 3, 4)),
    Case("Transpose", [STACK_A], lambda x: x.permute(2, 0, 1), {"perm": (2, 0, 1)}),
    Case("Concat", [X, Y, X], lambda *x: torch.cat((x[0], x[1], x[0]), 1), {"axis": 1}),
    Case("Split", [X, _ints(1, 3)], lambda x: x.split([1, 3], 1), {"axis": 1}, outputs=2),
    Case(
        "Slice",
        [IMAGE, _ints(1, 0), _ints(6, 5), _ints(2, 3), _ints(2, 3)],
        lambda x: x[:, :, 1:6:2, 0:5:3],
    ),
    Case(
        "Pad",
        [X, _ints(0, 1, 2, 3), _scalar(0.5, np.float32)],
        lambda x, *_: functional.pad(x, (1, 3, 0, 2), value=0.5),
    ),
    Case("Tile", [X, _ints(2, 3)], lambda x: x.repeat(2, 3)),
    Case("Trilu", [STACK_A, _scalar(1)], lambda x: x.triu(1), {"upper": 1}, note="upper"),
    Case("Trilu", [STACK_A, _scalar(-1)], lambda x: x.tril(-1), {"upper": 0}, note="lower"),
]
INDEXING = [
    Case("Gather", [X, NUMBERS], lambda x: x[torch.from_numpy(NUMBERS)], {"axis": 0}),
    Case("Gather", [X, _scalar(-1)], lambda x: x[:, -1], {"axis": 1}, note="one"),
    Case(
        "GatherElements",
        [X[:2].copy(), NUMBERS],
        lambda x: x.gather(1, torch.from_numpy(NUMBERS)),
        {"axis": 1},
    ),
    Case("GatherND", [X, _ints(0, 1, 2, 3).reshape(2, 2)], lambda x: x[[0, 2], [1, 3]]),
    Case(
        "ScatterElements",
        [X, NUMBERS[:, :2].copy() * [[1, 0], [0, 1]] + [[0, 1], [3, 0]], Y[:2, :2].copy()],
        lambda x, i, u: _scattered(x, i, u),
        {"axis": 1, "reduction": "none"},
        note="replace",
    ),
    Case(
        "ScatterElements",
        [_floats(9), _ints(0, 3, 3, -1, 0), _floats(5)],
        lambda x, i, u: x.scatter_add(0, i % 9, u),
        {"axis": 0, "reduction": "add"},
        note="add in a vector",
    ),
    Case(
        "ScatterElements",
        [X, NUMBERS, Y[:2, :3].copy()],
        lambda x, i, u: x.scatter_add(0, i, u),
        {"axis": 0, "reduction": "add"},
        note="add",
    ),
    Case(
        "ScatterND",
        [_floats(5, 4), _ints(1, 3, 1).reshape(3, 1), X],
        _rows_added,
        {"reduction": "add"},
        note="add",
    ),
    Case(
        "ScatterND",
        [_floats(5, 4), _ints(1, 3, 0).reshape(3, 1), X],
        lambda x, i, u: x.index_put((i[:, 0],), u),
        {"reduction": "none"},
        note="replace",
    ),
    Case(
        "OneHot",
        [NUMBERS - 1, _scalar(3), np.array([0, 2], np.float32)],
        lambda i, v: 2.0 * functional.one_hot(i % 3, 3).float(),
        {"axis": -1},
    ),
]
PRODUCTS = [
    Case("MatMul", [STACK_A, STACK_B], torch.matmul),
    Case("MatMul", [STACK_A, STACK_B[0]], torch.matmul, note="broadcast"),
    Case("Gemm", [X, Y], lambda a, b: a @ b.T, {"transA": 0, "transB": 1}, note="B transposed"),
    Case(
        "Gemm",
        [X, Y, _floats(4)],
        lambda a, b, c: a.T @ b + c,
        {"transA": 1, "transB": 0},
        note="A transposed, sum",
    ),
]
WINDOWS = [
    Case("Conv", [IMAGE, WEIGHT, BIAS], functional.conv2d, _conv(WEIGHT)),
    Case(
        "Conv",
        [IMAGE, WEIGHT],
        lambda x, w: functional.conv2d(x, w, None, 2, 1, (2, 1)),
        _conv(WEIGHT, strides=(2, 2), pads=(1, 1, 1, 1), dilations=(2, 1)),
        note="strides, padding, dilation",
    ),
    Case(
        "Conv",
        [IMAGE, GROUPED, BIAS],
        lambda x, w, b: functional.conv2d(x, w, b, groups=2),
        _conv(GROUPED, group=2),
        note="groups",
    ),
    Case(
        "Conv",
        [_floats(2, 4, 20, 20), WEIGHT, BIAS],
        functional.conv2d,
        _conv(WEIGHT),
        note="large",
    ),
    Case(
        "Conv",
        [_floats(2, 3, 9), _floats(5, 3, 4)],
        lambda x, w: functional.conv1d(x, w, None, 2),
        {**_window((4,), strides=(2,)), "dilations": (1,), "group": 1},
        note="one dimension",
    ),
    Case(
        "ConvTranspose",
        [IMAGE, BACK],
        functional.conv_transpose2d,
        _conv(BACK, output_padding=(0, 0)),
    ),
    Case(
        "ConvTranspose",
        [IMAGE, BACK_GROUPED, BIAS],
        lambda x, w, b: functional.conv_transpose2d(x, w, b, 2, 1, 1, 2, (1, 2)),
        _conv(
            BACK_GROUPED,
            group=2,
            strides=(2, 2),
            pads=(1, 1, 1, 1),
            dilations=(1, 2),
            output_padding=(1, 1),
        ),
        note="everything",
        onnx=False,  # its evaluator cannot have groups together with padding of the output
    ),
    Case(
        "MaxPool",
        [IMAGE],
        lambda x: functional.max_pool2d(x, 2),
        _window((2, 2), strides=(2, 2), dilations=(1, 1)),
    ),
    Case(
        "MaxPool",
        [IMAGE],
        _pooled_places,
        _window((3, 3), strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1)),
        outputs=2,
        note="places",
    ),
    Case(
        "AveragePool",
        [IMAGE],
        lambda x: functional.avg_pool2d(x, 3, 2, 1),
        {**_window((3, 3), strides=(2, 2), pads=(1, 1, 1, 1)), "count_include_pad": 1},
    ),
    Case(
        "AveragePool",
        [IMAGE],
        lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        {**_window((3, 3), pads=(1, 1, 1, 1)), "count_include_pad": 0},
        note="without padding",
    ),
]
CASES = [*ELEMENTWISE, *LAYOUT, *INDEXING, *PRODUCTS, *WINDOWS]


def _is_static(case: Case, at: int) -> bool:
    """Whether an input says a shape or an axis, which the graph must give as a constant."""
    if case.operator in ("Reshape", "Expand", "Slice", "Split", "Tile", "Trilu"):
        return at > 0
    return (case.operator in ("Pad", "OneHot") and at == 1) or (
        case.operator.startswith("Reduce") and at == 1
    )


def _run(case: Case) -> list[Array]:
    """What our kernel makes, checked against what inference said that it would."""
    node = Node(
        operator=case.operator,
        inputs=tuple(f"i{at}" for at in range(len(case.inputs))),
        outputs=tuple(f"o{at}" for at in range(case.outputs)),
        attributes=case.attributes,
    )
    values = [
        Value(TensorType(each.dtype, each.shape), each if _is_static(case, at) else None)
        for at, each in enumerate(case.inputs)
    ]
    inferred = OPERATORS[case.operator].infer(values, case.attributes, case.outputs)
    made = KERNELS[case.operator](node, values, inferred.outputs)(*case.inputs)
    found = [np.asarray(each) for each in (made if case.outputs > 1 else [made])]
    assert [TensorType(each.dtype, each.shape) for each in found] == list(inferred.outputs)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_is_torchs(case: Case) -> None:
    given_ = [
        torch.from_numpy(np.ascontiguousarray(each))
        for at, each in enumerate(case.inputs)
        if not _is_static(case, at)
    ]
    if case.operator.startswith("Gather"):
        given_ = given_[:1]  # torch's numbers are in the function
    made = case.torch(*given_)
    expected = list(made) if case.outputs > 1 else [made]
    for found, wanted in zip(_run(case), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case.onnx], ids=str)
def test_an_operator_is_onnxs(case: Case) -> None:
    onnx = pytest.importorskip("onnx", reason="needs `pip install onnx`")
    from onnx.reference import ReferenceEvaluator

    names = [f"i{at}" for at in range(len(case.inputs))]
    results = [f"o{at}" for at in range(case.outputs)]
    node = onnx.helper.make_node(case.operator, names, results, **case.attributes)
    found = _run(case)
    kinds = {
        name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        for name, array in zip([*names, *results], [*case.inputs, *found], strict=True)
    }
    described = [
        onnx.helper.make_tensor_value_info(name, kinds[name], array.shape)
        for name, array in zip([*names, *results], [*case.inputs, *found], strict=True)
    ]
    graph = onnx.helper.make_graph([node], "one", described[: len(names)], described[len(names) :])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    expected = ReferenceEvaluator(model).run(None, dict(zip(names, case.inputs, strict=True)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


def test_every_operator_has_a_case() -> None:
    assert {case.operator for case in CASES} == set(OPERATORS) == set(KERNELS)


@given(st.floats(min_value=-8, max_value=8))
def test_erf_is_the_error_function_to_the_last_places(x: float) -> None:
    assert abs(float(erf(np.array(x))) - math.erf(x)) < 5e-16


def test_a_number_outside_an_axis_is_an_error_not_a_read_elsewhere() -> None:
    for operator, attributes in (
        ("Gather", {"axis": 0}),
        ("GatherElements", {"axis": 0}),
        ("GatherND", {}),
    ):
        node = Node(operator=operator, inputs=("x", "i"), outputs=("o",), attributes=attributes)
        index = np.full((1, 1), 3, dtype=np.int64)
        values = [Value(TensorType(each.dtype, each.shape)) for each in (X, index)]
        made = OPERATORS[operator].infer(values, attributes, 1).outputs
        with pytest.raises(IndexError):
            KERNELS[operator](node, values, made)(X, index)


@pytest.mark.parametrize("reduction", ["none", "add"])
@pytest.mark.parametrize("number", [9, -10, 2**60])
def test_a_number_outside_an_axis_is_never_written(reduction: str, number: int) -> None:
    attributes = {"axis": 0, "reduction": reduction}
    node = Node(
        operator="ScatterElements", inputs=("x", "i", "u"), outputs=("o",), attributes=attributes
    )
    arrays = [_floats(9), _ints(number), _floats(1)]
    values = [Value(TensorType(each.dtype, each.shape)) for each in arrays]
    made = OPERATORS["ScatterElements"].infer(values, attributes, 1).outputs
    with pytest.raises(IndexError):
        KERNELS["ScatterElements"](node, values, made)(*arrays)
