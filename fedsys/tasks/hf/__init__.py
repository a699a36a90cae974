"""Task ``hf``: a Hugging Face dataset on this machine's disk, as ``save_to_disk`` wrote it.

`dataset` reads its rows and has a partitioner of flwr-datasets assign them; `table` trains on its
columns as task ``tabular`` does, `pictures` on its pictures. Both need the extra ``hf``; nothing is
downloaded.

>>> task_of({"path": "flowers", "image": "img", "label": "kind", "classes": ["a", "b"]}).name
'hf'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsys.tasks.base import Task

__all__ = ["task_of"]


def task_of(options: Mapping[str, Any]) -> Task:
    """The task of these options: pictures if they name the column ``image``, else a table.

    Raises:
        ConfigError: an option is invalid.
    """
    if "image" in options:
        from fedsys.tasks.hf.pictures import Pictures

        return Pictures(options)
    from fedsys.tasks.hf.table import Table

    return Table(options)
