"""What a task is: a model, data, a loss and metrics.

A task of one's own is a small class with the four methods of `Task`; name it in the configuration
as ``"package.module:Attr"``::

    class Mine:
        name = "mine"

        def init_model(self, seed):                 # the same seed gives the same weights
            with seeded(seed):
                return torch.nn.Linear(4, 3)

        def loss(self, outputs, targets):           # (B,) one value per example
            return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

        def metrics(self, outputs, targets):        # name -> (B,) one value per example
            return {"accuracy": (outputs.argmax(1) == targets).float()}

        def clients(self, source):                  # where the examples are
            return FederatedData(train=Examples(x=..., y=...), test=Examples(x=..., y=...))

        preprocessing = "row-local"                 # what preparing a row looked at

Privacy claims rest on ``preprocessing`` (see `fedsys.preprocessing`): ``fixed`` or ``row-local`` if
a row is prepared without looking at any other row, ``client-local`` if by rows of its own client,
``data-dependent`` if by other clients' rows (a mean, a vocabulary, a stratified split over all
rows), which makes claims void. If it is left out, the ledger says that nothing was declared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fedsys.errors import ConfigError, DataError
from fedsys.preprocessing import DECLARATIONS, Preprocessing
from fedsys.tasks.by_client import READING, ByClient
from fedsys.tasks.examples import Examples, Values

__all__ = [
    "DataReading",
    "DataSource",
    "Examples",
    "FederatedData",
    "Task",
    "preprocessing_of",
    "seeded",
]


class DataReading(Protocol):
    """A description of the data that a task read."""

    def lines(self) -> list[str]:
        """Text for those who may see the data: counts, values, ranges."""
        ...

    def summary(self) -> str:
        """One line for a log, which quotes nothing of the data."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file that stays with those who hold the data."""
        ...


@dataclass(frozen=True, kw_only=True)
class FederatedData:
    """All examples of a task; a partition decides who holds which.

    Attributes:
        train: The clients' training examples; with `by_client`, those of a few of them.
        test: The examples on which the coordinator evaluates.
        natural: (M,) ``int64`` client of each training example, numbered from 0 without gaps,
            or None if the data names no clients.
        client_names: Names of the natural clients, by number; may be empty.
        reading: What was read, for people: printed before the first round and kept with the run.
        by_client: Training examples that are read when a client trains, in place of `train` and
            `natural`.
    """

    test: Examples
    train: Examples = field(default=cast(Examples, None))
    natural: Tensor | None = None
    client_names: tuple[str, ...] = ()
    reading: DataReading | None = None
    by_client: ByClient | None = None

    def __post_init__(self) -> None:
        if self.by_client is not None:
            if self.natural is not None or self.train is not None:
                raise DataError("FederatedData.by_client is given, and train or natural too")
            object.__setattr__(self, "train", self.by_client.sample())
        elif self.train is None:
            raise DataError("FederatedData has neither train nor by_client")
        if not len(self.train):
            raise DataError("no training example is left; check the data file and its options")
        if not len(self.test):
            raise DataError("no test example is left; check the data file and its options")
        if self.natural is not None:
            object.__setattr__(self, "natural", _client_numbers(self.natural))
        if self.natural is not None and len(self.natural) != len(self.train):
            raise DataError(
                f"{len(self.natural)} client ids for {len(self.train)} training examples; "
                f"one each is needed"
            )


def _client_numbers(given: object) -> Tensor:
    """(M,) ``int64`` client numbers, from any numeric array."""
    if isinstance(given, Tensor):
        found = given
    else:
        array = np.asarray(given)
        found = torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else float))
    if found.ndim != 1:
        raise DataError(
            f"FederatedData.natural has shape {tuple(found.shape)}; it needs one client per example"
        )
    if found.is_floating_point():
        bad = torch.nonzero(~(torch.isfinite(found) & (found == found.floor())))
        if len(bad):
            row = int(bad[0])
            raise DataError(
                f"FederatedData.natural: the client of training example {row} is not a whole "
                f"number; leave such examples out, or number their client"
            )
    if len(found) and int(found.min()) < 0:
        row = int(torch.nonzero(found < 0)[0])
        raise DataError(
            f"FederatedData.natural: the client of training example {row} is below 0; clients are "
            f"numbered from 0"
        )
    return found.long()


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Folders that may contain the data files, in search order.

    Attributes:
        folders: Each folder with the option that named it, e.g. ``("--data", Path("data"))``.
        private: Whether errors must not quote the files' contents: so on a device, whose logs
            travel further than its data may.
    """

    folders: tuple[tuple[str, Path], ...] = ()
    private: bool = False

    @classmethod
    def locate(
        cls,
        given: Path | None = None,
        environment: Mapping[str, str] = os.environ,
        *,
        private: bool = False,
    ) -> DataSource:
        """``--data DIR`` if given, then ``$FEDSYS_DATA``."""
        folders = [] if given is None else [("--data", given)]
        if environment.get("FEDSYS_DATA"):
            folders.append(("FEDSYS_DATA", Path(environment["FEDSYS_DATA"])))
        return cls(folders=tuple(folders), private=private)

    def find(self, name: str, how_to_get: str) -> Path:
        """The file called `name` in the first folder that has it.

        Raises:
            DataError: no folder has it; the message names the folders and says `how_to_get` it.
        """
        for _, folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        looked = ", ".join(f"{label}={folder}" for label, folder in self.folders)
        where = f"looked in {looked}" if looked else "neither --data nor FEDSYS_DATA is set"
        raise DataError(f"{name} not found ({where}); {how_to_get}")


@runtime_checkable
class Task(Protocol):
    """A learning task: model, loss, metrics and data."""

    name: str

    def init_model(self, seed: int) -> nn.Module:
        """A fresh model whose weights are a function of `seed` alone."""
        ...

    def loss(self, outputs: Any, targets: Values) -> Tensor:
        """(B,) the training loss, one value per example."""
        ...

    def metrics(self, outputs: Any, targets: Values) -> dict[str, Tensor]:
        """Each (B,): one value per example; the evaluator averages over examples."""
        ...

    def clients(self, source: DataSource) -> FederatedData:
        """Reads the data; raises DataError if it is missing or unusable."""
        ...


def preprocessing_of(task: Task) -> Preprocessing:
    """A task's declaration of its preprocessing; ``undeclared`` if it has none.

    Raises:
        ConfigError: `fedsys.preprocessing` does not know the declaration.
    """
    declared = getattr(task, "preprocessing", None)
    if declared is None:
        return "undeclared"
    for known in DECLARATIONS:
        if declared == known:
            return known
    raise ConfigError(
        f"task {task.name}: preprocessing = {declared!r}; allowed are {', '.join(DECLARATIONS)}"
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator within the block, and restore its state afterwards.

    Raises:
        DataError: within a `ByClient.load`, where other threads draw from that generator too.

    >>> with seeded(1):
    ...     a = torch.rand(1)
    >>> with seeded(1):
    ...     bool((torch.rand(1) == a).item())
    True
    """
    if READING.get():
        raise DataError(
            "ByClient.load uses seeded(), whose generator other threads use at the same time; draw "
            "from torch.Generator().manual_seed(...) instead"
        )
    with torch.random.fork_rng(devices=[]):
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.manual_seed(seed)
        else:
            # torch.manual_seed would keep a stack trace for each device not yet initialized:
            # that is slow, and takes more memory with every call.
            torch.default_generator.manual_seed(seed)
        yield
