"""What crosses from the host to the device: through pinned memory, without waiting."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Staging"]


class Staging:
    """Copies host arrays into tensors that stay where they are.

    On CUDA, a copy goes through page-locked memory and returns at once. PyTorch's host allocator
    gives such a block away again only when the copy out of it has been done.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"

    def copy(self, into: Tensor, values: NDArray[Any]) -> None:
        """`values` into `into`, of the same shape."""
        held = torch.from_numpy(values).to(into.dtype)
        if self._pinned:
            into.copy_(held.pin_memory(), non_blocking=True)
        else:
            into.copy_(held)
