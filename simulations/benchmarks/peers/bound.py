"""The bound: a work's least products at the rates of this machine's kernels. ``bound.py WORK OUT``

**Work.** Every product of one client's training (matrix products and convolutions, forward and
backward; not the products within fused attention) is recorded with its shapes while the plain loop
trains it. What can be had for less is taken off: under plain SGD the first layer, if it is linear,
multiplies by the round's model and adds up gradients once for each *distinct* example that the
round visits, because its inputs never change (the dual form). Clipping, noise and everything that
is no product count nothing. Zeros that ReLU, pooling and dropout leave are multiplied like other
numbers, as by every kernel here.

**Rate.** Each recorded product is timed with its own shapes and layout, a convolution also with
several times the batch, and the fastest counts; a matrix product is never taken to be slower than
the fastest large one. One process per core measures, all at once, kernels taking turns, and a
kernel's rate is its best. So the bound is what these kernels could do if they waited for nothing
else, and no engine that uses them is faster.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from simulations.benchmarks.peers.work import Work, train_client

__all__ = ["Product", "measure", "products_of", "saved_by_dual_form"]

_TURNS = 5
_TURN = 0.02  # seconds of one kernel in a turn
_LARGER = 8  # times the batch
_SIDES = (256, 512, 1024)
_CONVOLUTIONS = ("convolution", "convolution_backward")


@dataclass(frozen=True)
class _Like:
    """A tensor's shape, strides and dtype."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def made(self, larger: int = 1) -> Tensor:
        """A random tensor like it, with `larger` times as many rows."""
        shape = (self.shape[0] * larger, *self.shape[1:]) if self.shape else ()
        if not self.dtype.is_floating_point:
            return torch.zeros(shape, dtype=self.dtype)
        if larger > 1 or any(stride == 0 for stride in self.strides):
            found = torch.randn(shape, dtype=self.dtype)
            last = len(self.shape) == 4 and self.strides[1] == 1 and self.shape[1] > 1
            return found.contiguous(memory_format=torch.channels_last) if last else found
        return torch.empty_strided(shape, self.strides, dtype=self.dtype).normal_()


@dataclass(frozen=True, eq=False)
class Product:
    """One kind of product of a client's training.

    Attributes:
        call: The operator.
        arguments: Its arguments, tensors as `_Like`.
        keywords: The same.
        flops: Floating-point operations of one call.
    """

    call: Any
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    flops: int

    @property
    def name(self) -> str:
        """The operator's name."""
        return str(self.call.overloadpacket.__name__)

    def kernels(self) -> Iterator[tuple[int, Callable[[], object]]]:
        """Operations and a call, for each way that is timed."""
        for larger in (1, _LARGER) if self.name in _CONVOLUTIONS else (1,):
            # Rows are those of the input and, backward, of the output's gradient; not of weights.
            rows = 2 if self.name == "convolution_backward" else 1

            def made(at: int, value: Any, larger: int = larger, rows: int = rows) -> Any:
                return _made(value, larger if at < rows else 1)

            arguments = [made(at, value) for at, value in enumerate(self.arguments)]
            keywords = {name: _made(value) for name, value in self.keywords.items()}

            def run(
                arguments: list[Any] = arguments, keywords: dict[str, Any] = keywords
            ) -> object:
                return self.call(*arguments, **keywords)

            yield self.flops * larger, run


def _made(value: Any, larger: int = 1) -> Any:
    return tree_map(lambda each: each.made(larger) if isinstance(each, _Like) else each, value)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects products while a client trains."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, Product] = {}
        self.times: Counter[str] = Counter()

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = call(*args, **(kwargs or {}))
        counted = flop_registry.get(call.overloadpacket)
        if counted is not None:

            def like(value: Any) -> Any:
                if not isinstance(value, Tensor):
                    return value
                return _Like(tuple(value.shape), tuple(value.stride()), value.dtype)

            arguments, keywords = tree_map(like, (tuple(args), dict(kwargs or {})))
            key = f"{call} {arguments} {keywords}"
            if key not in self.found:
                flops = int(counted(*args, **(kwargs or {}), out_val=out))
                self.found[key] = Product(call, arguments, keywords, flops)
            self.times[key] += 1
        return out


def products_of(work: Work, client: int) -> list[tuple[Product, int]]:
    """The products of a client's training, and how often each is there."""
    with _Recorder() as recorder:
        train_client(work, work.task.init_model(work.seed).train(), client)
    return [(product, recorder.times[key]) for key, product in recorder.found.items()]


def saved_by_dual_form(work: Work, held: int) -> float:
    """Operations that a client with `held` examples need not make in the first layer, of a inputs
    and b outputs, if it is linear and trained by plain SGD; at least 0.

    Directly, its v = epochs x held visits take 4 v a b operations, forward and for the gradient. In
    the dual form only the round's distinct examples are multiplied by the model and by the summed
    gradients. To that come the Gram matrix of the client's own examples, and the corrections by
    earlier steps.
    """
    local = work.local
    if local.optimizer != "sgd" or local.momentum or local.weight_decay or local.proximal_mu:
        return 0.0
    modules = work.task.init_model(work.seed).modules()
    first = next(each for each in modules if list(each.parameters(recurse=False)))
    if not isinstance(first, nn.Linear) or first.in_features != math.prod(work.x.shape[1:]):
        return 0.0
    rows = np.concatenate([work.rows(client) for client in next(iter(work.cohorts(1)))])
    repeated = 1 - len(np.unique(rows)) / max(len(rows), 1)
    a, b, visits = first.in_features, first.out_features, work.local.epochs * held
    steps = max(local.epochs * math.ceil(held / local.batch_size), 1)
    others = (1 - 1 / steps) * (held**2 * a + visits**2 * b)
    return max(4 * visits * a * b * repeated - others, 0.0)


def measure(work: Work) -> dict[str, Any]:
    """One core's seconds for a client of average size, and its operations."""
    client = work.checked[0]
    products = products_of(work, client)
    kernels: list[tuple[int, int, Callable[[], object]]] = []
    for at, (product, _) in enumerate(products):
        kernels += [(at, flops, run) for flops, run in product.kernels()]
    for side in _SIDES:
        a, b = torch.randn(side, side), torch.randn(side, side)
        kernels.append((-1, 2 * side**3, lambda a=a, b=b: torch.mm(a, b)))  # type: ignore[misc]
    best = dict.fromkeys(range(-1, len(products)), 0.0)
    for _ in range(_TURNS):
        for at, operations, run in kernels:
            best[at] = max(best[at], operations / _seconds(run))
    seconds = flops = 0.0
    for at, (product, times) in enumerate(products):
        rate = best[at] if product.name in _CONVOLUTIONS else max(best[at], best[-1])
        seconds += times * product.flops / rate
        flops += times * product.flops
    held = max(work.examples([client]), 1)
    saved = saved_by_dual_form(work, held)
    scale = work.examples_per_client / held
    return {
        "seconds": scale * (seconds - saved / best[-1]),
        "flops": scale * (flops - saved),
        "plain_flops": scale * flops,
        "gigaflops": best[-1] / 1e9,
    }


def _seconds(run: Callable[[], object]) -> float:
    """CPU seconds of the shortest of some calls: those of this thread, which does all the work, so
    that another program on the same core does not make a long kernel look slow."""
    best, began = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - began < _TURN:
        started = time.thread_time()
        run()
        best = min(best, max(time.thread_time() - started, 1e-9))
    return best


def main() -> None:
    """Entry point of the process: with an OUT it starts one process per core, else it is one."""
    torch.set_num_threads(1)
    folder = sys.argv[1]
    if len(sys.argv) == 2:
        print(json.dumps(measure(Work.read(Path(folder)))))
        return
    cores = len(os.sched_getaffinity(0))
    running = [
        subprocess.Popen([sys.executable, __file__, folder], stdout=subprocess.PIPE, text=True)
        for _ in range(cores)
    ]
    found = [json.loads(process.communicate()[0]) for process in running]
    rate = sum(1 / each["seconds"] for each in found)
    size = Work.read(Path(folder)).examples_per_client
    Path(sys.argv[2]).write_text(
        json.dumps(
            {
                "seconds": [0.0, 1.0],
                "clients": [0, rate],
                "examples": [0, size * rate],
                "cpu": [[1, 0.0], [2, float(cores)]],
                "memory": 0,
                "engine": found[0],
            }
        )
    )


if __name__ == "__main__":
    main()
