"""Sequences of known layers, differentiated without the autograd engine.

Clients' models are small: the engine's bookkeeping takes up to a tenth of the time of all
arithmetic. Here each layer keeps what its own backward pass needs. The loss is still the task's
own; see `client.training.dual.losses` for its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from client.training.dual.convolution import ClientConv2d, channels_last
from client.training.dual.own_or_dual import ClientLinear
from client.training.dual.parameter_free import BitDropout, ImageFlatten

__all__ = ["Chain"]

Backward = Callable[[Tensor], Tensor | None]
Rule = Callable[[Any, Any, bool], tuple[Tensor, Backward]]
"""Maps (layer, input, whether the input's gradient is wanted) to (output, backward). The latter
maps the output's gradient to the input's; a layer with weights takes its optimizer step in it."""


class Chain:
    """Layers in sequence. It is called in inference mode: autograd must not record it.

    Args:
        before: leading layers that need no gradient, since no parameters come before them.
        layers: the remaining layers, beginning with the first one that has parameters.
    """

    def __init__(self, before: list[nn.Module], layers: list[nn.Module]) -> None:
        self._before = before
        self._layers = [(layer, _RULES[type(layer)]) for layer in layers]
        self._frames: list[list[Backward]] = []

    @classmethod
    def of(cls, layers: Iterable[nn.Module], *, gradient: bool = False) -> Chain | None:
        """A chain of `layers`, or None if one of them has no rule.

        Args:
            layers: in the order of the forward pass.
            gradient: whether the first layer's input needs a gradient.
        """
        before: list[nn.Module] = []
        after: list[nn.Module] = []
        for layer in layers:
            trained = any(isinstance(part, ClientConv2d | ClientLinear) for part in layer.modules())
            (after if trained or after or gradient else before).append(layer)
        return cls(before, after) if all(type(layer) in _RULES for layer in after) else None

    def reset(self) -> None:
        """Drop forward passes whose backward pass will not come."""
        self._frames.clear()

    def prepared(self, x: Tensor | None) -> Tensor | None:
        """The output for `x` of the leading layers that need no gradient; None for None."""
        for layer in self._before:
            x = layer(x)
        return x

    def forward(self, x: Tensor | None, *, wanted: bool = False) -> Tensor:
        """The last layer's output; what the backward pass needs is kept until `backward`.

        Args:
            x: as returned by `prepared`; None if the first layer was started with its data.
            wanted: whether `backward` is to return the gradient of `x`.
        """
        frame: list[Backward] = []
        y: Any = x
        for layer, rule in self._layers:
            y, back = rule(layer, y, wanted or bool(frame))
            frame.append(back)
        self._frames.append(frame)
        outputs: Tensor = y
        return outputs

    def backward(self, gradient: Tensor) -> Tensor | None:
        """Backpropagate through the latest pending `forward`; the layers take their steps.

        Args:
            gradient: of the loss with respect to the output.

        Returns:
            The input's gradient if it was wanted, else None.
        """
        passed: Tensor | None = gradient
        for back in reversed(self._frames.pop()):
            if passed is None:
                break
            passed = back(passed)
        return passed


def _linear(layer: ClientLinear, x: Tensor | None, wanted: bool) -> tuple[Tensor, Backward]:
    return layer.output(x), lambda dy: layer.input_gradient(dy.contiguous(), wanted)


def _convolution(layer: ClientConv2d, x: Tensor, wanted: bool) -> tuple[Tensor, Backward]:
    x = channels_last(x)
    clients = layer.fed
    return layer.output(x), lambda dy: layer.input_gradient(x, dy, clients, wanted)


def _relu(_layer: nn.ReLU, x: Tensor, _wanted: bool) -> tuple[Tensor, Backward]:
    y = torch.relu(x)
    return y, lambda dy: torch.ops.aten.threshold_backward(dy, y, 0)


def _pool(layer: nn.MaxPool2d, x: Tensor, _wanted: bool) -> tuple[Tensor, Backward]:
    window = [
        [size, size] if isinstance(size, int) else list(size)
        for size in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    ]
    y, at = torch.ops.aten.max_pool2d_with_indices(x, *window, layer.ceil_mode)

    def back(dy: Tensor) -> Tensor:
        dx: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
            dy, x, *window, layer.ceil_mode, at
        )
        return dx

    return y, back


def _dropout(layer: BitDropout, x: Tensor, _wanted: bool) -> tuple[Tensor, Backward]:
    mask = layer.mask(x)
    return (x, lambda dy: dy) if mask is None else (x * mask, lambda dy: dy * mask)


def _flatten(layer: ImageFlatten, x: Tensor, _wanted: bool) -> tuple[Tensor, Backward]:
    shape = x.shape
    return layer.flat(x), lambda dy: layer.unflat(dy, shape)


_RULES: dict[type[nn.Module], Rule] = {
    ClientLinear: _linear,
    ClientConv2d: _convolution,
    nn.ReLU: _relu,
    nn.MaxPool2d: _pool,
    BitDropout: _dropout,
    ImageFlatten: _flatten,
}
