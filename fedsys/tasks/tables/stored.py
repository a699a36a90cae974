"""How a run's rows became features, by its options or by what it stored."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsys.errors import DataError, LedgerError
from fedsys.privacy.ledger.files import open_regular
from fedsys.tasks.options import Options
from fedsys.tasks.tables.columns import Columns
from fedsys.tasks.tables.file import Format
from fedsys.tasks.tables.options import KNOWN, TableOptions

__all__ = ["columns_of", "format_of", "table_options"]

_MOST_BYTES = 1 << 24
_KNOWN = (*KNOWN, "model", "hidden")


def columns_of(name: str, options: Mapping[str, Any], stored: Path) -> Columns | None:
    """The columns of a run's task; None if the task is not a table, or they are not known.

    Args:
        name: the task's name.
        options: the task's options; columns declared there take precedence over stored ones.
        stored: the run's ``data.json``, which is untrusted and may not exist.

    Raises:
        ConfigError: the options are invalid.
        DataError: ``data.json`` is not of the form that a run stores.
    """
    of_table = table_options(name, options)
    if of_table is None:
        return None
    declared = _read(of_table).declared
    if declared is not None:
        return declared
    if not os.path.lexists(stored):
        return None
    try:
        with open_regular(stored, _MOST_BYTES) as file:
            content = file.read(_MOST_BYTES)
    except LedgerError as error:
        raise DataError(f"{stored.parent}: {error}") from None
    try:
        body = json.loads(content)
        preparation = body["preparation"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise DataError(f"{stored}: not what a run stores of its data") from None
    return Columns.from_json(preparation, str(stored))


def table_options(name: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """A task's options as those of task ``tabular``; None if the task is not a table.

    Columns of a Hugging Face dataset are prepared as a file's are; where its rows come from, and
    who holds them, is left out.
    """
    if name == "tabular":
        return dict(options)
    if name == "hf" and "image" not in options:
        return {key: each for key, each in options.items() if key in _KNOWN}
    return None


def format_of(options: Mapping[str, Any]) -> Format:
    """The format of a table with these options of task ``tabular``, as far as it was stated."""
    return _read(options).form


def _read(options: Mapping[str, Any]) -> TableOptions:
    return TableOptions.of(Options("tabular", options, _KNOWN), options)
