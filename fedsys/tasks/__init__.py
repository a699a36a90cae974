"""Tasks: model, data, loss and metrics, built in or the user's own."""

from fedsys.tasks.base import (
    DataSource,
    Examples,
    FederatedData,
    Task,
    preprocessing_of,
    seeded,
)
from fedsys.tasks.loading import builtin_names, load
from fedsys.tasks.origin import Origin, Recipe
from fedsys.tasks.partition import Partition, split

__all__ = [
    "DataSource",
    "Examples",
    "FederatedData",
    "Origin",
    "Partition",
    "Recipe",
    "Task",
    "builtin_names",
    "load",
    "preprocessing_of",
    "seeded",
    "split",
]
