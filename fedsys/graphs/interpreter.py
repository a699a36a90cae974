"""Runs a vetted graph with numpy: no runtime to install, nothing in it but array arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.graphs.errors import GraphError
from fedsys.graphs.kernels import KERNELS, Kernel
from fedsys.graphs.vetting import Vetted

__all__ = ["Interpreter"]

_Step = tuple[Kernel, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class Interpreter:
    """One graph, ready to run as often as wanted.

    Args:
        vetted: the graph.
    """

    def __init__(self, vetted: Vetted) -> None:
        graph = vetted.graph
        numbers = {name: at for at, name in enumerate(vetted.values)}
        self._inputs = {name: (numbers[name], type_) for name, type_ in graph.inputs.items()}
        self._outputs = [numbers[name] for name in graph.outputs]
        self._initial: list[Any] = [None] * len(numbers)
        for name, array in graph.constants.items():
            self._initial[numbers[name]] = array
        self._steps: list[_Step] = []
        last = {name: at for at, node in enumerate(graph.nodes) for name in node.inputs}
        kept = {*graph.inputs, *graph.constants, *graph.outputs}
        for at, node in enumerate(graph.nodes):
            made = [vetted.values[name].type for name in node.outputs]
            values = [vetted.values[name] for name in node.inputs]
            kernel = KERNELS[node.operator](node, values, made)
            over = {name for name in (*node.inputs, *node.outputs) if last.get(name, at) <= at}
            self._steps.append(
                (
                    kernel,
                    tuple(numbers[name] for name in node.inputs),
                    tuple(numbers[name] for name in node.outputs),
                    tuple(numbers[name] for name in sorted(over - kept)),
                )
            )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both outputs of one step, in memory of their own.

        Args:
            inputs: every input of the graph, by name.

        Raises:
            GraphError: an input is missing, unknown or of another type.
            IndexError: the data have a number that is outside an axis.
        """
        values = self._initial.copy()
        self._place(inputs, values)
        with np.errstate(all="ignore"):
            for kernel, sources, targets, over in self._steps:
                made = kernel(*[values[at] for at in sources])
                if len(targets) == 1:
                    values[targets[0]] = made
                else:
                    for target, each in zip(targets, made, strict=True):
                        values[target] = each
                for at in over:
                    values[at] = None
        first, second = (self._own(values[at], inputs) for at in self._outputs)
        return first, second

    def _place(self, inputs: Mapping[str, NDArray[Any]], values: list[Any]) -> None:
        if inputs.keys() != self._inputs.keys():
            wrong = ", ".join(sorted(inputs.keys() ^ self._inputs.keys()))
            raise GraphError(f"inputs that are missing or unknown: {wrong}")
        for name, (at, type_) in self._inputs.items():
            array = inputs[name]
            if array.shape != type_.shape or array.dtype != type_.dtype:
                raise GraphError(
                    f"input {name} is {array.dtype.name} {list(array.shape)}; expected {type_}"
                )
            values[at] = array

    def _own(self, array: NDArray[Any], inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """An output that shares no memory with an input: anyone who asked may write into it."""
        array = np.asarray(array)
        if array.flags.owndata and not any(array is each for each in inputs.values()):
            return array
        return array.copy()
