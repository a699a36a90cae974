"""A step of local training, as it is and under `torch.compile`: CPU milliseconds of one thread.

    python -m simulations.benchmarks.compiled_step --work W6

One model trains eagerly and one compiled, on the same random batch of characters; they take turns.
Compiling, for which inductor needs a C++ compiler, is counted apart, with its compiler's time.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from client.training import LocalConfig
from fedsys import config, tasks
from simulations.benchmarks.machine import machine
from simulations.benchmarks.peers.work import Local, optimizer_of

__all__ = ["main", "measure"]

_CHARACTERS = 60


def measure(work: str, settings: Sequence[str], *, steps: int, turns: int, backend: str) -> Any:
    """Milliseconds a step of every turn, by ``eager`` and ``compiled``, and the CPU seconds of
    compiling, those of the compiler apart."""
    job = config.load(work.lower(), list(settings))
    if job.task.name != "shakespeare":
        raise SystemExit(f"--work {work}: this compares models of characters; use W4 or W6")
    task = tasks.load(job.task.name, job.task.options)
    local = Local.of(LocalConfig(**job.local.model_dump()).__dict__)
    generator = torch.Generator().manual_seed(0)
    shape = (local.batch_size, job.task.options["sequence"])
    x, y = (torch.randint(_CHARACTERS, shape, generator=generator) for _ in range(2))

    def trained(compiled: bool) -> Callable[[int], float]:
        model = task.init_model(0).train()
        optimizer = optimizer_of(local, list(model.parameters()), local.learning_rate)
        called: Any = torch.compile(model, backend=backend, dynamic=False) if compiled else model

        def some(count: int) -> float:
            began = time.thread_time()
            for _ in range(count):
                optimizer.zero_grad()
                task.loss(called(x), y).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            return 1000 * (time.thread_time() - began) / count

        return some

    kinds = {"eager": trained(False), "compiled": trained(True)}
    kinds["eager"](1)
    before = _children()
    compiling = kinds["compiled"](1) / 1000
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    compiler = _children() - before
    for _ in range(turns):
        for kind, some in kinds.items():
            found[kind].append(some(steps))
    return {**found, "compiling_s": compiling, "compiler_s": compiler}


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", default="W6", help="W4 or W6")
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    if min(options.steps, options.turns) < 1:
        raise SystemExit("--steps and --turns must be 1 or more")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # its workers would not be counted
    torch.set_num_threads(1)
    found = measure(
        options.work,
        options.set,
        steps=options.steps,
        turns=options.turns,
        backend=options.backend,
    )
    for kind in ("eager", "compiled"):
        turns = " ".join(f"{each:.3g}" for each in found[kind])
        print(f"{kind}: {statistics.median(found[kind]):.3g} CPU ms a step ({turns})")
    print(
        f"compiling: {found['compiling_s']:.3g} CPU s, and {found['compiler_s']:.3g} of a compiler"
    )
    print(
        f"{machine()['processor']}, load {machine()['load']:.1f}; `python -m "
        f"{' '.join(['simulations.benchmarks.compiled_step', *sys.argv[1:]])}`"
    )


if __name__ == "__main__":
    main()
