"""A task's data, read: whatever its code raises becomes one line that says where."""

from __future__ import annotations

import traceback
from pathlib import Path

from fedsys.errors import DataError, FedsysError
from fedsys.tasks.base import DataSource, FederatedData, Task

__all__ = ["read_data"]


def read_data(task: Task, source: DataSource) -> FederatedData:
    """Call ``task.clients``.

    Args:
        task: built in or the user's own.
        source: where its files may lie; a private one keeps what an exception says, which may
            quote the data, out of the error.

    Raises:
        DataError: the task raised something else than an error of ours, or gave something else
            than `FederatedData`. The exception is its cause, unless the source is private.
        FedsysError: as the task raised it.
    """
    try:
        found = task.clients(source)
    except FedsysError:
        raise
    except Exception as error:  # whatever a user's code raises
        words = "" if source.private else f": {' '.join(str(error).split())[:200]}"
        raise DataError(
            f"task {task.name} could not read its data: {type(error).__name__} in "
            f"{_where(error)}{words}; mend the data, or the task's clients()"
        ) from (None if source.private else error)
    if not isinstance(found, FederatedData):
        raise DataError(
            f"task {task.name}: clients() gave {type(found).__name__}; it has to give FederatedData"
        )
    return found


def _where(error: Exception) -> str:
    """File and line of the user's innermost code: no library's, where there is other."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "<frozen" not in frame.filename
    ]
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    last = (own or frames)[-1] if frames else None
    return "its code" if last is None else f"{Path(last.filename).name}:{last.lineno}"
