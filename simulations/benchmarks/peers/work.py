"""A work as every engine gets it: the same model, weights, data, batches and hyper-parameters.

Imported by scripts that run in the peers' environment: nothing here but numpy, torch and tasks.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsys import tasks

__all__ = ["Clock", "Work", "delta_of", "train_client"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """One work, read from the folder that the driver wrote.

    Attributes:
        task: model and loss.
        x: (M, ...) inputs, and
        y: (M, ...) targets, each client's in the order of its batches.
        offsets: (N + 1,) client k has rows ``offsets[k]:offsets[k + 1]``.
        seed: of the initial weights.
        cohort: clients a round.
        batch_size: of local training, and
        learning_rate: of its SGD; one epoch.
        check: the same task without dropout, to compare one client's update.
    """

    task: tasks.Task
    x: Tensor
    y: Tensor
    offsets: NDArray[np.int64]
    seed: int
    cohort: int
    batch_size: int
    learning_rate: float
    check: tasks.Task

    @classmethod
    def read(cls, folder: Path) -> Work:
        """The work of a folder."""
        facts: dict[str, Any] = json.loads((folder / "work.json").read_text())
        name = facts.pop("task")
        task, check = (tasks.load(name, facts.pop(key)) for key in ("options", "check_options"))
        arrays = {name: np.load(folder / f"{name}.npy") for name in ("x", "y", "offsets")}
        return cls(
            task=task,
            check=check,
            x=torch.from_numpy(arrays["x"]),
            y=torch.from_numpy(arrays["y"]),
            offsets=arrays["offsets"],
            **facts,
        )

    def for_check(self) -> Work:
        """The same work, of which one client's update is compared."""
        return replace(self, task=self.check)

    @property
    def clients(self) -> int:
        """N."""
        return len(self.offsets) - 1

    def rows(self, client: int) -> tuple[Tensor, Tensor]:
        """A client's inputs and targets."""
        some = slice(int(self.offsets[client]), int(self.offsets[client + 1]))
        return self.x[some], self.y[some]

    def cohorts(self, rounds: int) -> Iterator[list[int]]:
        """The same cohorts for every engine."""
        rng = np.random.default_rng(self.seed)
        for _ in range(rounds):
            yield rng.choice(self.clients, size=self.cohort, replace=False).tolist()


def train_client(work: Work, model: nn.Module, client: int) -> None:
    """What everybody writes: SGD over a client's batches."""
    x, y = work.rows(client)
    optimizer = torch.optim.SGD(model.parameters(), lr=work.learning_rate)
    for start in range(0, len(x), work.batch_size):
        batch = slice(start, start + work.batch_size)
        optimizer.zero_grad()
        work.task.loss(model(x[batch]), y[batch]).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def delta_of(before: dict[str, Tensor], model: nn.Module) -> NDArray[np.float64]:
    """(d,) how far the parameters moved."""
    moved = [
        (value.detach().double() - before[name].double()).flatten()
        for name, value in model.named_parameters()
    ]
    return np.asarray(torch.cat(moved).numpy(), dtype=np.float64)


class Clock:
    """Each round's seconds, and CPU seconds and memory of the process and all below it."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._clients: list[int] = []
        self._cpu: list[float] = []
        self._memory = 0
        self._looking = 0.0
        self._last = time.perf_counter()
        self.facts: dict[str, Any] = {}

    def start(self) -> None:
        """The first round begins."""
        self._last = time.perf_counter()

    def lap(self, clients: int) -> None:
        """A round has ended; what is looked up here is in no round's seconds, of CPU neither."""
        self._seconds.append(time.perf_counter() - self._last)
        self._clients.append(clients)
        began = time.process_time()
        cpu, memory = _process_tree()
        self._cpu.append(cpu - self._looking)
        self._looking += time.process_time() - began
        self._memory = max(self._memory, memory)
        self._last = time.perf_counter()

    def recount(self, clients: list[int]) -> None:
        """How many clients each round had, where that is known only now."""
        self._clients = clients

    def write(self, path: Path) -> None:
        """All of it, as JSON."""
        found = {
            "seconds": self._seconds,
            "clients": self._clients,
            "cpu": self._cpu,
            "memory": self._memory,
            "threads": torch.get_num_threads(),
            **self.facts,
        }
        path.write_text(json.dumps(found))


def _process_tree() -> tuple[float, int]:
    """CPU seconds and memory in bytes (its proportional share) of this process and all below it."""
    parents, ticks = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
    tree, grown = {os.getpid()}, True
    while grown:
        below = {pid for pid, parent in parents.items() if parent in tree}
        grown = not below <= tree
        tree |= below
    memory = 0
    for pid in tree:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        memory += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return sum(ticks.get(pid, 0) for pid in tree) / os.sysconf("SC_CLK_TCK"), memory
