"""How many clients fit into a GPU at once: free memory over measured bytes per client.

Tested with a simulated memory; not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

__all__ = ["CudaMemory", "DeviceMemory", "clients_that_fit"]

_FEW, _MORE = 2, 8
_SHARE = 0.75
"""The fraction of free memory to fill: evaluation, chunks of other shapes and the allocator's
rounding need some too."""


class DeviceMemory(Protocol):
    """The memory of one device."""

    def free(self) -> int:
        """Bytes that are not in use."""
        ...

    def peak(self, work: Callable[[], object]) -> int:
        """The most bytes that are in use during `work`, beyond those in use before it."""
        ...


class CudaMemory:
    """Memory as reported by the driver and PyTorch's allocator.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free(self) -> int:
        """See `DeviceMemory`; memory of other programs counts as in use."""
        torch.cuda.empty_cache()
        free: int = torch.cuda.mem_get_info(self._device)[0]
        return free

    def peak(self, work: Callable[[], object]) -> int:
        """See `DeviceMemory`."""
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.max_memory_allocated(self._device)) - before


def clients_that_fit(memory: DeviceMemory, train: Callable[[int], object], most: int) -> int:
    """K, the number of clients to train at once.

    The peak is taken to be affine in K: it is measured at two values and solved for the free
    memory.

    Args:
        memory: the device's.
        train: trains the given number of clients and frees what it needed.
        most: upper bound on K.

    Returns:
        From 1 to `most`. An estimate: the caller still has to halve it when memory runs out.
    """
    try:
        small = memory.peak(lambda: train(_FEW))
        large = memory.peak(lambda: train(_MORE))
    except torch.OutOfMemoryError:
        return 1
    each = max((large - small) / (_MORE - _FEW), 1.0)
    fixed = max(small - _FEW * each, 0.0)
    return max(1, min(most, int((_SHARE * memory.free() - fixed) / each)))
