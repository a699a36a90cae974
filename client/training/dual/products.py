"""Matrix products that all clients of a chunk share.

On a CPU, torch leaves float32 products to MKL, which is slower than oneDNN on processors other than
Intel's and faster on those. oneDNN is reached by the operator that torch's compiler uses. If torch
was built without it, the default BLAS serves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["linear", "sum_of_outer"]

_WORTH = 1 << 24
"""Multiplications from which a kernel generated for the shape pays off: generating one takes a
millisecond."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, out) X W^T + b of `x` (N, in), `weight` (out, in) and `bias` (out,); no gradients."""
    if _onednn is None or not _worth(x, len(weight)):
        return functional.linear(x, weight, bias)
    return _onednn(x, weight, bias, "none", [], "")


def sum_of_outer(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write the sum of the rows' outer products, A^T B of A (N, m) and B (N, n), to `out` (m, n);
    no gradients."""
    if _onednn is None or not _worth(right, left.shape[1]):
        torch.mm(left.T, right, out=out)
    else:
        out.copy_(_onednn(left.T, right.T, None, "none", [], ""))


def _worth(x: Tensor, others: int) -> bool:
    plain = x.device.type == "cpu" and x.dtype is torch.float32
    return plain and x.numel() * others >= _WORTH


_capabilities = torch.cpu.get_capabilities()
_onednn: Callable[..., Tensor] | None = (
    None
    if "Intel" in str(_capabilities.get("cpu_name"))
    else getattr(torch.ops.mkldnn, "_linear_pointwise", None)
)
