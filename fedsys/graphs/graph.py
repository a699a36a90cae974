"""A training graph as plain values: tensors by name, and operators in the order in which they run.

The inputs are, in this order::

    weights (d,)  x (B, ...)  y (B, ...)  example_weights (B,)  keep_0 ... keep_n

``example_weights`` is what each example's loss counts: 1/n for the n examples of a batch, 0 for
padding. ``keep_i`` are dropout masks, which the device draws. The outputs are ``gradient`` (d,) and
``loss`` (), of the weighted sum of losses. A graph of per-example gradients has no
``example_weights``; its outputs are ``gradients`` (B, d) and ``losses`` (B,).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ELEMENT_TYPES",
    "KINDS",
    "OUTPUTS",
    "Attribute",
    "Kind",
    "Node",
    "TensorType",
    "TrainingGraph",
    "input_names",
]

Attribute = int | str | tuple[int, ...]
Kind = Literal["gradient", "example-gradients"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ELEMENT_TYPES: Mapping[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
    11: np.dtype("<f8"),
}
"""The types of elements, under ONNX's numbers."""

OUTPUTS: Mapping[Kind, tuple[str, str]] = {
    "gradient": ("gradient", "loss"),
    "example-gradients": ("gradients", "losses"),
}


@dataclass(frozen=True)
class TensorType:
    """What is known of a tensor before anything runs.

    Attributes:
        dtype: of its elements.
        shape: every dimension at least 1.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.count * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name} {list(self.shape)}"


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator.

    Attributes:
        operator: its name in ONNX's standard domain.
        inputs: names of values that exist before it.
        outputs: names of the values that it makes.
        attributes: every one that the operator has here (each an `Attribute`), none left to a
            default.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainingGraph:
    """A step's gradient.

    Attributes:
        task: name of the task of which it was made.
        options: of the task.
        kind: one gradient of a batch, or one for each of its examples.
        keep: the chance with which an element of each dropout mask is kept.
        inputs: in order.
        constants: by name.
        nodes: in an order in which they can run.
        outputs: in order.
    """

    task: str
    options: Mapping[str, Any]
    kind: Kind
    keep: tuple[float, ...]
    inputs: Mapping[str, TensorType]
    constants: Mapping[str, NDArray[Any]]
    nodes: tuple[Node, ...]
    outputs: Mapping[str, TensorType]

    @property
    def dimension(self) -> int:
        """d, the number of trainable weights."""
        return self.inputs["weights"].shape[0]

    @property
    def batch_size(self) -> int:
        """B, the examples of one step."""
        return self.inputs["x"].shape[0]

    @property
    def masks(self) -> tuple[tuple[str, TensorType, float], ...]:
        """Each dropout mask with the chance that an element is kept."""
        return tuple(
            (f"keep_{at}", self.inputs[f"keep_{at}"], keep) for at, keep in enumerate(self.keep)
        )


def input_names(kind: Kind, masks: int) -> tuple[str, ...]:
    """What a graph's inputs are called, in order.

    >>> input_names("gradient", 1)
    ('weights', 'x', 'y', 'example_weights', 'keep_0')
    """
    own: tuple[str, ...] = ("weights", "x", "y")
    if kind == "gradient":
        own = (*own, "example_weights")
    return (*own, *(f"keep_{at}" for at in range(masks)))
