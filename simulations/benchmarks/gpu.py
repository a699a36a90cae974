"""The engine's virtual clients a second on one device, next to the device's limits.

    python -m simulations.benchmarks.gpu --work W2 --device cuda:0 --data DIR

Runs rounds of the work's cohort through the engine alone, clipping included, timed by CUDA events;
the first round, in which graphs are recorded, is reported separately. Two bounds are measured on
the same device: large float32 matrix products bound the arithmetic of local training, and memory
copies bound the traffic of the clients' parameters. The larger fraction shows which one limits.

With ``--device cpu`` the same is timed by the clock. It is unmeasured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from client.training import LocalConfig, Trainer
from fedsys import config, tasks
from fedsys.wire.assignment import batch_seed
from simulations.benchmarks.machine import machine
from simulations.engine.chunk import Protocol, RoundWork
from simulations.setting import Setting, prepare

__all__ = ["main"]

_GEMM = {"cuda": 8192, "cpu": 1024}
_COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description="Clients a second on one device, and its bounds.")
    parser.add_argument("--work", default="w2", help="a recipe, e.g. W1")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--data", type=Path, default=None, help="folder with data files")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    json.dump(measure(options), sys.stdout, indent=2)
    print()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure rounds of one work on one device."""
    settings = [f"rounds.count={options.rounds}", "engine.processes=1", *options.set]
    setting = prepare(
        config.load(options.work.lower(), settings), data=options.data, device=options.device
    )
    device = setting.population.trainer.device
    with setting.engine:
        seconds, trained = _rounds(setting, options.rounds, device)
    rate = sum(trained[1:]) / sum(seconds[1:])
    flops, moved = _flops(setting), _bytes(setting)
    bounds = {"flops_per_second": _gemm(device), "bytes_per_second": 2 * _copies(device)}
    return {
        "work": options.work,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "engine": {"path": setting.config.engine.path, "chunk": setting.config.engine.chunk},
        "protocol": _protocol(setting),
        "clients_per_second": rate,
        "round_seconds": {"first": seconds[0], "median": statistics.median(seconds[1:])},
        "per_client": {"flops": flops, "parameter_bytes": moved},
        "bounds": bounds,
        "fraction_of_arithmetic": rate * flops / bounds["flops_per_second"],
        "fraction_of_bandwidth": rate * moved / bounds["bytes_per_second"],
        "machine": machine(),
    }


def _rounds(setting: Setting, rounds: int, device: torch.device) -> tuple[list[float], list[int]]:
    """Seconds and clients of each round."""
    population, event = setting.population, setting.plan.changed(noise="once").event()
    work = RoundWork(
        number=0,
        weights=population.trainer.initial_weights(),
        seed=bytes(32),
        mechanism=event.to_json(),
        protocol=_protocol(setting),
    )
    length = setting.plan.build_mechanism().length
    cohort = setting.config.cohort.expected
    seconds, trained = [], []
    for number in range(1, max(rounds, 2) + 1):
        first = number * cohort % max(population.size - cohort + 1, 1)
        clients = range(first, min(first + cohort, population.size))
        chunks = population.chunks(clients, setting.chunk, processes=setting.engine.processes)
        this = replace(work, number=number)
        seconds.append(_timed(lambda: setting.engine.total(this, chunks, length), device))  # noqa: B023
        trained.append(len(clients))
    return seconds, trained


def _protocol(setting: Setting) -> Protocol:
    """Sums of ``secure`` are measured as ``ideal``, because encryption is the host's work."""
    return "float" if setting.config.aggregation.protocol == "float" else "ideal"


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes, between two CUDA events or by the clock."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000


def _flops(setting: Setting) -> float:
    """Operations in client 0's matrix products and convolutions, forward and backward."""
    job, population = setting.config, setting.population
    trainer = Trainer(
        tasks.load(job.task.name, job.task.options),
        LocalConfig(**job.local.model_dump()),
        path="loop",
        chunk=1,
        seed=job.job.seed,
    )
    with FlopCounterMode(display=False) as counter:
        trainer.train(
            trainer.initial_weights(),
            population.train_set,
            [population.partition.indices_of(0)],
            [batch_seed(job.job.seed, 1, 0)],
        )
    return float(counter.get_total_flops())


def _bytes(setting: Setting) -> float:
    """Least memory traffic of one client's float32 parameters, in bytes.

    A step makes 6 passes: it reads the weights forward and backward, writes and reads gradients,
    and reads and writes the weights. An epoch's initial copy makes 2. Clipping makes 4 over the
    update: 1 for the norm, 2 to round, 1 to add.
    """
    local, population = setting.config.local, setting.population
    steps = LocalConfig(**local.model_dump()).steps(len(population.partition.indices_of(0)))
    return 4.0 * population.trainer.dimension * (2 + 6 * steps + 4)


def _gemm(device: torch.device) -> float:
    """Operations per second of large matrix products."""
    size = _GEMM[device.type]
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return 2.0 * size**3 / _best(lambda: torch.mm(a, b, out=out), device)


def _copies(device: torch.device) -> float:
    """Bytes per second that a copy reads; it writes the same number."""
    source = torch.zeros(_COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return source.numel() * 4 / _best(lambda: target.copy_(source), device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    work()
    return min(_timed(work, device) for _ in range(5))


if __name__ == "__main__":
    main()
