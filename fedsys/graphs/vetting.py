"""What a device lets run: a graph whose every value and every cost is known beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedsys.graphs.decoding import Bounds, decode
from fedsys.graphs.encoding import encode
from fedsys.graphs.errors import GraphError
from fedsys.graphs.graph import TensorType, TrainingGraph
from fedsys.graphs.inference import Mismatch, Value
from fedsys.graphs.operators import OPERATORS

__all__ = ["Limits", "Vetted", "vet"]

_FLOAT, _BOOL = np.dtype("<f4"), np.dtype("?")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a step of a graph may cost.

    Attributes:
        bounds: on the file.
        memory: bytes alive at once: inputs, constants, values and what operators need while they
            run.
        work: floating-point operations.
    """

    bounds: Bounds = field(default_factory=Bounds)
    memory: int = 1 << 30
    work: float = 1e12


@dataclass(frozen=True, kw_only=True)
class Vetted:
    """A graph that may run.

    Attributes:
        graph: rebuilt from checked fields.
        encoded: its file, written from those fields.
        sha256: of the file, as hex: what an owner approves.
        memory: the most bytes alive at once in a step.
        work: floating-point operations of a step, roughly.
        values: the type of every value, and the elements of constants.
    """

    graph: TrainingGraph = field(repr=False)
    encoded: bytes = field(repr=False)
    sha256: str
    memory: int
    work: float
    values: Mapping[str, Value] = field(repr=False)


def vet(raw: bytes, limits: Limits | None = None) -> Vetted:
    """Check a graph completely before anything of it runs.

    Args:
        raw: a file that anybody may have written.
        limits: what a step may cost.

    Raises:
        GraphError: names what is not allowed.
    """
    limits = limits or Limits()
    graph = decode(raw, limits.bounds)
    _check_interface(graph)
    values = {name: Value(type_) for name, type_ in graph.inputs.items()}
    for name, array in graph.constants.items():
        if name in values:
            raise GraphError(f"value {name} is an input and a constant")
        values[name] = Value(TensorType(array.dtype, array.shape), array)
    memory, work = _Accounts(graph, values, limits).check()
    for name, wanted in graph.outputs.items():
        found = values.get(name)
        if found is None or found.type != wanted:
            what = "not made" if found is None else str(found.type)
            raise GraphError(f"output {name} is {what}; {wanted} was announced")
    encoded = encode(graph)
    return Vetted(
        graph=graph,
        encoded=encoded,
        sha256=hashlib.sha256(encoded).hexdigest(),
        memory=memory,
        work=work,
        values=values,
    )


def _check_interface(graph: TrainingGraph) -> None:
    inputs = graph.inputs
    weights, x, y = (inputs[name] for name in ("weights", "x", "y"))
    if weights.dtype != _FLOAT or len(weights.shape) != 1:
        raise GraphError(f"the weights are {weights}; expected a float32 vector")
    if not x.shape or not y.shape or x.shape[0] != y.shape[0]:
        raise GraphError(f"x is {x} and y is {y}; expected as many rows in both")
    batch, dimension = x.shape[0], weights.shape[0]
    if graph.kind == "gradient" and inputs["example_weights"] != TensorType(_FLOAT, (batch,)):
        raise GraphError(f"example_weights is not float32 [{batch}]")
    for name, type_, _ in graph.masks:
        if type_.dtype != _BOOL:
            raise GraphError(f"dropout mask {name} is {type_}; expected truth values")
    single = graph.kind == "gradient"
    wanted = (
        TensorType(_FLOAT, (dimension,) if single else (batch, dimension)),
        TensorType(_FLOAT, () if single else (batch,)),
    )
    if tuple(graph.outputs.values()) != wanted:
        raise GraphError(f"the outputs are not {wanted[0]} and {wanted[1]}")


class _Accounts:
    """Types, work and memory, operator by operator."""

    def __init__(self, graph: TrainingGraph, values: dict[str, Value], limits: Limits) -> None:
        self._graph, self._values, self._limits = graph, values, limits
        self._ends = _last_uses(graph)

    def check(self) -> tuple[int, float]:
        """Adds every value's type; the most bytes alive at once, and the work.

        Raises:
            GraphError: an operator does not fit its inputs, or a limit is exceeded.
        """
        alive = peak = sum(each.type.nbytes for each in self._values.values())
        work = 0.0
        for at, node in enumerate(self._graph.nodes):
            missing = [name for name in node.inputs if name not in self._values]
            if missing:
                raise GraphError(f"{node.operator}: its input {missing[0]} does not come before it")
            try:
                inferred = OPERATORS[node.operator].infer(
                    [self._values[name] for name in node.inputs],
                    node.attributes,
                    len(node.outputs),
                )
            except Mismatch as error:
                raise GraphError(f"{node.operator}: {error}") from None
            for name, type_ in zip(node.outputs, inferred.outputs, strict=True):
                if name in self._values:
                    raise GraphError(f"value {name} is made twice")
                if len(type_.shape) > self._limits.bounds.rank:
                    raise GraphError(f"{node.operator}: a result of {len(type_.shape)} dimensions")
                self._values[name] = Value(type_)
                alive += type_.nbytes
            peak = max(peak, alive + inferred.workspace)
            work += inferred.work
            self._check_limits(peak, work)
            alive -= sum(self._values[name].type.nbytes for name in self._ends.get(at, ()))
        return peak, work

    def _check_limits(self, memory: int, work: float) -> None:
        if memory > self._limits.memory:
            raise GraphError(
                f"a step needs more than {self._limits.memory >> 20} MiB of memory, the most that "
                f"is allowed; export with a smaller --batch-size"
            )
        if work > self._limits.work:
            raise GraphError(
                f"a step needs more than {self._limits.work / 1e6:,.0f} MFLOP, the most that is "
                f"allowed; export with a smaller --batch-size"
            )


def _last_uses(graph: TrainingGraph) -> dict[int, list[str]]:
    """After which operator which values are freed; inputs, constants and outputs never are.

    A value whose memory a view shares lives as long as the view.
    """
    owner: dict[str, str] = {}
    last: dict[str, int] = {}
    for at, node in enumerate(graph.nodes):
        shared = OPERATORS[node.operator].view
        for name in node.outputs:
            last.setdefault(name, at)
            if shared:
                owner[name] = owner.get(node.inputs[0], node.inputs[0])
        for name in node.inputs:
            last[name] = at
            if name in owner:
                last[owner[name]] = at
    kept = {*graph.inputs, *graph.constants, *graph.outputs}
    kept |= {owner[name] for name in graph.outputs if name in owner}
    ends: dict[int, list[str]] = {}
    for name, at in last.items():
        if name not in kept:
            ends.setdefault(at, []).append(name)
    return ends
