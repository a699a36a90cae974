"""Training from a graph against the torch loop: steps a second, difference, memory.

::

    OPENBLAS_NUM_THREADS=1 FEDSYS_DATA=data python -m simulations.benchmarks.graph_steps

Each line is one built-in model on its real data, for one local epoch on one thread: how far the
update is from the torch loop's, the rates of both by CPU time, and the training process's peak
resident memory. ``--engine ort`` uses onnxruntime. Models with dropout are left out, because torch
draws their masks differently. Without ``OPENBLAS_NUM_THREADS`` numpy uses all cores, and its CPU
time counts all of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from client.graphs.engine import EngineName, check_engine, engine_of
from client.graphs.process import SharedExamples, train
from client.graphs.trainer import GraphTrainer
from client.training import FlatLayout, LocalConfig
from client.training.loop import LoopPath
from client.training.schedule import build
from fedsys import tasks
from fedsys.tasks.export import export_task

__all__ = ["main"]

_SEED = 5
MODELS: tuple[tuple[str, dict[str, Any], LocalConfig, int], ...] = (
    ("digits", {}, LocalConfig(learning_rate=0.5), 200),
    ("mnist", {}, LocalConfig(learning_rate=0.1, momentum=0.9, weight_decay=1e-4), 603),
    ("mnist", {"model": "cnn"}, LocalConfig(learning_rate=0.1, momentum=0.9), 603),
    ("cifar10", {"model": "small"}, LocalConfig(learning_rate=0.05, proximal_mu=0.01), 203),
    ("shakespeare", {}, LocalConfig(learning_rate=1.0, batch_size=4), 22),
)
"""Task, options, local training and number of examples."""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", default="numpy", help="numpy or ort")
    engine = check_engine(parser.parse_args().engine)
    torch.set_num_threads(1)
    print(f"{'model':32}{'bytes':>9}{'apart':>10}{'torch/s':>9}{engine + '/s':>9}{'MB':>6}")
    for name, options, local, count in MODELS:
        _measure(name, options, local, count, engine)


def _measure(
    name: str, options: dict[str, Any], local: LocalConfig, count: int, engine: EngineName
) -> None:
    task = tasks.load(name, options)
    examples = task.clients(tasks.DataSource.locate()).train
    made = export_task(task, examples, name=name, options=options, batch_size=local.batch_size)
    model = task.init_model(0)
    start = FlatLayout.of(model).read(model)
    rows = np.arange(count) * 7 % len(examples)
    schedule, out = build([rows], [_SEED], local), torch.empty(1, len(start))
    loop = LoopPath(task, model, local)
    graph = GraphTrainer(
        made.graph, engine_of(engine, made), local, examples.x.numpy(), examples.y.numpy()
    )
    steps = len(schedule.steps)
    by_torch = steps / _seconds(lambda: loop.updates(start, examples, schedule, [_SEED], out))
    by_graph = steps / _seconds(lambda: graph.update(start.numpy(), rows, _SEED))
    shared = SharedExamples(examples.x[rows].numpy(), examples.y[rows].numpy())
    trained = train(
        made,
        shared,
        local,
        weights=start.numpy(),
        rows=np.arange(count),
        seed=_SEED,
        engine=engine,
    )
    apart = float(np.abs(trained.update - out[0].numpy()).max())
    memory = "?" if trained.peak is None else f"{trained.peak / 1e6:.0f}"
    label = f"{name} {' '.join(f'{key}={value}' for key, value in options.items())}"
    print(
        f"{label:32}{len(made.encoded):9,}{apart:10.1e}{by_torch:9.1f}{by_graph:9.1f}{memory:>6}",
        flush=True,
    )


def _seconds(work: Callable[[], object], least: float = 1.0) -> float:
    """Least CPU seconds of one call."""
    work()
    best, until = float("inf"), time.perf_counter() + least
    while time.perf_counter() < until:
        at = time.process_time()
        work()
        best = min(best, time.process_time() - at)
    return best


if __name__ == "__main__":
    main()
