"""Faster forms of layers without parameters, for channels-last batches on a CPU.

They compute what the originals compute: `ReLU` after `MaxPool2d` instead of before it (a monotone
function commutes with the maximum), `Flatten` by transposing one image at a time, `Dropout` with
masks from 16 random bits per element.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["BitDropout", "ImageFlatten", "replacement", "swap_relu_and_pool"]

_LEVELS = 1 << 16
_BLOCKWISE = 3600  # elements from which torch copies a transposed matrix in blocks


def replacement(module: nn.Module) -> nn.Module | None:
    """A faster form of `module`, or None."""
    if type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
        return ImageFlatten()
    if type(module) is nn.Dropout and 0 < module.p < 1:
        return BitDropout(module.p)
    return None


def swap_relu_and_pool(model: nn.Module) -> None:
    """Turn every ``ReLU, MaxPool2d`` of a Sequential into ``MaxPool2d, ReLU``: less to rectify."""
    for module in model.modules():
        if type(module) is nn.Sequential:
            for at in range(len(module) - 1):
                first, second = module[at], module[at + 1]
                if type(first) is nn.ReLU and type(second) is nn.MaxPool2d and not second.padding:
                    module[at], module[at + 1] = second, first


class BitDropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose probability is rounded to 1/65536.

    Masks are a function of the last `reseed`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._bits = np.random.Generator(np.random.SFC64(0))

    def reseed(self, seed: int) -> None:
        """Masks from here on are a function of `seed`."""
        self._bits = np.random.Generator(np.random.SFC64(seed))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        mask = self.mask(x)
        return x if mask is None else x * mask

    def mask(self, x: Tensor) -> Tensor | None:
        """The factors 0 or 1 / (1 - p), in the shape of `x`; None if nothing is dropped."""
        dropped = min(round(self.p * _LEVELS), _LEVELS - 1)  # p < 1: something may be kept
        if not self.training or not dropped:
            return None
        count = x.numel()
        words = self._bits.integers(0, 1 << 64, size=-(-count // 4), dtype=np.uint64)
        kept = words.view(np.uint16)[:count] >= dropped
        mask = torch.from_numpy(kept).to(device=x.device, dtype=x.dtype)
        mask *= _LEVELS / (_LEVELS - dropped)
        # Strides as those of x, so that the product needs no reordering.
        return mask.as_strided(x.shape, x.stride()) if _dense(x) else mask.view(x.shape)


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


class ImageFlatten(nn.Module):
    """(N, C, H, W) or (N, ...) to (N, C H W), in that order."""

    def forward(self, x: Tensor) -> Tensor:
        """Flatten; channels-last images are transposed one by one."""
        if x.dim() != 4 or x.is_contiguous():
            return x.flatten(1)
        flat: Tensor = _ImageFlatten.apply(x, self)  # type: ignore[no-untyped-call]
        return flat

    def flat(self, x: Tensor) -> Tensor:
        """As `forward`, for callers that differentiate it with `unflat`."""
        if x.dim() != 4 or x.is_contiguous():
            return x.flatten(1)
        count, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        return _transposed(pixels).view(count, -1)

    def unflat(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """The gradient with respect to an input of `shape`; channels-last for images."""
        if len(shape) != 4:
            return gradient.view(shape)
        count, channels, height, width = shape
        pixels = _transposed(gradient.contiguous().view(count, channels, height * width))
        return pixels.view(count, height, width, channels).permute(0, 3, 1, 2)


class _ImageFlatten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: ImageFlatten) -> Tensor:
        ctx.shape, ctx.layer = x.shape, layer
        return layer.flat(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.unflat(grads[0], ctx.shape), None


def _transposed(matrices: Tensor) -> Tensor:
    """(N, P, Q) to (N, Q, P), contiguous.

    torch copies one large transposed matrix in blocks, but a stack of them element by element.
    """
    count, rows, columns = matrices.shape
    if rows * columns < _BLOCKWISE:
        return matrices.transpose(1, 2).contiguous()
    out = matrices.new_empty((count, columns, rows))
    for into, matrix in zip(out.unbind(0), matrices.unbind(0), strict=True):
        into.copy_(matrix.T)
    return out
