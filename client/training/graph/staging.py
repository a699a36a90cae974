"""Copies between the host and a device, through pinned memory and without waiting.

Tested without a GPU, where nothing is pinned; not measured on one.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsys.errors import TrainingError

__all__ = ["Fetched", "Staging"]

_PAUSE = 2e-5


class Staging:
    """Copies host arrays into tensors at fixed addresses.

    On CUDA, a copy goes through page-locked memory and returns at once. PyTorch's host allocator
    reuses such a block only after the copy out of it has completed.

    Args:
        device: where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"

    def copy(self, into: Tensor, values: NDArray[Any]) -> None:
        """Copy `values` to `into`, of the same shape."""
        held = torch.from_numpy(values).to(into.dtype)
        if self._pinned:
            into.copy_(held.pin_memory(), non_blocking=True)
        else:
            into.copy_(held)

    def fetch(self, values: Tensor) -> Fetched:
        """Start copying `values` to the host."""
        return Fetched(values)


class Fetched:
    """Values on their way to the host.

    Args:
        values: on any device; later changes to them do not arrive.
    """

    def __init__(self, values: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(values.device))
        else:
            self._values = values.clone()

    def wait(self, deadline: float) -> NDArray[Any]:
        """The values, once they have arrived.

        Args:
            deadline: seconds to wait.

        Raises:
            TrainingError: they did not arrive in time.
        """
        if self._arrived is not None:
            until = time.monotonic() + deadline
            while not self._arrived.query():  # type: ignore[no-untyped-call]
                if time.monotonic() > until:
                    raise TrainingError(
                        f"the GPU gave no answer for {deadline:g} s; raise engine.deadline, lower "
                        f"engine.chunk, or check what else uses the GPU"
                    )
                time.sleep(_PAUSE)
        found: NDArray[Any] = self._values.numpy()
        return found
