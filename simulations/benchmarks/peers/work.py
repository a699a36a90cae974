"""A work, the same for every engine: model, weights, data, batches and hyperparameters.

Imported by scripts that run in the peers' environment, so it imports only numpy, torch and tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsys import tasks

__all__ = [
    "Local",
    "Work",
    "cohorts",
    "delta_of",
    "optimizer_of",
    "part_of",
    "train_client",
    "train_part",
    "updates",
]

_ARRAYS = ("x", "y", "ids", "offsets", "order")


@dataclass(frozen=True, kw_only=True)
class Local:
    """Hyperparameters of local training, with the fields of ``client.training.LocalConfig``, whose
    package would add 55 MB to the peers' memory."""

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    proximal_mu: float

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> Local:
        """From all settings of local training, of which a peer takes these."""
        return cls(**{each.name: stated[each.name] for each in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Work:
    """One work, read from the folder that the driver wrote.

    Attributes:
        task: Model and loss.
        check: The same task without dropout, for comparing updates.
        x: (M, ...) the pool's inputs.
        y: (M, ...) the pool's targets.
        ids: (L,) increasing ids of the clients whose rows are listed; no others are trained.
        offsets: (L + 1,) client ``ids[k]`` visits the rows ``order[offsets[k]:offsets[k + 1]]`` of
            the pool, one epoch after the other.
        order: Rows of the pool, for one client after the other.
        seed: Seed of the initial weights and the cohorts.
        clients: Population size N, which may be larger than the number listed.
        cohort: Clients in a round.
        checked: Clients whose updates are compared.
        examples_per_client: Mean over the population.
        local: Hyperparameters of local training.
    """

    task: tasks.Task
    check: tasks.Task
    x: Tensor
    y: Tensor
    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    order: NDArray[np.int64]
    seed: int
    clients: int
    cohort: int
    checked: tuple[int, ...]
    examples_per_client: float
    local: Local

    @classmethod
    def read(cls, folder: Path) -> Work:
        """Read the work in a folder."""
        facts: dict[str, Any] = json.loads((folder / "work.json").read_text())
        name = facts.pop("task")
        task, check = (tasks.load(name, facts.pop(key)) for key in ("options", "check_options"))
        arrays = {name: np.load(folder / f"{name}.npy") for name in _ARRAYS}
        return cls(
            task=task,
            check=check,
            x=torch.from_numpy(arrays.pop("x")),
            y=torch.from_numpy(arrays.pop("y")),
            local=Local.of(facts.pop("local")),
            checked=tuple(facts.pop("checked")),
            **arrays,
            **facts,
        )

    def for_check(self) -> Work:
        """The same work with the task for comparing updates."""
        return replace(self, task=self.check)

    def rows(self, client: int) -> NDArray[np.int64]:
        """Rows of the pool that a client visits, in order, one epoch after the other."""
        at = int(np.searchsorted(self.ids, client))
        return self.order[self.offsets[at] : self.offsets[at + 1]]

    def examples(self, clients: Sequence[int]) -> int:
        """Number of examples that these clients hold in all."""
        at = np.searchsorted(self.ids, clients)
        return int((self.offsets[at + 1] - self.offsets[at]).sum()) // self.local.epochs

    def data(self, client: int) -> tuple[Tensor, Tensor]:
        """A client's inputs and targets in the order of its visits, one epoch after the other."""
        which = torch.from_numpy(self.rows(client))
        return self.x[which], self.y[which]

    def batches(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a client with this data; no batch extends into the next epoch."""
        size = len(x) // self.local.epochs
        for epoch in range(self.local.epochs):
            for start in range(0, size, self.local.batch_size):
                batch = slice(
                    epoch * size + start, epoch * size + min(start + self.local.batch_size, size)
                )
                yield x[batch], y[batch]

    def cohorts(self, rounds: int) -> Iterator[list[int]]:
        """The cohorts of every engine that does not draw its own."""
        return cohorts(self.seed, self.clients, self.cohort, rounds)


def cohorts(seed: int, population: int, size: int, rounds: int) -> Iterator[list[int]]:
    """`rounds` cohorts of `size` distinct clients out of `population`."""
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        yield rng.choice(population, size=size, replace=False).tolist()


def optimizer_of(local: Local, parameters: Any, lr: float) -> torch.optim.Optimizer:
    """The torch optimizer with these settings."""
    if local.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=local.weight_decay)
    return torch.optim.SGD(
        parameters, lr=lr, momentum=local.momentum, weight_decay=local.weight_decay
    )


def train_client(work: Work, model: nn.Module, client: int) -> None:
    """Plain local training: optimizer steps over a client's batches."""
    local, parameters = work.local, list(model.parameters())
    optimizer = optimizer_of(local, parameters, local.learning_rate)
    start = [p.detach().clone() for p in parameters] if local.proximal_mu else []
    for x, y in work.batches(*work.data(client)):
        optimizer.zero_grad()
        work.task.loss(model(x), y).mean().backward()  # type: ignore[no-untyped-call]
        for parameter, begun in zip(parameters, start, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - begun, alpha=local.proximal_mu)
        optimizer.step()


def part_of(cohort: Sequence[int], site: int, sites: int) -> list[int]:
    """The clients that a site trains, of `sites` that are numbered from 1."""
    return list(cohort[site - 1 :: sites])


def train_part(
    work: Work, model: nn.Module, start: Mapping[str, Tensor], clients: Sequence[int]
) -> dict[str, Tensor]:
    """The mean of the clients' models, each trained from `start`; dropout is the client's own."""
    total = {name: torch.zeros_like(value) for name, value in start.items()}
    for client in clients:
        torch.manual_seed(client)
        model.load_state_dict(start)
        train_client(work, model, client)
        for name, value in model.state_dict().items():
            total[name] += value
    return {name: value / max(len(clients), 1) for name, value in total.items()}


def updates(work: Work, *, exact: bool = False) -> NDArray[np.float64]:
    """(checked, d) updates of the plain loop in float32, or in float64 if `exact`."""
    work = work.for_check()
    if exact and work.x.is_floating_point():
        work = replace(work, x=work.x.double())
    found = []
    for client in work.checked:
        model = work.task.init_model(work.seed).train()
        model = model.double() if exact else model
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        train_client(work, model, client)
        found.append(delta_of(before, model))
    return np.stack(found)


def delta_of(before: dict[str, Tensor], model: nn.Module) -> NDArray[np.float64]:
    """(d,) change of the parameters since `before`."""
    moved = [
        (value.detach().double() - before[name].double()).flatten()
        for name, value in model.named_parameters()
    ]
    return np.asarray(torch.cat(moved).numpy(), dtype=np.float64)
