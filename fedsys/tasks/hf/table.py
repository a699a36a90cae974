"""Columns of a Hugging Face dataset, read as task ``tabular`` reads a file's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fedsys.errors import ConfigError
from fedsys.preprocessing import hf as prepared_by
from fedsys.tasks.base import DataSource
from fedsys.tasks.hf import dataset
from fedsys.tasks.hf.dataset import Rows, Saved
from fedsys.tasks.options import Options
from fedsys.tasks.tables.columns import Columns, Prepared
from fedsys.tasks.tables.file import TableFile, table_of
from fedsys.tasks.tables.options import KNOWN
from fedsys.tasks.tabular import Tabular

__all__ = ["Table"]

_FILE = ("path", "test_path", "delimiter", "encoding")  # of a CSV
_OF_TABLES = tuple(key for key in KNOWN if key not in _FILE)


class Table(Tabular):
    """Options: those of the dataset (`Saved`), and all of task ``tabular`` but for a CSV's."""

    name = "hf"

    def __init__(self, options: Mapping[str, Any]) -> None:
        known = dict.fromkeys((*dataset.KNOWN, *_OF_TABLES, "model", "hidden"))
        self._saved = Saved.of(Options(self.name, options, known), options)
        own = {key: each for key, each in options.items() if key in (*_OF_TABLES, "client")}
        own |= {key: options[key] for key in ("model", "hidden") if key in options}
        own["path"] = self._saved.path
        if self._saved.test_split:
            own["test_path"] = self._saved.test_split
        try:
            super().__init__(own)
        except ConfigError as error:
            raise ConfigError(str(error).replace("test_path", "test_split")) from None
        self.preprocessing = prepared_by(options)
        self._rows: Rows | None = None

    def _read(self, source: DataSource, name: str, columns: Columns | None) -> TableFile:
        import pyarrow

        if name == self._saved.test_split and name != self._saved.path:
            rows = self._saved.test(source)
        else:
            rows = self._rows = self._saved.train(source)
        table, wanted = rows.table, None if columns is None else columns.used
        for column in rows.pictures:
            unused = self._table.wanted.ignored if wanted is None else ()
            if column not in unused and (wanted is None or column in wanted):
                raise rows.place.column(
                    column,
                    f"holds pictures; say image = '{column}' to train on them, or leave it out "
                    f"with task.options.ignore",
                )
            nothing = pyarrow.nulls(table.num_rows, pyarrow.string())
            table = table.set_column(table.column_names.index(column), column, nothing)
        kind = "a Hugging Face dataset"
        return table_of(rows.place, table, wanted, form=self._table.form, kind=kind)

    def _owned(self, prepared: Prepared, source: DataSource) -> Prepared:
        rows, self._rows = self._rows, None
        if rows is None or rows.natural is None:
            return prepared
        there, natural = np.unique(rows.natural[prepared.kept], return_inverse=True)
        names = tuple(rows.clients[client] for client in there.tolist())
        return replace(prepared, natural=natural.astype(np.int64), clients=names)
