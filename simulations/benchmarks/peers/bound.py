"""The bound: a work's least products at the rates of this machine's kernels. ``bound.py WORK OUT``

**Work.** Every product of one client's training (matrix products and convolutions, forward and
backward; not the products within fused attention) is recorded with its shapes while the plain loop
trains it. What can be had for less is taken off: under plain SGD the first layer, if it is linear,
multiplies by the round's model and adds up gradients once for each *distinct* example that the
round visits, because its inputs never change (the dual form). Clipping, noise and everything that
is no product count nothing. Zeros that ReLU, pooling and dropout leave are multiplied like other
numbers, as by every kernel here.

**Rate.** Each recorded product is timed with its own shapes, a convolution also with several times
the batch, and both with its own layout and channels-last, and the fastest counts; a matrix product
is never taken to be slower than the fastest large one. One process per core measures, all at once,
kernels taking turns, and a kernel's rate is its best. So the bound is what these kernels could do
if they waited for nothing else, and no engine that uses them is faster.

**As called.** The same work at the rates of the sizes that it comes in: convolutions of one
client's batch, in the faster layout, and, unless plain SGD lets a chunk's clients share them in the
dual form, matrix products as a client calls them. That is what an engine could reach on these
kernels if everything else took no time.
"""

from __future__ import annotations

import itertools
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

    def made(self, larger: int = 1, *, last: bool = False) -> Tensor:
        """A random tensor like it, with `larger` times as many rows; images channels-last if they
        are, or are asked to be."""
        shape = (self.shape[0] * larger, *self.shape[1:]) if self.shape else ()
        if not self.dtype.is_floating_point:
            return torch.zeros(shape, dtype=self.dtype)
        if last or larger > 1 or any(stride == 0 for stride in self.strides):
            found = torch.randn(shape, dtype=self.dtype)
            last |= len(shape) == 4 and self.strides[1] == 1 and shape[1] > 1
            images = last and len(shape) == 4
            return found.contiguous(memory_format=torch.channels_last) if images else found
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
        """How many times the batch, and a call, for each way that is timed."""
        convolves = self.name in _CONVOLUTIONS
        ways = itertools.product((1, _LARGER), (False, True)) if convolves else [(1, False)]
        for larger, last in ways:
            # Rows are those of the input and, backward, of the output's gradient; not of weights.
            rows = 2 if self.name == "convolution_backward" else 1

            def made(
                at: int, value: Any, larger: int = larger, rows: int = rows, last: bool = last
            ) -> Any:
                return _made(value, larger if at < rows else 1, last=last)

            arguments = [made(at, value) for at, value in enumerate(self.arguments)]
            keywords = {name: _made(value) for name, value in self.keywords.items()}

            def run(
                arguments: list[Any] = arguments, keywords: dict[str, Any] = keywords
            ) -> object:
                return self.call(*arguments, **keywords)

            yield larger, run


def _made(value: Any, larger: int = 1, *, last: bool = False) -> Any:
    return tree_map(
        lambda each: each.made(larger, last=last) if isinstance(each, _Like) else each, value
    )


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


def in_dual_form(work: Work) -> bool:
    """Whether a chunk's clients can share the products of linear layers: plain SGD alone."""
    local = work.local
    other = local.momentum or local.weight_decay or local.proximal_mu
    return local.optimizer == "sgd" and not other


def saved_by_dual_form(work: Work, held: int) -> float:
    """Operations that a client with `held` examples need not make in the first layer, of a inputs
    and b outputs, if it is linear and trained by plain SGD; at least 0.

    Directly, its v = epochs x held visits take 4 v a b operations, forward and for the gradient. In
    the dual form only the round's distinct examples are multiplied by the model and by the summed
    gradients. To that come the Gram matrix of the client's own examples, and the corrections by
    earlier steps.
    """
    local = work.local
    if not in_dual_form(work):
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
    """One core's seconds for a client of average size, also as its products are called, and its
    operations."""
    client = work.checked[0]
    products = products_of(work, client)
    kernels: list[tuple[int, int, int, Callable[[], object]]] = []
    for at, (product, _) in enumerate(products):
        kernels += [(at, larger, larger * product.flops, run) for larger, run in product.kernels()]
    for side in _SIDES:
        a, b = torch.randn(side, side), torch.randn(side, side)
        kernels.append((-1, 1, 2 * side**3, lambda a=a, b=b: torch.mm(a, b)))  # type: ignore[misc]
    own = dict.fromkeys(range(-1, len(products)), 0.0)  # at the sizes of the work
    best = dict(own)
    for _ in range(_TURNS):
        for at, larger, operations, run in kernels:
            rate = operations / _seconds(run)
            best[at] = max(best[at], rate)
            own[at] = max(own[at], rate) if larger == 1 else own[at]
    shared = in_dual_form(work)
    seconds = called = flops = 0.0
    for at, (product, times) in enumerate(products):
        convolves, operations = product.name in _CONVOLUTIONS, times * product.flops
        fastest = best[at] if convolves else max(best[at], best[-1])
        seconds += operations / fastest
        called += operations / (fastest if shared and not convolves else own[at])
        flops += operations
    held = max(work.examples([client]), 1)
    saved = saved_by_dual_form(work, held)
    scale = work.examples_per_client / held
    return {
        "seconds": scale * (seconds - saved / best[-1]),
        "called_seconds": scale * (called - saved / best[-1]),
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
    rate, called = (
        sum(1 / each[seconds] for each in found) for seconds in ("seconds", "called_seconds")
    )
    size = Work.read(Path(folder)).examples_per_client
    Path(sys.argv[2]).write_text(
        json.dumps(
            {
                "seconds": [0.0, 1.0],
                "clients": [0, rate],
                "examples": [0, size * rate],
                "cpu": [[1, 0.0], [2, float(cores)]],
                "memory": 0,
                "engine": {**found[0], "called": called},
            }
        )
    )


if __name__ == "__main__":
    main()
