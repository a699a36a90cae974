"""What answering has in common with and without torch: columns of inputs, and the vector sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.training.splitmix import state_of, words
from fedsys.errors import DataError
from fedsys.queries import Column, Rows, Sheet

__all__ = ["vectors", "with_inputs"]

_ROUNDING = 0x726F756E64  # "round": its own streams, apart from batches and dropout


def with_inputs(
    task: str, found: Mapping[str, Column], x: NDArray[Any], names: Sequence[str]
) -> dict[str, Column]:
    """The named columns: those that were found, and inputs as ``x0``, ``x1``, ...

    Args:
        task: the task's name, for errors.
        found: columns of M rows.
        x: (M, n) inputs; n may be 0.
        names: the columns that are asked for.

    Raises:
        DataError: there is no such column; the message names some that there are.
    """
    made: dict[str, Column] = {}
    for name in names:
        place = _place(name)
        if name in found:
            made[name] = found[name]
        elif place is not None and place < x.shape[1]:
            made[name] = Column(values=x[:, place].astype(np.float64))
        else:
            inputs = [f"x0 to x{x.shape[1] - 1}"] if x.shape[1] else []
            known = ", ".join([*list(found)[:20], *inputs])
            raise DataError(f"column {name!r}: task {task} has {known}")
    return made


def _place(name: str) -> int | None:
    """The input that ``x0``, ``x1``, ... names."""
    digits = name[1:]
    plain = name[:1] == "x" and digits.isascii() and digits.isdecimal() and len(digits) < 8
    return int(digits) if plain else None


def vectors(sheet: Sheet, rows: Rows, seeds: Sequence[int]) -> NDArray[np.float32]:
    """(K, D) what each of K clients contributes to a sheet of questions.

    Args:
        sheet: the questions.
        rows: of the K clients.
        seeds: by client; decides how its vector is rounded to the grid, and nothing else.
    """
    state = state_of(np.array(seeds, dtype=np.uint64), _ROUNDING)
    bits = words(state, sheet.size) >> np.uint64(11)
    return sheet.contributions(rows, bits.astype(np.float64) * 2.0**-53)
