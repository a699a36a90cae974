"""Matrix products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsys.graphs.graph import Node, TensorType
from fedsys.graphs.inference import Value
from fedsys.graphs.kernels.base import Array, Kernel, Make, always

__all__ = ["KERNELS"]


def _gemm(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    left, right = bool(node.attributes["transA"]), bool(node.attributes["transB"])

    def product(a: Array, b: Array) -> Any:
        # BLAS takes a transposed matrix as it is: nothing is copied.
        return np.matmul(a.T if left else a, b.T if right else b)

    def with_sum(a: Array, b: Array, c: Array) -> Array:
        made: Array = product(a, b)
        made += c
        return made

    return product if len(inputs) == 2 else with_sum


KERNELS: Mapping[str, Make] = {"Gemm": _gemm, "MatMul": always(np.matmul)}
