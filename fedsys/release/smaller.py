"""A smaller model: weights of 8 bits, and the smallest weights set to zero.

Both are post-processing of a released model, so they cost no privacy. They change what it computes:
look at the figures before and after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsys.errors import ConfigError

__all__ = ["Int8", "WithInt8", "dequantized", "pruned", "quantized"]

_LEVELS = 127


@dataclass(frozen=True, kw_only=True)
class Int8:
    """One parameter: ``weight ~ values * scale``, with a scale for each of its first dimension.

    Attributes:
        values: int8, of the parameter's shape, from -127 to 127.
        scale: (n, 1, ...) in the parameter's dtype.
    """

    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Int8:
        """The nearest values to a weight; an error is at most half a scale."""
        largest = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
        scale = torch.where(largest > 0, largest / _LEVELS, torch.ones_like(largest))
        values = (weight / scale).round().clamp(-_LEVELS, _LEVELS)
        return cls(values=values.to(torch.int8), scale=scale)

    @property
    def weight(self) -> Tensor:
        """What it stands for."""
        return self.values.to(self.scale.dtype) * self.scale


def _matrices(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries that are made smaller: matrices and kernels, each once."""
    found: dict[str, Tensor] = {}
    places: set[Any] = set()
    for name, value in state.items():
        place = (value.data_ptr(), tuple(value.shape))
        if value.ndim > 1 and value.is_floating_point() and value.numel() and place not in places:
            found[name] = value
            places.add(place)
    return found


def pruned(state: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """A copy of a ``state_dict`` in which this fraction of all weights of matrices and kernels, the
    smallest, is zero.

    Args:
        state: stays as it is.
        fraction: above 0 and below 1.

    Raises:
        ConfigError: the fraction is another number, or there is no matrix.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"--prune {fraction:g}: a fraction above 0 and below 1, such as 0.5")
    matrices = _matrices(state)
    if not matrices:
        raise ConfigError(f"--prune {fraction:g}: the model has no matrix to prune")
    sizes = torch.cat([value.abs().float().flatten() for value in matrices.values()])
    count = math.floor(fraction * sizes.numel())
    keep = torch.ones(sizes.numel(), dtype=torch.bool)
    keep[sizes.argsort(stable=True)[:count]] = False
    made, start = {name: value.clone() for name, value in state.items()}, 0
    masks: dict[Any, Tensor] = {}
    for value in matrices.values():
        masks[value.data_ptr()] = keep[start : start + value.numel()].view(value.shape)
        start += value.numel()
    for name, value in state.items():
        mask = masks.get(value.data_ptr())
        if mask is not None and mask.shape == value.shape:
            made[name] = torch.where(mask, value, torch.zeros_like(value))
    return made


def quantized(state: Mapping[str, Tensor]) -> dict[str, Int8]:
    """The matrices and kernels of a ``state_dict`` as 8-bit integers, under all of their names.

    Raises:
        ConfigError: there is none, or one is not finite.
    """
    matrices = _matrices(state)
    if not matrices:
        raise ConfigError("--quantize int8: the model has no matrix to quantize")
    found: dict[Any, Int8] = {}
    for name, value in matrices.items():
        if not bool(value.isfinite().all()):
            raise ConfigError(f"--quantize int8: {name} is not finite")
        found[value.data_ptr()] = Int8.of(value)
    return {
        name: found[value.data_ptr()]
        for name, value in state.items()
        if value.data_ptr() in found and value.shape == found[value.data_ptr()].values.shape
    }


def dequantized(state: Mapping[str, Tensor], small: Mapping[str, Int8]) -> dict[str, Tensor]:
    """The ``state_dict`` that a quantized one stands for."""
    return {name: small[name].weight if name in small else each for name, each in state.items()}


class WithInt8(nn.Module):
    """A model whose matrices are stored as integers, and computed where they are used.

    Args:
        model: in evaluation mode; its own matrices are dropped.
        small: its matrices, by name.
    """

    def __init__(self, model: nn.Module, small: Mapping[str, Int8]) -> None:
        super().__init__()
        self.model = model
        held: dict[int, int] = {}
        places: dict[tuple[int, str], tuple[str, int]] = {}  # a module may go by several names
        for name, each in small.items():
            if id(each) not in held:
                held[id(each)] = len(held)
                self.register_buffer(f"values_{held[id(each)]}", each.values)
                self.register_buffer(f"scale_{held[id(each)]}", each.scale)
            owner, _, last = name.rpartition(".")
            module = model.get_submodule(owner)
            if last in module._parameters:
                module._parameters[last] = nn.Parameter(torch.empty(0), requires_grad=False)
            else:
                module._buffers[last] = torch.empty(0)
            places.setdefault((id(module), last), (name, held[id(each)]))
        self._places = tuple(places.values())
        self.eval()

    def forward(self, x: Any) -> Any:
        """What the model computes with the weights that the integers stand for."""
        weights: dict[str, Tensor] = {}
        for name, at in self._places:
            scale = self.get_buffer(f"scale_{at}")
            weights[name] = self.get_buffer(f"values_{at}").to(scale.dtype) * scale
        return torch.func.functional_call(self.model, weights, (x,), tie_weights=False)
