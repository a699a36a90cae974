"""Rules for convolutions, pooling and their gradients, for which ONNX has no operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from fedsys.tasks.export.lowering import Lowering, lowers, numpy_dtype

__all__: list[str] = []

aten = torch.ops.aten
Sizes = Sequence[int]


def _wide(values: Sizes, rank: int) -> tuple[int, ...]:
    """One number for each axis; torch writes a single one where all are equal."""
    return tuple(values) * rank if len(values) == 1 else tuple(values)


@lowers(aten.convolution.default)
def _convolution(
    low: Lowering,
    x: fx.Node,
    weight: fx.Node,
    bias: Any,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> str:
    rank = len(low.shape()) - 2
    pads = _wide(padding, rank)
    inputs = [low.value(each) for each in (x, weight, bias) if each is not None]
    attributes: dict[str, Any] = {
        "dilations": _wide(dilation, rank),
        "group": groups,
        "kernel_shape": low.shape(weight)[2:],
        "pads": pads + pads,
        "strides": _wide(stride, rank),
    }
    if transposed:
        attributes["output_padding"] = _wide(output_padding, rank)
    return low.op("ConvTranspose" if transposed else "Conv", *inputs, **attributes)


class _Backward:
    """The gradient of a convolution: x (N, C, ...), weight (O, C / groups, ...), grad (N, O, ...).

    Args:
        low: writes.
        nodes: grad, x and weight.
        geometry: strides, padding and dilation, a number an axis.
        groups: of channels.
    """

    def __init__(
        self,
        low: Lowering,
        nodes: tuple[fx.Node, fx.Node, fx.Node],
        geometry: tuple[Sizes, Sizes, Sizes],
        groups: int,
    ) -> None:
        self._low, self._groups = low, groups
        grad, x, weight = nodes
        self._grad, self._x, self._weight = (low.value(each) for each in nodes)
        self._shape_x, self._shape_weight = low.shape(x), low.shape(weight)
        self._rank = len(self._shape_x) - 2
        self._stride, self._padding, self._dilation = (_wide(g, self._rank) for g in geometry)
        self._kernel, self._size = self._shape_weight[2:], self._shape_x[2:]
        self._places = low.shape(grad)[2:]
        self._dtype = low.dtype(x)

    def of_bias(self) -> str:
        """(O,)."""
        axes = [0, *range(2, self._rank + 2)]
        return self._low.total("ReduceSum", self._grad, axes, keep=False)

    def of_input(self) -> str:
        """Shaped like x: a transposed convolution."""
        extra = tuple(
            (size + 2 * pad - dilation * (kernel - 1) - 1) % stride
            for size, pad, dilation, kernel, stride in zip(
                self._size, self._padding, self._dilation, self._kernel, self._stride, strict=True
            )
        )
        return self._low.op(
            "ConvTranspose",
            self._grad,
            self._weight,
            dilations=self._dilation,
            group=self._groups,
            kernel_shape=self._kernel,
            output_padding=extra,
            pads=self._padding + self._padding,
            strides=self._stride,
        )

    def of_weight(self) -> str:
        """Shaped like the weight."""
        return self._as_convolution() if self._groups == 1 else self._by_shifts()

    def _as_convolution(self) -> str:
        """x convolved with the gradient, examples in the place of channels.

        The forward pass meets x at stride * place + dilation * element; as a convolution over
        elements with the gradient as its kernel, strides and dilations change their roles. What
        the last window does not reach is cut off.
        """
        low, order = self._low, [1, 0, *range(2, self._rank + 2)]
        ends = [
            (n - 1) * stride + (k - 1) * dilation + 1 - 2 * pad - size
            for n, stride, k, dilation, pad, size in zip(
                self._places,
                self._stride,
                self._kernel,
                self._dilation,
                self._padding,
                self._size,
                strict=True,
            )
        ]
        after = [pad + end for pad, end in zip(self._padding, ends, strict=True)]
        image = self._x
        if min(after) < 0:
            axes = range(2, self._rank + 2)
            kept = [size + min(0, each) for size, each in zip(self._size, after, strict=True)]
            image = low.slice(image, list(axes), [0] * self._rank, kept)
        found = low.op(
            "Conv",
            low.transpose(image, order),
            low.transpose(self._grad, order),
            dilations=self._stride,
            group=1,
            kernel_shape=tuple(self._places),
            pads=(*self._padding, *(max(0, each) for each in after)),
            strides=self._dilation,
        )
        return low.transpose(found, order)

    def _by_shifts(self) -> str:
        """For groups: for each element of the kernel, the part of x that it met, times grad."""
        low, batch = self._low, self._shape_x[0]
        channels, made = self._shape_x[1], self._shape_weight[0]
        image = self._x
        if any(self._padding):
            around = [0, 0, *self._padding]
            image = low.pad(image, around, around, low.number(0, self._dtype))
        area, axes = math.prod(self._places), list(range(2, self._rank + 2))
        depthwise = self._groups == channels == made
        above = low.reshape(self._grad, [batch, self._groups, made // self._groups, area])
        parts = []
        for element in np.ndindex(*self._kernel):
            starts = [at * d for at, d in zip(element, self._dilation, strict=True)]
            ends = [
                start + (n - 1) * stride + 1
                for start, n, stride in zip(starts, self._places, self._stride, strict=True)
            ]
            met = low.slice(image, axes, starts, ends, self._stride)
            if depthwise:
                product = low.op("Mul", self._grad, met)
                total = low.total("ReduceSum", product, [0, *axes], keep=False)
                parts.append(low.reshape(total, [made, 1, 1]))
                continue
            below = low.reshape(met, [batch, self._groups, channels // self._groups, area])
            product = low.op("MatMul", above, low.transpose(below, [0, 1, 3, 2]))
            total = low.total("ReduceSum", product, [0], keep=False)
            parts.append(low.reshape(total, [made, channels // self._groups, 1]))
        whole = parts[0] if len(parts) == 1 else low.op("Concat", *parts, axis=2)
        return low.reshape(whole, self._shape_weight)


@lowers(aten.convolution_backward.default)
def _convolution_backward(
    low: Lowering, grad: fx.Node, x: fx.Node, weight: fx.Node, bias_sizes: Any, *rest: Any
) -> list[str | None]:
    stride, padding, dilation, transposed, _, groups, wanted = rest
    if transposed:
        low.refuse("the gradient of a transposed convolution")
    backward = _Backward(low, (grad, x, weight), (stride, padding, dilation), groups)
    return [
        backward.of_input() if wanted[0] else None,
        backward.of_weight() if wanted[1] else None,
        backward.of_bias() if wanted[2] else None,
    ]


def _pool(kernel: Sizes, stride: Sizes, padding: Sizes) -> tuple[tuple[int, ...], ...]:
    window = _wide(kernel, 2)
    return window, _wide(stride, 2) if stride else window, _wide(padding, 2)


@lowers(aten.max_pool2d_with_indices.default)
def _max_pool(
    low: Lowering,
    x: Any,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0,),
    dilation: Sizes = (1,),
    ceil_mode: bool = False,
) -> list[str]:
    if ceil_mode:
        low.refuse("ceil_mode")
    window, steps, pads = _pool(kernel, stride, padding)
    return low.ops(
        "MaxPool",
        2,
        low.value(x),
        dilations=_wide(dilation, 2),
        kernel_shape=window,
        pads=pads + pads,
        strides=steps,
    )


@lowers(aten.max_pool2d_with_indices_backward.default)
def _max_pool_backward(
    low: Lowering,
    grad: fx.Node,
    x: Any,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
    indices: fx.Node,
) -> str:
    window, steps, _ = _pool(kernel, stride, padding)
    # ONNX's places count through the whole tensor, torch's through one plane: the names here are
    # those of the forward pass's own output, so ONNX's are what is met.
    apart = all(k <= s for k, s in zip(window, steps, strict=True))
    zeros = low.filled(0, [math.prod(low.shape())])
    flat = low.op(
        "ScatterElements",
        zeros,
        low.reshape(low.value(indices), [math.prod(low.shape(indices))]),
        low.reshape(low.value(grad), [math.prod(low.shape(grad))]),
        axis=0,
        reduction="none" if apart else "add",
    )
    return low.reshape(flat, low.shape())


@lowers(aten.avg_pool2d.default)
def _average_pool(
    low: Lowering,
    x: Any,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: Any = None,
) -> str:
    if ceil_mode or divisor is not None:
        low.refuse("ceil_mode or a divisor of its own")
    window, steps, pads = _pool(kernel, stride, padding)
    return low.op(
        "AveragePool",
        low.value(x),
        count_include_pad=int(count_include_pad),
        kernel_shape=window,
        pads=pads + pads,
        strides=steps,
    )


@lowers(aten.avg_pool2d_backward.default)
def _average_pool_backward(
    low: Lowering,
    grad: fx.Node,
    x: Any,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: Any,
) -> str:
    window, steps, pads = _pool(kernel, stride, padding)
    if ceil_mode or divisor is not None or (any(pads) and not count_include_pad):
        low.refuse("a divisor that is not the window's size")
    batch, channels, *size = low.shape()
    places, share = low.shape(grad)[2:], 1 / math.prod(window)
    tiles = [n * k for n, k in zip(places, window, strict=True)]
    if window == steps and not any(pads) and tiles == size:
        small = low.op("Mul", low.value(grad), low.number(share))
        small = low.reshape(small, [batch, channels, places[0], 1, places[1], 1])
        shape = [batch, channels, places[0], window[0], places[1], window[1]]
        return low.reshape(low.expand(small, shape), low.shape())
    extra = tuple(
        (s + 2 * p - k) % step for s, p, k, step in zip(size, pads, window, steps, strict=True)
    )
    kind = numpy_dtype(low.dtype())
    return low.op(
        "ConvTranspose",
        low.value(grad),
        low.array(np.full((channels, 1, *window), share, kind)),
        dilations=(1, 1),
        group=channels,
        kernel_shape=window,
        output_padding=extra,
        pads=pads + pads,
        strides=steps,
    )
