"""How a run's rows became features: from its options, or from what it stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsys.errors import DataError
from fedsys.tasks.options import Options
from fedsys.tasks.tables.columns import Columns
from fedsys.tasks.tables.file import Format
from fedsys.tasks.tables.options import KNOWN, TableOptions

__all__ = ["columns_of", "format_of"]

_MOST_BYTES = 1 << 26


def columns_of(name: str, options: Mapping[str, Any], stored: Path) -> Columns | None:
    """The columns of a run's task; None where the task is no table, or nothing says.

    Args:
        name: of the task.
        options: of the task: declared columns are taken from there, whatever is stored.
        stored: the run's ``data.json``, which may be anybody's and need not be there.

    Raises:
        ConfigError: the options are not what they have to be.
        DataError: ``data.json`` is not what a run stores.
    """
    if name != "tabular":
        return None
    declared = _read(options).declared
    if declared is not None:
        return declared
    try:
        with stored.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError:
        return None
    try:
        body = json.loads(content[:_MOST_BYTES])
        preparation = body["preparation"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise DataError(f"{stored}: not what a run stores of its data") from None
    return Columns.from_json(preparation, str(stored))


def format_of(options: Mapping[str, Any]) -> Format:
    """How the run's table was written, as far as somebody said so."""
    return _read(options).form


def _read(options: Mapping[str, Any]) -> TableOptions:
    return TableOptions.of(Options("tabular", options, (*KNOWN, "model", "hidden")), options)
