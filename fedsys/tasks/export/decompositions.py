"""Operators of torch written as simpler ones, by the textbook's formulas.

Torch has decompositions of its own; those listed here end in strides or in primitives that no rule
covers, or are written for speed on torch's own kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsys.tasks.export.lowering import RULES, UnsupportedError

__all__ = ["decompositions"]

aten = torch.ops.aten
_ROOT_2_BY_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715  # Hendrycks and Gimpel 2016 (arXiv:1606.08415), section 2


def _normalised(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(dims, keepdim=True)
    apart = x - mean
    rstd = torch.rsqrt((apart * apart).mean(dims, keepdim=True) + eps)
    return apart * rstd, mean, rstd


def _gradient_of_normalised(above: Tensor, normal: Tensor, rstd: Tensor, dims: list[int]) -> Tensor:
    """The gradient through ``(x - mean) rstd``: what remains of `above` besides 1 and `normal`."""
    along = (above * normal).mean(dims, keepdim=True)
    return rstd * (above - above.mean(dims, keepdim=True) - normal * along)


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    made, mean, rstd = _normalised(x, list(range(x.dim() - len(shape), x.dim())), eps)
    made = made if weight is None else made * weight
    return (made if bias is None else made + bias), mean, rstd


def _layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    inner = list(range(x.dim() - len(shape), x.dim()))
    outer = list(range(x.dim() - len(shape)))

    def over(each: Tensor) -> Tensor:
        return each.sum(outer) if outer else each

    normal = (x - mean) * rstd
    above = grad if weight is None else grad * weight
    return (
        _gradient_of_normalised(above, normal, rstd, inner),
        None if weight is None else over(grad * normal),
        None if bias is None else over(grad),
    )


def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    count: int,
    channels: int,
    area: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    made, mean, rstd = _normalised(x.reshape(count, groups, -1), [2], eps)
    made = made.reshape(x.shape)
    wide = [1, channels] + [1] * (x.dim() - 2)
    made = made if weight is None else made * weight.reshape(wide)
    made = made if bias is None else made + bias.reshape(wide)
    return made, mean.reshape(count, groups), rstd.reshape(count, groups)


def _group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    count: int,
    channels: int,
    area: int,
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    outer = [0, *range(2, x.dim())]
    rstd = rstd.reshape(count, groups, 1)
    normal = (x.reshape(count, groups, -1) - mean.reshape(count, groups, 1)) * rstd
    above = grad
    if weight is not None:
        above = grad * weight.reshape([1, channels] + [1] * (x.dim() - 2))
    of_x = _gradient_of_normalised(above.reshape(count, groups, -1), normal, rstd, [2])
    of_weight = (grad * normal.reshape(x.shape)).sum(outer)
    return of_x.reshape(x.shape), of_weight, grad.sum(outer)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(_ROOT_2_BY_PI * (x + _CUBIC * x * x * x)))
    return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))


def _gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        tanh = torch.tanh(_ROOT_2_BY_PI * (x + _CUBIC * x * x * x))
        inner = _ROOT_2_BY_PI * (1 + 3 * _CUBIC * x * x)
        return grad * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * inner)
    below = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    density = torch.exp(x * x * -0.5) / math.sqrt(2 * math.pi)
    return grad * (below + x * density)


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    return torch.where(x > 0, x * scale, torch.expm1(x * input_scale) * (alpha * scale))


def _hardtanh(x: Tensor, min_val: float = -1, max_val: float = 1) -> Tensor:
    return x.clamp(min_val, max_val)


def _leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    return torch.where(x > 0, x, x * negative_slope)


def _var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float = 1, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    dims = list(range(x.dim())) if dim is None else [each % x.dim() for each in dim]
    count = math.prod(x.shape[each] for each in dims)
    mean = x.mean(dims, keepdim=True)
    var = ((x - mean) * (x - mean)).sum(dims, keepdim=True) / (count - correction)
    return (var, mean) if keepdim else (var.squeeze(dims), mean.squeeze(dims))


def _var(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float = 1, keepdim: bool = False
) -> Tensor:
    return _var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def _vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    dims = list(range(x.dim())) if dim is None else list(dim)
    if ord == 2:
        return (x * x).sum(dims, keepdim=keepdim).sqrt()
    if ord == 1:
        return x.abs().sum(dims, keepdim=keepdim)
    if ord == math.inf:
        return x.abs().amax(dims, keepdim=keepdim)
    raise UnsupportedError(f"a norm of order {ord}")


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    if not dims:
        return _roll(x.reshape(-1), shifts, [0]).reshape(x.shape)
    for by, dim in zip(shifts, dims, strict=True):
        size = x.shape[dim]
        start = -by % size
        if start:
            first, second = x.narrow(dim, start, size - start), x.narrow(dim, 0, start)
            x = torch.cat([first, second], dim)
    return x


_OWN: dict[Any, Callable[..., Any]] = {
    aten.elu.default: _elu,
    aten.gelu.default: _gelu,
    aten.gelu_backward.default: _gelu_backward,
    aten.hardtanh.default: _hardtanh,
    aten.leaky_relu.default: _leaky_relu,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.roll.default: _roll,
    aten.var.correction: _var,
    aten.var_mean.correction: _var_mean,
}


def decompositions() -> dict[Any, Callable[..., Any]]:
    """How operators that no rule covers are written as others."""
    found = {**torch._decomp.core_aten_decompositions(), **_OWN}
    return {target: function for target, function in found.items() if target not in RULES}
