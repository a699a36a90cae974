"""Rows of a Hugging Face dataset in a folder, and the clients that hold them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError, DataError
from fedsys.installation import how_to_install
from fedsys.tasks.base import DataSource
from fedsys.tasks.options import Options, nearest
from fedsys.tasks.tables.cells import Place
from fedsys.tasks.tables.file import MAX_ROWS

__all__ = ["KNOWN", "Rows", "Saved"]

KNOWN = ("path", "split", "test_split", "partitioner", "partitioner_options", "client")
_ROW = "__row__"
_HOW = "it is a folder that Dataset.save_to_disk or DatasetDict.save_to_disk wrote"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a split.

    Attributes:
        place: The split's folder.
        table: ``pyarrow.Table``, whose classes are texts; pictures are structs of bytes and path.
        pictures: Names of the columns of pictures.
        natural: (M,) the client of each row where a partitioner chose it, else None.
        clients: The clients' names, by number.
    """

    place: Place
    table: Any
    pictures: tuple[str, ...]
    natural: NDArray[np.int64] | None = None
    clients: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A dataset on disk, as ``[task.options]`` describes it.

    Attributes:
        path: The folder.
        split: The split that clients train on; empty where the folder is one dataset.
        test_split: The split for tests; empty for a part of the other.
        partitioner: A partitioner's name in ``flwr_datasets.partitioner``; may be empty.
        partitioner_options: Its arguments.
    """

    path: str
    split: str = ""
    test_split: str = ""
    partitioner: str = ""
    partitioner_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Options, options: Mapping[str, Any]) -> Saved:
        """Read the options.

        Raises:
            ConfigError: an option is invalid, or contradicts another.
        """
        arguments = options.get("partitioner_options", {})
        partitioner = given.get("partitioner", "")
        if not isinstance(arguments, Mapping):
            raise ConfigError(
                f"task.options.partitioner_options = {arguments!r}: must be a table of arguments"
            )
        if arguments and not partitioner:
            raise ConfigError("task.options.partitioner_options without partitioner: name one")
        if partitioner and given.get("client", ""):
            raise ConfigError(
                f"task.options.client with partitioner = {partitioner!r}: either a column names "
                f"the clients, or a partitioner makes them (NaturalIdPartitioner does both)"
            )
        if given.get("test_split", "") and "test_fraction" in options:
            raise ConfigError(
                "task.options.test_fraction with test_split: the test rows are a split of their "
                "own; leave one of the two out"
            )
        return cls(
            path=given.required("path", "the dataset's folder"),
            split=given.get("split", ""),
            test_split=given.get("test_split", ""),
            partitioner=partitioner,
            partitioner_options=dict(arguments),
        )

    def train(self, source: DataSource) -> Rows:
        """The rows that clients train on, with their clients where a partitioner makes them.

        Raises:
            DataError: there is no such dataset or split, or the partitioner cannot divide it.
            ConfigError: there is no such partitioner.
        """
        rows = self._read(source, self.split, "split")
        return self._partitioned(rows) if self.partitioner else rows

    def test(self, source: DataSource) -> Rows:
        """The rows of `test_split`."""
        return self._read(source, self.test_split, "test_split")

    def _read(self, source: DataSource, split: str, key: str) -> Rows:
        _require("datasets")
        import datasets

        folder = self._folder(source)
        try:
            with _quiet():
                found = datasets.load_from_disk(str(folder))
        except Exception as error:  # of many kinds, by what is wrong with the folder
            text = "" if source.private else f": {' '.join(str(error).split())[:200]}"
            raise DataError(
                f"{folder}: cannot be read as a dataset ({type(error).__name__}{text}); {_HOW}"
            ) from None
        if isinstance(found, datasets.DatasetDict):
            names = list(found)
            split = split or ("train" if "train" in names else names[0])
            if split not in names:
                raise DataError(
                    f"{folder}: has no split {split!r}{nearest(split, names)}; it has "
                    f"{', '.join(names)}: see task.options.{key}"
                )
            found, folder = found[split], folder / split
        elif split:
            raise DataError(
                f"{folder}: is one dataset without splits; leave task.options.{key} out"
            )
        if not 0 < len(found) <= MAX_ROWS:
            raise DataError(f"{folder}: {len(found)} rows; 1 to {MAX_ROWS} are read")
        return _rows(Place(folder, source.private), found)

    def _folder(self, source: DataSource) -> Path:
        for place in (Path(self.path), *(folder / self.path for _, folder in source.folders)):
            if place.is_dir():
                return place
        looked = ", ".join(str(folder) for _, folder in source.folders) or "the current folder"
        raise DataError(f"{self.path}: no such folder in {looked}; {_HOW}")

    def _partitioned(self, rows: Rows) -> Rows:
        """The rows in the order of clients, as the partitioner divides them."""
        _require("flwr_datasets")
        import datasets
        import pyarrow

        kind, named = self._kind(), f"task.options.partitioner = {self.partitioner!r}"
        table = rows.table
        plain = [n for n in table.column_names if not pyarrow.types.is_nested(table[n].type)]
        numbered = table.select(plain).replace_schema_metadata(None)
        numbered = numbered.append_column(_ROW, pyarrow.array(np.arange(table.num_rows)))
        try:
            with _quiet():
                partitioner = kind(**self.partitioner_options)
                partitioner.dataset = datasets.Dataset(numbered)
                parts = [
                    np.asarray(partitioner.load_partition(part)[_ROW][:], dtype=np.int64)
                    for part in range(partitioner.num_partitions)
                ]
        except Exception as error:  # whatever it raises about its arguments or the rows
            text = "" if rows.place.private else f": {' '.join(str(error).split())[:300]}"
            raise DataError(
                f"{named} with {dict(self.partitioner_options)} cannot divide "
                f"{table.num_rows} rows ({type(error).__name__}{text})"
            ) from None
        order = np.concatenate([*parts, np.zeros(0, np.int64)])
        if not len(order) or len(np.unique(order)) != len(order):
            raise DataError(f"{named}: gave no client a row, or one row to two clients")
        names = getattr(partitioner, "partition_id_to_natural_id", None) or {}
        held = [part for part, each in enumerate(parts) if len(each)]
        sizes = [len(parts[part]) for part in held]
        return Rows(
            place=rows.place,
            table=table.take(pyarrow.array(order)),
            pictures=rows.pictures,
            natural=np.repeat(np.arange(len(held), dtype=np.int64), sizes),
            clients=tuple(str(names.get(part, part)) for part in held),
        )

    def _kind(self) -> Any:
        from flwr_datasets import partitioner

        known = {
            name: found
            for name, found in vars(partitioner).items()
            if inspect.isclass(found)
            and not inspect.isabstract(found)
            and issubclass(found, partitioner.Partitioner)
        }
        if self.partitioner not in known:
            raise ConfigError(
                f"task.options.partitioner = {self.partitioner!r}: flwr_datasets.partitioner has "
                f"{', '.join(sorted(known))}{nearest(self.partitioner, known)}"
            )
        return known[self.partitioner]


def _rows(place: Place, found: Any) -> Rows:
    """The dataset's rows in its own order, with the names of classes for their numbers."""
    import datasets
    import pyarrow

    table, pictures = found.with_format("arrow")[:], []
    for at, (name, feature) in enumerate(found.features.items()):
        if isinstance(feature, datasets.Image):
            pictures.append(name)
        if isinstance(feature, datasets.ClassLabel):
            numbers = table[name].to_numpy()
            unlabelled = ~((numbers >= 0) & (numbers < len(feature.names)))  # -1 marks them
            texts = np.array([*feature.names, None], dtype=object)
            named = texts[np.where(unlabelled, len(feature.names), numbers).astype(np.int64)]
            table = table.set_column(at, name, pyarrow.array(named, pyarrow.string()))
    return Rows(place=place, table=table, pictures=tuple(pictures))


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(
            f"task hf needs the package {package.replace('_', '-')}; install it: "
            f"{how_to_install('hf')}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of the library's."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bar()
