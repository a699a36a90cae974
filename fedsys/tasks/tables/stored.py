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

__all__ = ["columns_of", "format_of"]

_MOST_BYTES = 1 << 24


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
    if name != "tabular":
        return None
    declared = _read(options).declared
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


def format_of(options: Mapping[str, Any]) -> Format:
    """The format of the run's table, as far as it was stated."""
    return _read(options).form


def _read(options: Mapping[str, Any]) -> TableOptions:
    return TableOptions.of(Options("tabular", options, (*KNOWN, "model", "hidden")), options)
