"""Convolutions and pooling: windows side by side as columns, then one matrix product."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fedsys.graphs.graph import Node, TensorType
from fedsys.graphs.inference import Value
from fedsys.graphs.kernels.base import Array, Kernel, Make
from fedsys.graphs.window_inference import Window

__all__ = ["KERNELS"]

_SMALL_AREA = 64
"""Places of a window below which one product of all examples beats one product an example."""


class _Geometry:
    """A window on an image of known size.

    Args:
        window: how it moves.
        size: the image's (r,).
        places: how many places the window takes on each axis (r,).
    """

    def __init__(self, window: Window, size: Sequence[int], places: Sequence[int]) -> None:
        self.window, self.places = window, tuple(places)
        self.padded = window.padded(size)
        self._pads = any(window.before) or any(window.after)
        self._inner = (
            slice(None),
            slice(None),
            *(slice(b, b + s) for b, s in zip(window.before, size, strict=True)),
        )

    def pad(self, x: Array, value: float = 0.0) -> Array:
        """`x` (N, C, *size) with padding around each image."""
        if not self._pads:
            return x
        whole = np.full((*x.shape[:2], *self.padded), value, x.dtype)
        whole[self._inner] = x
        return whole

    def views(self, image: Array) -> Array:
        """(N, C, *kernel, *places): what the window sees at each place of a padded image.

        Every index stays within the image, because `Window.places` counts only whole windows.
        """
        batch, channel, *rest = image.strides
        return as_strided(
            image,
            (*image.shape[:2], *self.window.kernel, *self.places),
            (
                batch,
                channel,
                *(s * d for s, d in zip(rest, self.window.dilations, strict=True)),
                *(s * m for s, m in zip(rest, self.window.strides, strict=True)),
            ),
            writeable=False,
        )

    def slices(self) -> list[tuple[slice, ...]]:
        """For each element of the kernel, the elements of a padded image that it meets."""
        return [
            (
                slice(None),
                slice(None),
                *(
                    slice(at * d, at * d + (n - 1) * s + 1, s)
                    for at, d, n, s in zip(
                        place,
                        self.window.dilations,
                        self.places,
                        self.window.strides,
                        strict=True,
                    )
                ),
            )
            for place in np.ndindex(*self.window.kernel)
        ]


def _convolution(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    x, weight, made = inputs[0], inputs[1], outputs[0]
    rank = x.rank - 2
    group: int = node.attributes["group"]
    geometry = _Geometry(Window.of(node.attributes, rank), x.shape[2:], made.shape[2:])
    batch, area = x.shape[0], math.prod(geometry.places)
    channels, inner = weight.shape[0], math.prod(weight.shape[1:])
    joined = group == 1 and area < _SMALL_AREA
    # Channels and kernel first, then examples and places.
    order = (1, *range(2, 2 + rank), 0, *range(2 + rank, 2 + 2 * rank))

    def all_at_once(x: Array, weight: Array) -> Array:
        views = geometry.views(geometry.pad(x)).transpose(order)
        columns = np.ascontiguousarray(views).reshape(inner, batch * area)
        found = np.matmul(weight.reshape(channels, inner), columns)
        found = found.reshape(channels, batch, area).swapaxes(0, 1)
        return np.ascontiguousarray(found).reshape(made.shape)

    def one_by_one(x: Array, weight: Array) -> Any:
        views = np.ascontiguousarray(geometry.views(geometry.pad(x)))
        if group == 1:
            patches = views.reshape(batch, inner, area)
            return np.matmul(weight.reshape(channels, inner), patches).reshape(made.shape)
        columns = views.reshape(batch, group, inner, area)
        return np.matmul(weight.reshape(group, -1, inner), columns).reshape(made.shape)

    return _with_bias(all_at_once if joined else one_by_one, rank)


def _with_bias(convolve: Kernel, rank: int) -> Kernel:
    wide = (-1, *(1,) * rank)

    def run(x: Array, weight: Array, bias: Array | None = None) -> Array:
        made: Array = convolve(x, weight)
        if bias is not None:
            made += bias.reshape(wide)
        return made

    return run


def _transposed_convolution(
    node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]
) -> Kernel:
    x, weight, made = inputs[0], inputs[1], outputs[0]
    rank = x.rank - 2
    group: int = node.attributes["group"]
    # What a convolution of the output's image would see, written back place by place.
    geometry = _Geometry(Window.of(node.attributes, rank), made.shape[2:], x.shape[2:])
    batch, area = x.shape[0], math.prod(x.shape[2:])
    kernel, slices = math.prod(weight.shape[2:]), geometry.slices()
    wide = (batch, made.shape[1], kernel, *x.shape[2:])
    crop = (
        slice(None),
        slice(None),
        *(slice(b, b + s) for b, s in zip(geometry.window.before, made.shape[2:], strict=True)),
    )
    canvas = tuple(
        max(whole, (n - 1) * stride + span)
        for whole, n, stride, span in zip(
            geometry.padded,
            geometry.places,
            geometry.window.strides,
            geometry.window.spans(),
            strict=True,
        )
    )

    def convolve(x: Array, weight: Array) -> Array:
        by_group = weight.reshape(group, weight.shape[0] // group, -1).swapaxes(1, 2)
        columns = np.matmul(by_group, x.reshape(batch, group, -1, area)).reshape(wide)
        image = np.zeros((*made.shape[:2], *canvas), x.dtype)
        for at, where in enumerate(slices):
            image[where] += columns[:, :, at]
        return np.ascontiguousarray(image[crop])

    return _with_bias(convolve, rank)


def _max_pool(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    x, made = inputs[0], outputs[0]
    size = x.shape[2:]
    geometry = _Geometry(Window.of(node.attributes, len(size)), size, made.shape[2:])
    window, slices = geometry.window, geometry.slices()
    steps = [math.prod(size[at + 1 :]) for at in range(len(size))]  # of a flat index, by axis
    offsets = np.array(
        [
            sum(p * d * step for p, d, step in zip(place, window.dilations, steps, strict=True))
            for place in np.ndindex(*window.kernel)
        ]
    )
    origins = sum(
        ((np.arange(n) * s - b) * step).reshape((-1, *(1,) * (len(size) - 1 - at)))
        for at, (n, s, b, step) in enumerate(
            zip(geometry.places, window.strides, window.before, steps, strict=True)
        )
    )
    planes = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * len(size))
    planes *= math.prod(size)

    def largest(x: Array) -> Array:
        image = geometry.pad(x, -np.inf)
        best = image[slices[0]].copy()
        for where in slices[1:]:
            np.maximum(best, image[where], out=best)
        return best

    def with_places(x: Array) -> tuple[Array, Array]:
        image = geometry.pad(x, -np.inf)
        best = image[slices[0]].copy()
        found = np.zeros(best.shape, np.int16)  # which element of the window
        for at, where in enumerate(slices[1:], start=1):
            part = image[where]
            # The first of equals stays; a number that is none is taken, as torch does.
            better = ~(part <= best)
            np.copyto(best, part, where=better)
            np.copyto(found, at, where=better)
        flat = offsets[found]
        flat += origins
        flat += planes
        return best, flat

    return largest if len(outputs) == 1 else with_places


def _average_pool(node: Node, inputs: Sequence[Value], outputs: Sequence[TensorType]) -> Kernel:
    x, made = inputs[0], outputs[0]
    size = x.shape[2:]
    geometry = _Geometry(Window.of(node.attributes, len(size)), size, made.shape[2:])
    slices = geometry.slices()
    counts = np.full(geometry.places, math.prod(geometry.window.kernel))
    if not node.attributes["count_include_pad"]:
        ones = geometry.pad(np.ones((1, 1, *size), np.int64))
        counts = np.asarray(sum(ones[where] for where in slices))[0, 0]
    shares = (1 / counts).astype(x.dtype)

    def run(x: Array) -> Array:
        image = geometry.pad(x)
        total = image[slices[0]].copy()
        for where in slices[1:]:
            total += image[where]
        total *= shares
        return total

    return run


KERNELS: Mapping[str, Make] = {
    "AveragePool": _average_pool,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "MaxPool": _max_pool,
}
