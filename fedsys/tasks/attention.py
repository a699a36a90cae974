"""Causal self-attention by one fused kernel, for one model or for the models of many clients.

``torch.nn.functional.scaled_dot_product_attention`` falls back to unfused products under
``torch.func.vmap``. Attention has no weights, so clients are a further part of its batch: here a
vmapped axis is merged into it, and many clients' attention is one call of the same kernel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["causal_attention"]

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax(Q K^T / sqrt(D)) V with each position attending to itself and those before it
    (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1).

    Args:
        query: (B, heads, T, D).
        key: The same shape.
        value: The same shape.

    Returns:
        (B, heads, T, D).
    """
    if query.device.type != "cpu":
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    out: Tensor = _Attention.apply(query, key, value)[0]  # type: ignore[no-untyped-call]
    return out


def _by_rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The kernels read each row of D numbers as one piece of memory, without a check."""
    return tuple(each if each.stride(-1) == 1 else each.contiguous() for each in tensors)


def _merged(info: Any, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Tensors (..., B, ...) with the vmapped axis in front, merged into the batch."""
    found = []
    for tensor, dim in zip(tensors, dims, strict=True):
        if dim is None:
            tensor = tensor.unsqueeze(0).expand(info.batch_size, *tensor.shape)
        else:
            tensor = tensor.movedim(dim, 0)
        found.append(tensor.reshape(-1, *tensor.shape[2:]))
    return found


def _split(info: Any, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The reverse of `_merged`."""
    return tuple(each.reshape(info.batch_size, -1, *each.shape[1:]) for each in tensors)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        out, logsumexp = _forward(*_by_rows(query, key, value), 0.0, True)
        return out, logsumexp

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = _Gradient.apply(  # type: ignore[no-untyped-call]
            grads[0], *ctx.saved_tensors
        )
        return found

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        out = _Attention.apply(*_merged(info, dims, tensors))  # type: ignore[no-untyped-call]
        return _split(info, out), (0, 0)


class _Gradient(torch.autograd.Function):
    """The gradient, an operation of its own so that it can be vmapped too; once differentiable."""

    @staticmethod
    def forward(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor
    ) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = _backward(
            *_by_rows(grad, query, key, value, out),
            logsumexp,
            0.0,
            True,
            scale=1 / math.sqrt(query.shape[-1]),
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise RuntimeError("causal_attention is differentiable once; it has no second derivative")

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
        out = _Gradient.apply(*_merged(info, dims, tensors))  # type: ignore[no-untyped-call]
        return _split(info, out), (0, 0, 0)
