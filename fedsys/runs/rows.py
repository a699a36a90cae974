"""Rows of a table, as a notebook shows them and as pandas accepts them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, overload

from fedsys.errors import FedsysError
from fedsys.report import figures

__all__ = ["Rows"]

Row = Mapping[str, Any]


class Rows(Sequence[Row]):
    """A read-only list of rows; all have the same columns, in one order.

    >>> rows = Rows([{"round": 1, "accuracy": 0.5}, {"round": 2, "loss": 0.1}])
    >>> rows.columns
    ('round', 'accuracy', 'loss')
    >>> rows[1]["accuracy"] is None, rows.column("round")
    (True, [1, 2])

    Args:
        rows: each by column name; a missing value becomes None.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        given = [dict(row) for row in rows]
        self.columns = tuple(dict.fromkeys(name for row in given for name in row))
        self._rows = [{name: row.get(name) for name in self.columns} for row in given]

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | Sequence[Row]:
        """One row, or several."""
        return self._rows[at]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {', '.join(self.columns)}>"

    def column(self, name: str) -> list[Any]:
        """All values of one column; KeyError if there is no such column."""
        if name not in self.columns:
            raise KeyError(f"no column {name!r}; there are {', '.join(self.columns)}")
        return [row[name] for row in self._rows]

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`; None becomes pandas' missing value.

        Raises:
            FedsysError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ModuleNotFoundError:
            raise FedsysError(
                "to_pandas() needs pandas, which is not installed: pip install pandas"
            ) from None
        return pandas.DataFrame.from_records(self._rows, columns=list(self.columns))

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        shown = self._rows if len(self) <= 60 else [*self._rows[:30], {}, *self._rows[-30:]]
        body = "".join(
            "<tr>"
            + "".join(f"<td>{escape(_shown(name, row))}</td>" for name in self.columns)
            + "</tr>"
            for row in shown
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(name: str, row: Row) -> str:
    if not row:
        return "…"
    value = row[name]
    if value is None:
        return ""
    if name.startswith("epsilon"):
        return figures.epsilon(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
