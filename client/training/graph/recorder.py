"""Work that is recorded once and replayed: a CUDA graph on a GPU, a plain call on a CPU.

Recorded work reads and writes tensors at fixed addresses and never waits for the host, so the same
code runs in both forms. Tests run the plain one; the CUDA form has not been measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

__all__ = ["CudaRecorder", "PlainRecorder", "Recorder", "recorder_for"]

Work = Callable[[], None]

_WARM_UPS = 3


class Recorder(Protocol):
    """Turns work into a function that repeats it."""

    def record(self, work: Work) -> Work:
        """A function that repeats `work`. Recording may run `work` any number of times."""
        ...


class PlainRecorder:
    """Repeats work by calling it again."""

    def record(self, work: Work) -> Work:
        """`work` itself."""
        return work


class CudaRecorder:
    """Captures work into `torch.cuda.CUDAGraph`; all graphs of a recorder share one memory pool.

    One launch then stands for the thousands of kernels of a local epoch: small clients are bound by
    launches, not by arithmetic. Before the capture the work runs on a side stream, so that
    libraries have chosen their kernels and allocated their workspaces.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, work: Work) -> Work:
        """See `Recorder`."""
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            here, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(here)
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    work()
            here.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay


def recorder_for(device: torch.device) -> Recorder:
    """The recorder that suits `device`."""
    return CudaRecorder(device) if device.type == "cuda" else PlainRecorder()
