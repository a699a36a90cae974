"""Matrix products that all clients of a chunk share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["linear"]

_WORTH = 1 << 24
"""Multiplications from which a kernel generated for the shape pays off: generating one takes a
millisecond."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, out) X W^T + b of `x` (N, in), `weight` (out, in) and `bias` (out,); no gradients.

    On a CPU, torch leaves float32 products to MKL, which is slower than oneDNN on AMD processors.
    oneDNN is reached by the operator that torch's compiler uses. If torch was built without it,
    the default BLAS serves.
    """
    if _onednn is None or x.device.type != "cpu" or x.dtype is not torch.float32:
        return functional.linear(x, weight, bias)
    if x.numel() * len(weight) < _WORTH:
        return functional.linear(x, weight, bias)
    return _onednn(x, weight, bias, "none", [], "")


_onednn: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
