"""Tasks: model, data, loss and metrics, built in or the user's own."""

from fedsys.privacy.encoding.parts import Block
from fedsys.tasks.base import (
    DataReading,
    DataSource,
    Examples,
    FederatedData,
    Task,
    preprocessing_of,
    seeded,
)
from fedsys.tasks.by_client import ByClient
from fedsys.tasks.contract import check_contract, check_test_rows
from fedsys.tasks.data import read_data
from fedsys.tasks.loading import builtin_names, load, look_beside
from fedsys.tasks.modelling import conformed, init_model
from fedsys.tasks.origin import Origin, Recipe
from fedsys.tasks.partition import Partition, split

__all__ = [
    "Block",
    "ByClient",
    "DataReading",
    "DataSource",
    "Examples",
    "FederatedData",
    "Origin",
    "Partition",
    "Recipe",
    "Task",
    "builtin_names",
    "check_contract",
    "check_test_rows",
    "conformed",
    "init_model",
    "load",
    "look_beside",
    "preprocessing_of",
    "read_data",
    "seeded",
    "split",
]
