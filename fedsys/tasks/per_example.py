"""Whether loss and metrics give one value per example, each from its own row alone.

A loss that averages over its batch, or that broadcasts (B, 1) outputs against (B,) targets, has
the right shape often enough to train; what it trains is another objective. So the outputs and
targets of all rows but one are exchanged, and that row's value must stay as it is. The model
itself is called once: layers that look at the whole batch are the training paths' business
(`client.training.selfcheck`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedsys.errors import ConfigError
from fedsys.tasks.examples import Values, parts_of, transformed

__all__ = ["RESERVED_METRICS", "check_metric_names", "check_rows", "check_values"]

RESERVED_METRICS = frozenset(
    {
        "loss",
        "round",
        "outcome",
        "sampled",
        "survivors",
        "clipped_fraction",
        "epsilon_outsider",
        "epsilon_participant",
        "epsilon_server",
    }
)
"""Columns that a run's history has already."""

_RELATIVE, _ABSOLUTE = 1e-4, 1e-6

Each = Callable[[Any, Values], dict[str, Tensor]]
"""Outputs and targets of B rows -> what to call it -> (B,) values."""


def check_metric_names(task: str, names: list[Any]) -> None:
    """Metrics become columns next to the loss and the round.

    Raises:
        ConfigError: a name that is no text, or that a run's history uses itself.
    """
    for name in names:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ConfigError(
                f"task {task}: metrics has the name {name!r}; names are printable text"
            )
        if name in RESERVED_METRICS:
            raise ConfigError(
                f"task {task}: metrics has the name {name!r}, which every run's history has "
                f"already; call it something else, task_{name} say"
            )


def check_values(task: str, what: str, values: Tensor) -> None:
    """Values are floating point and finite.

    Args:
        task: its name.
        what: which values, for the error.
        values: (B,) of rows whose inputs and targets are finite.

    Raises:
        ConfigError: names the type, or the row and its value.
    """
    if not values.is_floating_point():
        raise ConfigError(
            f"task {task}: {what} is {str(values.dtype).removeprefix('torch.')}; it has to be "
            f"floating point: append .float()"
        )
    bad = torch.nonzero(~torch.isfinite(values))
    if len(bad):
        row = int(bad[0])
        raise ConfigError(
            f"task {task}: {what} of row {row} of {len(values)} is {float(values[row]):g}, though "
            f"its inputs and targets are finite; a logarithm or a division of 0?"
        )


def check_rows(task: str, each: Each, outputs: Any, targets: Values) -> None:
    """Value i stays as it is when all rows but i are exchanged, and when row i is alone.

    Args:
        task: its name.
        each: the task's loss and metrics.
        outputs: of the model for B rows: tensors (B, ...), or tuples, lists and dicts of them.
        targets: (B, ...), or dicts and tuples of such tensors.

    Raises:
        ConfigError: names what depends on other rows, and the row.
    """
    count = len(parts_of(targets)[0])
    if count < 2 or not _by_row(outputs, count):
        return
    values = each(outputs, targets)
    for kept in (0, count // 2):
        keep = torch.arange(count) == kept
        for variant in range(3):
            order, other = _others(count, kept, variant)
            try:
                found = each(_exchanged(outputs, order, keep, variant), _taken(targets, other))
            except ConfigError:
                if variant == 2:  # a loss of probabilities takes no negative outputs
                    continue
                raise
            _compare(task, values, found, kept, kept, f"when the other {count - 1} rows change")
        alone = torch.tensor([kept])
        single = torch.ones(1, dtype=torch.bool)
        found = each(_exchanged(outputs, alone, single, 0), _taken(targets, alone))
        _compare(task, values, found, kept, 0, f"in a batch of its own instead of {count} rows")


def _taken(targets: Values, rows: Tensor) -> Values:
    return transformed(targets, lambda part: part[rows])


def _others(count: int, kept: int, variant: int) -> tuple[Tensor, Tensor]:
    """Rows (B,) to take outputs and targets from: row `kept` its own, all others elsewhere."""
    here = torch.arange(count)
    order = (here * (1 if variant else -1) + 1 + 2 * variant) % count
    other = here if variant == 1 else (here + 1) % count
    order[kept] = kept
    other = other.clone()
    other[kept] = kept
    return order, other


def _exchanged(outputs: Any, order: Tensor, keep: Tensor, variant: int) -> Any:
    """Outputs in another order; the third variant turns the signs of all but the kept row, so
    that even predictions that agree for every row change."""
    if isinstance(outputs, Tensor):
        taken = outputs[order]
        if variant == 2 and taken.is_floating_point():
            column = keep.view(-1, *[1] * (taken.ndim - 1))
            taken = torch.where(column, taken, -taken)
        return taken
    if isinstance(outputs, dict):
        return {name: _exchanged(part, order, keep, variant) for name, part in outputs.items()}
    return type(outputs)(_exchanged(part, order, keep, variant) for part in outputs)


def _by_row(outputs: Any, count: int) -> bool:
    """Whether rows can be exchanged in it."""
    if isinstance(outputs, Tensor):
        return outputs.ndim > 0 and len(outputs) == count
    if type(outputs) is dict:
        return all(_by_row(part, count) for part in outputs.values())
    return type(outputs) in (tuple, list) and all(_by_row(part, count) for part in outputs)


def _compare(
    task: str,
    values: dict[str, Tensor],
    found: dict[str, Tensor],
    row: int,
    there: int,
    when: str,
) -> None:
    for what, before in values.items():
        after = found.get(what)
        if after is None or after.ndim != 1 or len(after) <= there:
            raise ConfigError(
                f"task {task}: {what} is there for some batches only, or changes its shape {when}"
            )
        one, two = before[row].double(), after[there].double()
        if torch.isclose(one, two, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True):
            continue
        raise ConfigError(
            f"task {task}: {what} of row {row} goes from {float(one):.6g} to {float(two):.6g} "
            f"{when}; each value has to come from its own row alone: no mean over the batch, and "
            f"outputs and targets of the same shape, (B, 1) against (B,) broadcasts"
        )
