"""A task's rows as the columns that questions name.

Every task has ``label`` where there is one target per row, and its inputs as ``x0``, ``x1``, ...
The columns of a table have their own names and units. A task of your own may have a method
``query_columns(examples)``, which returns further columns, name by name, as arrays of numbers with
one entry per row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from client.answering.inputs import with_inputs
from fedsys.queries import Column
from fedsys.tasks import Examples, Task
from fedsys.tasks.tables.columns import Columns, NumberColumn

__all__ = ["columns_of"]

Rows = NDArray[np.int64]


def columns_of(
    task: Task, examples: Examples, rows: Rows, names: Sequence[str]
) -> dict[str, Column]:
    """The named columns of some rows.

    Args:
        task: says what the rows mean.
        examples: the pool.
        rows: (M,) rows of the pool.
        names: the columns that are asked for.

    Raises:
        DataError: there is no such column; the message names some that there are.
    """
    some = examples.take(torch.from_numpy(np.asarray(rows, dtype=np.int64)))
    found: dict[str, Column] = {}
    own = getattr(task, "query_columns", None)
    if callable(own):
        for name, values in own(some).items():
            found[str(name)] = Column(values=np.asarray(values, dtype=np.float64).reshape(-1))
    table = getattr(task, "columns", None)
    if isinstance(table, Columns):
        _add_table(found, table, some)
    if isinstance(some.y, torch.Tensor) and some.y.ndim == 1:
        found.setdefault("label", Column(values=some.y.numpy().astype(np.float64)))
    numbers = isinstance(some.x, torch.Tensor)
    flat = some.x.reshape(len(some), -1) if numbers else torch.zeros(len(some), 0)
    return with_inputs(task.name, found, flat.numpy(), names)


def _add_table(found: dict[str, Column], table: Columns, some: Examples) -> None:
    """The columns of a table, in the units of its file."""
    features = some.x.numpy()
    at = 0
    for each in table.features:
        part = features[:, at : at + each.width].astype(np.float64)
        at += each.width
        if isinstance(each, NumberColumn):
            values = _unscaled(part[:, 0], each.centre, each.scale)
            if each.flag:
                values[part[:, 1] > 0] = math.nan
            found[each.name] = Column(values=values)
            continue
        texts = np.where(part[:, : len(each.values)].any(axis=1), part.argmax(axis=1), math.nan)
        found[each.name] = Column(values=texts.astype(np.float64), texts=each.values)
    target = table.target
    if target.kind == "number":
        values = _unscaled(some.y.numpy().astype(np.float64), target.centre, target.scale)
        found[target.columns[0]] = found["label"] = Column(values=values.reshape(-1))
    elif target.kind == "class":
        codes = some.y.numpy().astype(np.float64)
        found[target.columns[0]] = Column(values=codes, texts=target.names)


def _unscaled(values: NDArray[np.float64], centre: float, scale: float) -> NDArray[np.float64]:
    """Numbers in their own units, without the last digits that float32 has lost: 40 is stored as
    39.9999 and must not fall below an edge at 40."""
    digits = 6 - math.ceil(math.log10(max(abs(scale), abs(centre), 1e-300)))
    found: NDArray[np.float64] = np.round(values * scale + centre, digits)
    return found
