"""Known layers one after the other, differentiated without the autograd engine.

Clients are small: in their models the engine's bookkeeping costs as much as a tenth of all
arithmetic. Here every layer keeps what its own backward pass needs. The loss is still the task's,
and differentiated by the engine.
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
"""From a layer, its input, and whether a gradient of that is wanted: its output, and what makes of
the output's gradient the input's, while the layer takes its own step."""


class Chain:
    """Layers in sequence.

    Args:
        before: layers that need no gradient: no layer with parameters comes before them.
        layers: the rest, the first of them with parameters.
    """

    def __init__(self, before: list[nn.Module], layers: list[nn.Module]) -> None:
        self._before = before
        self._layers = [(layer, _RULES[type(layer)]) for layer in layers]
        self._frames: list[list[Backward]] = []

    @classmethod
    def of(cls, layers: Iterable[nn.Module], *, gradient: bool = False) -> Chain | None:
        """None where there is a layer without a rule.

        Args:
            layers: one after the other.
            gradient: whether the first layer's input has a gradient.
        """
        before: list[nn.Module] = []
        after: list[nn.Module] = []
        for layer in layers:
            trained = any(isinstance(part, ClientConv2d | ClientLinear) for part in layer.modules())
            (after if trained or after or gradient else before).append(layer)
        return cls(before, after) if all(type(layer) in _RULES for layer in after) else None

    def reset(self) -> None:
        """Forget passes that will not go back."""
        self._frames.clear()

    @torch.no_grad()
    def prepared(self, x: Tensor | None) -> Tensor | None:
        """What the layers make of `x` (None if there is none) that need no gradient."""
        for layer in self._before:
            x = layer(x)
        return x

    @torch.no_grad()
    def forward(self, x: Tensor | None, *, wanted: bool = False) -> Tensor:
        """The last layer's output; what it takes to go back is kept until `backward`.

        Args:
            x: as `prepared` gives it; None where the first layer was started with its data.
            wanted: whether `backward` is to return its gradient.
        """
        frame: list[Backward] = []
        y: Any = x
        for layer, rule in self._layers:
            y, back = rule(layer, y, wanted or bool(frame))
            frame.append(back)
        self._frames.append(frame)
        outputs: Tensor = y
        return outputs

    @torch.no_grad()
    def backward(self, gradient: Tensor) -> Tensor | None:
        """Of the last `forward` that did not go back yet; the layers take their steps.

        Args:
            gradient: of the output.

        Returns:
            The input's gradient, where it was wanted.
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
