"""What a device that has a graph answers about its rows: `client.answering` without torch.

A graph has no model to evaluate and no names of columns. So it has the columns that every task has,
``label`` where there is one target per row, and its inputs as ``x0``, ``x1``, ...
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.answering.inputs import vectors, with_inputs
from fedsys.errors import ConfigError
from fedsys.graphs import TrainingGraph
from fedsys.queries import Column, Rows, Sheet, parse
from fedsys.wire.terms import Terms

__all__ = ["answers"]


def answers(
    graph: TrainingGraph, terms: Terms, x: NDArray[Any], y: NDArray[Any], *, seed: int
) -> NDArray[np.float32]:
    """(1, D) this device's vector in a query.

    Args:
        graph: of the task whose rows these are.
        terms: the query's.
        x: (M, ...) inputs.
        y: (M, ...) targets.
        seed: decides how the vector is rounded to the grid, and nothing else.

    Raises:
        ConfigError: the questions are not of this version, or do not fit the terms.
        DataError: a column that is asked for is not there.
    """
    if terms.dimension or terms.weight_cap:
        raise ConfigError(
            f"a query takes no weights and weights no clients, but {terms.dimension} weights and "
            f"a cap of {terms.weight_cap} examples are asked for"
        )
    sheet = Sheet.of(parse(terms.questions), dimension=terms.plan.dimension)
    names = tuple(dict.fromkeys(n for each in sheet.questions for n in each.columns_used))
    found: dict[str, Column] = {}
    # Code knows a table's target in the units of its file; a graph has scaled numbers only.
    scaled = graph.task == "tabular" and y.dtype.kind == "f"
    if y.ndim == 1 and not scaled:
        found["label"] = Column(values=y.astype(np.float64))
    columns = with_inputs(graph.task, found, x.reshape(len(x), -1), names)
    rows = Rows(columns=columns, device=np.zeros(len(x), dtype=np.int64), devices=1)
    return vectors(sheet, rows, [seed])
