"""Shapes, work and memory of operators that slide a window: convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsys.graphs.graph import TensorType
from fedsys.graphs.inference import FLOATS, Inferred, Mismatch, Value, require

__all__ = ["Window", "average_pool", "convolution", "max_pool", "transposed_convolution"]

Attributes = Mapping[str, Any]
_MOST_ELEMENTS = 4096
"""Of a window that is walked element by element."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """How a window of r dimensions moves.

    Attributes:
        kernel: its size (r,).
        strides: how far it moves (r,).
        dilations: how far apart the elements that it sees are (r,).
        before: padding at the beginning of each axis (r,).
        after: padding at the end (r,).
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, attributes: Attributes, rank: int) -> Window:
        """The window that a node's attributes describe.

        Raises:
            Mismatch: they do not fit `rank` dimensions.
        """
        kernel, strides, pads = (attributes[key] for key in ("kernel_shape", "strides", "pads"))
        dilations = attributes.get("dilations", (1,) * rank)
        require(1 <= rank <= 3, f"windows of {rank} dimensions")
        require(
            len(kernel) == len(strides) == len(dilations) == rank and len(pads) == 2 * rank,
            "attributes of different lengths",
        )
        require(min(*kernel, *strides, *dilations) >= 1 and min(pads) >= 0, "a window's sizes")
        return cls(
            kernel=kernel,
            strides=strides,
            dilations=dilations,
            before=pads[:rank],
            after=pads[rank:],
        )

    def spans(self) -> tuple[int, ...]:
        """From the first element that the window sees to the last, both counted."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def padded(self, size: Sequence[int]) -> tuple[int, ...]:
        """An image's size with its padding."""
        return tuple(b + s + a for b, s, a in zip(self.before, size, self.after, strict=True))

    def places(self, size: Sequence[int]) -> tuple[int, ...]:
        """How many places the window takes on each axis of an image.

        Raises:
            Mismatch: it is larger than the image.
        """
        found = [
            (whole - span) // stride + 1
            for whole, span, stride in zip(
                self.padded(size), self.spans(), self.strides, strict=True
            )
        ]
        if min(found) < 1:
            raise Mismatch("the window is larger than the image")
        return tuple(found)


def convolution(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """x (N, C, ...), weight (O, C / group, ...), bias (O,)."""
    x, weight = inputs[:2]
    window, group = _window(inputs, attributes)
    require(weight.shape[1] * group == x.shape[1] and weight.shape[0] % group == 0, "channels")
    _check_bias(inputs, weight.shape[0])
    places = window.places(x.shape[2:])
    made = TensorType(x.dtype, (x.shape[0], weight.shape[0], *places))
    inner = weight.shape[1] * math.prod(window.kernel)
    return Inferred((made,), 2.0 * made.count * inner, _workspace(x, window, places, made))


def transposed_convolution(
    inputs: Sequence[Value], attributes: Attributes, outputs: int
) -> Inferred:
    """x (N, C, ...), weight (C, O / group, ...), bias (O,): gradient of a convolution's input."""
    x, weight = inputs[:2]
    window, group = _window(inputs, attributes)
    require(weight.shape[0] == x.shape[1] and x.shape[1] % group == 0, "channels")
    require(math.prod(window.kernel) <= _MOST_ELEMENTS, "the window is too large")
    extra = attributes["output_padding"]
    require(len(extra) == len(window.kernel), "output_padding")
    require(
        all(
            0 <= more < max(stride, dilation)
            for more, stride, dilation in zip(extra, window.strides, window.dilations, strict=True)
        ),
        f"output_padding = {extra}",
    )
    _check_bias(inputs, weight.shape[1] * group)
    whole = [
        (size - 1) * stride + span + more
        for size, stride, span, more in zip(
            x.shape[2:], window.strides, window.spans(), extra, strict=True
        )
    ]
    size = [
        each - before - after
        for each, before, after in zip(whole, window.before, window.after, strict=True)
    ]
    require(min(size) >= 1, "more padding than there is image")
    channels = weight.shape[1] * group
    made = TensorType(x.dtype, (x.shape[0], channels, *size))
    columns = x.shape[0] * channels * math.prod(window.kernel) * math.prod(x.shape[2:])
    canvas = x.shape[0] * channels * math.prod(whole)
    space = (2 * columns + 2 * canvas) * x.dtype.itemsize
    return Inferred((made,), 2.0 * columns * weight.shape[0] / group + columns, space)


def max_pool(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """The largest in each window and, as a second output, its place in the whole input, flat."""
    x, window, places = _pooled(inputs, attributes)
    made = TensorType(x.dtype, (*x.shape[:2], *places))
    where = TensorType(np.dtype("<i8"), made.shape)
    padded = math.prod(x.shape[:2]) * math.prod(window.padded(x.shape[2:])) * x.dtype.itemsize
    work = 3.0 * made.count * math.prod(window.kernel)
    return Inferred((made, where)[:outputs], work, padded + 4 * where.nbytes)


def average_pool(inputs: Sequence[Value], attributes: Attributes, outputs: int) -> Inferred:
    """The mean of each window, of the padding too if ``count_include_pad`` says so."""
    x, window, places = _pooled(inputs, attributes)
    require(attributes["count_include_pad"] in (0, 1), "count_include_pad")
    made = TensorType(x.dtype, (*x.shape[:2], *places))
    padded = math.prod(x.shape[:2]) * math.prod(window.padded(x.shape[2:])) * x.dtype.itemsize
    work = 2.0 * made.count * math.prod(window.kernel)
    return Inferred((made,), work, padded + made.nbytes)


def _pooled(
    inputs: Sequence[Value], attributes: Attributes
) -> tuple[Value, Window, tuple[int, ...]]:
    (x,) = inputs
    require(x.dtype in FLOATS and x.rank >= 3, f"pooling of {x.type}")
    window = Window.of(attributes, x.rank - 2)
    require(math.prod(window.kernel) <= _MOST_ELEMENTS, "the window is too large")
    require(
        all(
            max(before, after) < size
            for before, after, size in zip(window.before, window.after, window.kernel, strict=True)
        ),
        "padding as large as the window",
    )
    return x, window, window.places(x.shape[2:])


def _window(inputs: Sequence[Value], attributes: Attributes) -> tuple[Window, int]:
    x, weight = inputs[:2]
    require(all(each.dtype == x.dtype for each in inputs) and x.dtype in FLOATS, "types")
    require(x.rank >= 3 and weight.rank == x.rank, f"{x.type} and {weight.type}")
    window, group = Window.of(attributes, x.rank - 2), attributes["group"]
    require(group >= 1 and weight.shape[2:] == window.kernel, "group or kernel_shape")
    return window, group


def _check_bias(inputs: Sequence[Value], channels: int) -> None:
    require(len(inputs) == 2 or inputs[2].shape == (channels,), "bias")


def _workspace(x: Value, window: Window, places: Sequence[int], made: TensorType) -> int:
    image = math.prod(x.shape[:2]) * math.prod(window.padded(x.shape[2:]))
    columns = math.prod(x.shape[:2]) * math.prod(window.kernel) * math.prod(places)
    return (image + columns) * x.dtype.itemsize + 2 * made.nbytes
