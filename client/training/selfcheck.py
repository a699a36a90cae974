"""Checks once, in float64, that a fast path computes what a loop over clients computes.

Three clients (several steps with a partial last batch, exactly one batch, one example) are trained
by the path and by the loop; the updates have to agree within a relative error of 1e-9. Dropout is
switched off for the comparison, because each path draws its own masks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from client.training.flat import FlatLayout
from client.training.local import LocalConfig
from client.training.loop import LoopPath
from client.training.schedule import Schedule, build
from fedsys.tasks import Examples, Task

__all__ = ["LocalPath", "PathFactory", "SummingPath", "reason_to_refuse"]

TOLERANCE = 1e-9
_ROWS = 64
_GENTLE = 0.05  # a learning rate at which few models diverge in a handful of steps


class LocalPath(Protocol):
    """One way to train the clients of a chunk."""

    @property
    def name(self) -> str:
        """The path's name in ``[engine] path``."""
        ...

    def updates(
        self,
        start: Tensor,
        examples: Examples,
        schedule: Schedule,
        seeds: Sequence[int],
        out: Tensor,
    ) -> None:
        """Write the updates into `out` (K, d)."""
        ...


@runtime_checkable
class SummingPath(Protocol):
    """A path that adds clipped updates without building them."""

    def clipped_sum(
        self,
        start: Tensor,
        examples: Examples,
        schedule: Schedule,
        seeds: Sequence[int],
        clip: float,
    ) -> tuple[Tensor, Tensor]:
        """(d,) the sum of updates, each scaled down to norm `clip`, and (K,) the norms; a client
        whose update is not finite adds zeros and has the norm NaN."""
        ...


PathFactory = Callable[[Task, nn.Module, LocalConfig], LocalPath]


def reason_to_refuse(
    factory: PathFactory, task: Task, model: nn.Module, local: LocalConfig, examples: Examples
) -> str | None:
    """None if the path is correct for this model, else the reason why it is not, in one line."""
    twin = without_dropout(copy.deepcopy(model)).double()
    some = _finite_rows(examples)
    size = min(local.batch_size, _ROWS // 2)
    short = replace(
        local,
        batch_size=size,
        epochs=min(local.epochs, 2),
        learning_rate=min(local.learning_rate, _GENTLE),
    )
    there = np.arange(len(some), dtype=np.int64)
    rows = [there[: size + max(1, size // 2)], there[-size:], there[:1]]
    rows.sort(key=lambda each: -short.steps(len(each)))
    start = FlatLayout.of(twin).read(twin)
    for clients in (rows, rows[:1]):  # several at once, and one alone
        seeds = [11, 12, 13][: len(clients)]
        found = start.new_empty((len(clients), len(start)))
        schedule = build(clients, seeds, short)
        try:
            factory(task, twin, short).updates(start, some, schedule, seeds, found)
        except Exception as error:
            return f"{type(error).__name__}: {_first_line(error)}"
        expected = torch.empty_like(found)
        LoopPath(task, twin, short).updates(start, some, schedule, seeds, expected)
        scale = float(expected.abs().max())
        worst = float((found - expected).abs().max())
        if not worst <= TOLERANCE * max(scale, 1e-3):
            return (
                f"its updates differ from a plain loop's by {worst:.1e} (updates are up to "
                f"{scale:.1e}): does an example's output depend on other examples of the batch?"
            )
    return None


def without_dropout(model: nn.Module) -> nn.Module:
    """`model` itself, with every dropout probability set to 0."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.RNNBase):
            module.dropout = 0.0
    return model


def _finite_rows(examples: Examples) -> Examples:
    """A few finite rows, in float64; how paths treat damaged data is not checked here."""
    x, y = _as_double(examples.x[: 16 * _ROWS]), _as_double(examples.y[: 16 * _ROWS])
    good = torch.isfinite(x).flatten(1).all(1) if x.is_floating_point() else x.new_ones(len(x))
    rows = torch.nonzero(good)[:_ROWS, 0]
    return Examples(x=x[rows], y=y[rows])


def _as_double(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    line = text[0] if text else "no message"
    return line if len(line) <= 160 else line[:157] + "..."
