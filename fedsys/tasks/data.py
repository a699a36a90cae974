"""Reads a task's data: whatever its code raises becomes one line that says where."""

from __future__ import annotations

import traceback
from pathlib import Path

from fedsys.errors import DataError, FedsysError
from fedsys.tasks.base import DataSource, FederatedData, Task

__all__ = ["read_data"]


def read_data(task: Task, source: DataSource) -> FederatedData:
    """Call ``task.clients``.

    Args:
        task: a built-in task or the user's own.
        source: where its files are. If it is private, the text of an exception, which may quote
            the data, is left out of the error.

    Raises:
        DataError: the task raised an exception that is not a FedsysError, or did not return
            `FederatedData`. The exception is its cause, unless the source is private.
        FedsysError: as raised by the task.
    """
    try:
        found = task.clients(source)
    except FedsysError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        words = "" if source.private else f": {' '.join(str(error).split())[:200]}"
        raise DataError(
            f"task {task.name} could not read its data: {type(error).__name__} in "
            f"{_where(error)}{words}; fix the data, or the task's clients()"
        ) from (None if source.private else error)
    if not isinstance(found, FederatedData):
        raise DataError(
            f"task {task.name}: clients() returned {type(found).__name__}; it has to return "
            f"FederatedData"
        )
    return found


def _where(error: BaseException) -> str:
    """File and line of the innermost frame in the user's code, or in a library if there is none."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "<frozen" not in frame.filename
    ]
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    last = (own or frames)[-1] if frames else None
    return "its code" if last is None else f"{Path(last.filename).name}:{last.lineno}"
