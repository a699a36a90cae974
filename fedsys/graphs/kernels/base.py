"""What a kernel is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.graphs.graph import Node, TensorType
from fedsys.graphs.inference import Value

__all__ = ["Array", "Kernel", "Make", "always"]

Array = NDArray[Any]

Kernel = Callable[..., Any]
"""Takes all inputs as arrays; returns the output, or a sequence of several outputs."""

Make = Callable[[Node, Sequence[Value], Sequence[TensorType]], Kernel]
"""Makes a node's kernel of the node, its inputs and its outputs' types."""


def always(function: Callable[..., Any] | np.ufunc) -> Make:
    """A kernel that no type or attribute changes."""
    return lambda node, inputs, outputs: function
