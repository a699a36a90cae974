"""Work that is recorded once and repeated: a CUDA graph on a GPU, a plain call on a CPU.

What is recorded reads and writes tensors that stay where they are, and asks the host nothing. The
same code then runs in both forms; tests run the plain one. The CUDA form is unmeasured: it was
written without a GPU at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

__all__ = ["CudaRecorder", "PlainRecorder", "Recorder", "recorder_for"]

Work = Callable[[], None]

_WARM_UPS = 3


class Recorder(Protocol):
    """Turns work into something that repeats it."""

    def record(self, work: Work) -> Work:
        """Repeats `work`. Recording may already run it, any number of times."""
        ...


class PlainRecorder:
    """Repeats work by doing it again."""

    def record(self, work: Work) -> Work:
        """`work` itself."""
        return work


class CudaRecorder:
    """Captures work into `torch.cuda.CUDAGraph`; all graphs of a recorder share one memory pool.

    One launch then stands for the thousands of kernels of a local epoch: small clients are bound by
    launches, not by arithmetic. Before the capture the work runs on a side stream, so that
    libraries have chosen their kernels and allocated their workspaces.

    Args:
        device: whose memory the work is in.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, work: Work) -> Work:
        """See `Recorder`."""
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            here, beside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(here)
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UPS):
                    work()
            here.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay


def recorder_for(device: torch.device) -> Recorder:
    """What repeats work best on `device`."""
    return CudaRecorder(device) if device.type == "cuda" else PlainRecorder()
