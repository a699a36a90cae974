"""A table written and read in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from fedsys.tasks import DataSource, FederatedData, load
from fedsys.tasks.tables.reading import Reading

Read = Callable[..., tuple[FederatedData, Reading]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Text, bytes or columns of a parquet file become a task's data; options as for `tabular`."""

    def call(
        content: str | bytes | dict[str, Any] | pyarrow.Table,
        *,
        label: str | list[str] = "y",
        name: str = "",
        private: bool = False,
        **options: Any,
    ) -> tuple[FederatedData, Reading]:
        if isinstance(content, str | bytes):
            path = tmp_path / (name or "t.csv")
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        else:
            path = tmp_path / (name or "t.parquet")
            table = content if isinstance(content, pyarrow.Table) else pyarrow.table(content)
            parquet.write_table(table, path)
        task = load("tabular", {"path": str(path), "label": label, **options})
        data = task.clients(DataSource(private=private))
        assert isinstance(data.reading, Reading)
        return data, data.reading

    return call


def people(rows: int = 40, header: str = "age,city,y", extra: str = "") -> str:
    """Rows of a number, a category and a label."""
    lines = [
        f"{20 + k},{('Bonn', 'Oslo')[k % 2]},{('no', 'yes')[k % 3 == 0]}\n" for k in range(rows)
    ]
    return header + "\n" + "".join(lines) + extra


@pytest.fixture
def table() -> str:
    return people()
