"""Checks once, in float64, that a fast path computes what a loop over clients computes.

Ragged clients (full batches, a partial last batch, less than one batch, one example) of different
examples are trained by the path and one by one; the updates have to agree to 1e-9 relative (to 2e-3
in float32, where a model computes in nothing else). In both
steps some clients have fewer examples than others, so that a path that pads must not let padding
count: a mean over the batch, in the loss or in a layer, does.
Dropout is switched off for the comparison: its masks are drawn differently by each path.
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

__all__ = [
    "GENTLE",
    "LocalPath",
    "PathFactory",
    "SummingPath",
    "reason_to_refuse",
    "spread_rows",
]

TOLERANCE = 1e-9
_SINGLE = 2e-3
_ROWS = 64
_LARGE = 1 << 22
"""Coordinates from which no more than two clients are compared at once: the most that train at once
where updates are large, at half of the memory."""
GENTLE = 0.05
"""A learning rate at which few models diverge in a handful of steps."""


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
    some = spread_rows(examples, _ROWS)
    if not len(some):
        return None
    if not FlatLayout.of(model).uniform:
        why = _fails(factory, task, copy.deepcopy(model), local, some)
        if why is not None:
            return why
    size = min(local.batch_size, _ROWS // 2)
    short = replace(
        local,
        batch_size=size,
        epochs=min(local.epochs, 2),
        learning_rate=min(local.learning_rate, GENTLE),
    )
    ragged = size + (size + 1) // 2
    rows = [
        (first + np.arange(count, dtype=np.int64)) % len(some)
        for first, count in ((0, 2 * size), (size, ragged), (3, max(1, size - 1)), (1, 1))
    ]
    twin, tolerance = without_dropout(copy.deepcopy(model)).double(), TOLERANCE
    if not _runs(task, twin, some.double(), short):
        # Its forward pass asks for float32 by name, where the inputs are bytes, say.
        twin, tolerance = without_dropout(copy.deepcopy(model)), _SINGLE
    else:
        some = some.double()
    start = FlatLayout.of(twin).read(twin)
    together = [rows] if len(start) < _LARGE else [rows[:2], rows[2:]]
    for clients in (*together, rows[1:2]):  # several at once, and one alone
        seeds = [11, 12, 13, 14][: len(clients)]
        found = start.new_empty((len(clients), len(start)))
        schedule = build(clients, seeds, short)
        try:
            factory(task, twin, short).updates(start, some, schedule, seeds, found)
            scales, differences = [], []
            for client, seed, own in zip(clients, seeds, found, strict=True):  # a copy, not K
                expected = start.new_empty((1, len(start)))
                plain = build([client], [seed], short)
                LoopPath(task, twin, short).updates(start, some, plain, [seed], expected)
                scales.append(float(torch.linalg.vector_norm(expected, torch.inf)))
                differences.append(float(torch.linalg.vector_norm(expected.sub_(own), torch.inf)))
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {_first_line(error)}"
        del found, own, expected  # before the next clients' are made
        scale, worst = float(np.max(scales)), float(np.max(differences))  # NaN stays NaN
        if not worst <= tolerance * max(scale, 1e-3):
            return (
                f"its updates differ from a plain loop's by {worst:.1e} (updates are up to "
                f"{scale:.1e}): does an example's output depend on other examples of the batch?"
            )
    return None


def _runs(task: Task, model: nn.Module, examples: Examples, local: LocalConfig) -> bool:
    """Whether the plain loop takes a step with these dtypes."""
    start = FlatLayout.of(model).read(model)
    schedule = build([np.arange(1, dtype=np.int64)], [1], replace(local, epochs=1))
    try:
        LoopPath(task, copy.deepcopy(model), local).updates(
            start, examples, schedule, [1], start.new_empty((1, len(start)))
        )
    except (Exception, SystemExit):  # whatever a user's code raises; the comparison says it again
        return False
    return True


def _fails(
    factory: PathFactory, task: Task, model: nn.Module, local: LocalConfig, examples: Examples
) -> str | None:
    """Why the path does not run in the model's own dtypes, which the comparison replaces."""
    start = FlatLayout.of(model).read(model)
    one = replace(local, batch_size=2, epochs=1)
    rows = [np.arange(2, dtype=np.int64) % len(examples)] * 2
    try:
        path = factory(task, model, one)
        path.updates(
            start, examples, build(rows, [1, 2], one), [1, 2], start.new_empty((2, len(start)))
        )
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {_first_line(error)}"
    return None


def without_dropout(model: nn.Module) -> nn.Module:
    """`model` itself, with every dropout probability set to 0."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.RNNBase):
            module.dropout = 0.0
    return model


def spread_rows(examples: Examples, most: int) -> Examples:
    """A few finite rows from all over the data, so that they differ; how paths treat damaged data
    is not checked here."""
    count = min(16 * most, len(examples))
    every = torch.linspace(0, len(examples) - 1, count, dtype=torch.float64).long()
    some = examples.take(every)
    rows = torch.nonzero(some.finite())[:, 0]
    return some.take(rows[:: max(1, len(rows) // most)][:most])


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    line = text[0] if text else "no message"
    return line if len(line) <= 160 else line[:157] + "..."
