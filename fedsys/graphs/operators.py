"""The operators that a training graph may use: an allow-list.

Each has a fixed set of attributes (ONNX's defaults are written out in a training graph), bounds on
the number of its inputs and outputs, and a function that infers the outputs' types, the work and
the memory from the inputs' types alone. `fedsys.graphs.kernels` has the arithmetic, under the same
names. Meanings are those of https://onnx.ai/onnx/operators at opset 18.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedsys.graphs import inference, window_inference
from fedsys.graphs.inference import Infer

__all__ = ["OPERATORS", "Operator"]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One allowed operator.

    Attributes:
        infer: types, work and memory of its outputs.
        inputs: the least and the most inputs.
        outputs: the most outputs; only ``Split`` and ``MaxPool`` have more than one.
        attributes: the type of each; a node has all of them and no others.
        view: whether its outputs may share the memory of its first input.
    """

    infer: Infer
    inputs: tuple[int, int] = (1, 1)
    outputs: int = 1
    attributes: Mapping[str, type] = field(default_factory=dict)
    view: bool = False


_MANY = 8192
_TRANSCENDENTAL = (
    "Cos",
    "Erf",
    "Exp",
    "Log",
    "Reciprocal",
    "Sigmoid",
    "Sin",
    "Softplus",
    "Sqrt",
    "Tanh",
)
_CONV = {"dilations": tuple, "group": int, "kernel_shape": tuple, "pads": tuple, "strides": tuple}

OPERATORS: Mapping[str, Operator] = {
    **{
        name: Operator(infer=inference.elementwise(inference.FLOATS, work=10))
        for name in _TRANSCENDENTAL
    },
    **{
        name: Operator(infer=inference.elementwise(inference.SIGNED))
        for name in ("Abs", "Neg", "Relu", "Sign")
    },
    "Floor": Operator(infer=inference.elementwise(inference.FLOATS)),
    "Not": Operator(infer=inference.elementwise(inference.TRUTH)),
    "Identity": Operator(infer=inference.elementwise(inference.ANY), view=True),
    "Cast": Operator(infer=inference.cast, attributes={"to": int}),
    **{
        name: Operator(infer=inference.broadcast(inference.NUMBERS), inputs=(2, 2))
        for name in ("Add", "Max", "Min", "Mul", "Sub")
    },
    **{
        name: Operator(infer=inference.broadcast(inference.FLOATS, work=10), inputs=(2, 2))
        for name in ("Div", "Pow")
    },
    **{
        name: Operator(infer=inference.broadcast(inference.NUMBERS, truth=True), inputs=(2, 2))
        for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    },
    "Equal": Operator(infer=inference.broadcast(inference.ANY, truth=True), inputs=(2, 2)),
    **{
        name: Operator(infer=inference.broadcast(inference.TRUTH), inputs=(2, 2))
        for name in ("And", "Or")
    },
    "Where": Operator(infer=inference.where, inputs=(3, 3)),
    **{
        name: Operator(infer=inference.softmax, attributes={"axis": int})
        for name in ("LogSoftmax", "Softmax")
    },
    **{
        name: Operator(infer=inference.reduce, inputs=(2, 2), attributes={"keepdims": int})
        for name in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
    },
    "ArgMax": Operator(infer=inference.arg_max, attributes={"axis": int, "keepdims": int}),
    "Reshape": Operator(infer=inference.reshape, inputs=(2, 2), view=True),
    "Expand": Operator(infer=inference.expand, inputs=(2, 2), view=True),
    "Transpose": Operator(infer=inference.transpose, attributes={"perm": tuple}, view=True),
    "Slice": Operator(infer=inference.slice_, inputs=(5, 5), view=True),
    "Split": Operator(
        infer=inference.split, inputs=(2, 2), outputs=_MANY, attributes={"axis": int}, view=True
    ),
    "Concat": Operator(infer=inference.concat, inputs=(1, _MANY), attributes={"axis": int}),
    "Pad": Operator(infer=inference.pad, inputs=(3, 3)),
    "Tile": Operator(infer=inference.tile, inputs=(2, 2)),
    "Trilu": Operator(infer=inference.trilu, inputs=(2, 2), attributes={"upper": int}),
    "Gather": Operator(infer=inference.gather, inputs=(2, 2), attributes={"axis": int}),
    "GatherElements": Operator(
        infer=inference.gather_elements, inputs=(2, 2), attributes={"axis": int}
    ),
    "GatherND": Operator(infer=inference.gather_nd, inputs=(2, 2)),
    "ScatterElements": Operator(
        infer=inference.scatter_elements, inputs=(3, 3), attributes={"axis": int, "reduction": str}
    ),
    "ScatterND": Operator(infer=inference.scatter_nd, inputs=(3, 3), attributes={"reduction": str}),
    "OneHot": Operator(infer=inference.one_hot, inputs=(3, 3), attributes={"axis": int}),
    "MatMul": Operator(infer=inference.matmul, inputs=(2, 2)),
    "Gemm": Operator(
        infer=inference.gemm, inputs=(2, 3), attributes={"transA": int, "transB": int}
    ),
    "Conv": Operator(infer=window_inference.convolution, inputs=(2, 3), attributes=_CONV),
    "ConvTranspose": Operator(
        infer=window_inference.transposed_convolution,
        inputs=(2, 3),
        attributes={**_CONV, "output_padding": tuple},
    ),
    "MaxPool": Operator(
        infer=window_inference.max_pool,
        outputs=2,
        attributes={"dilations": tuple, "kernel_shape": tuple, "pads": tuple, "strides": tuple},
    ),
    "AveragePool": Operator(
        infer=window_inference.average_pool,
        attributes={
            "count_include_pad": int,
            "kernel_shape": tuple,
            "pads": tuple,
            "strides": tuple,
        },
    ),
}
"""By ONNX's name."""
