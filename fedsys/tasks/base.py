"""What a task is: a model, data, a loss and metrics.

A task of one's own is a small class with the four methods of `Task`; name it in the configuration
as ``"package.module:Attr"``::

    class Mine:
        name = "mine"

        def init_model(self, seed):                 # the same seed gives the same weights
            with seeded(seed):
                return torch.nn.Linear(4, 3)

        def loss(self, outputs, targets):           # (B,) one value an example
            return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

        def metrics(self, outputs, targets):        # name -> (B,) one value an example
            return {"accuracy": (outputs.argmax(1) == targets).float()}

        def clients(self, source):                  # where the examples are
            return FederatedData(train=Examples(x=..., y=...), test=Examples(x=..., y=...))

        preprocessing = "row-local"                 # what preparing a row looked at

The last is what claims of privacy rest on (see `fedsys.preprocessing`): ``fixed`` or ``row-local``
where a row is prepared without looking at any other, ``client-local`` where at rows of its own
client, ``data-dependent`` where at others' (a mean, a vocabulary, a stratified split over all of
them), which makes claims void. Left out, the ledger says that nothing was declared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fedsys.errors import ConfigError, DataError
from fedsys.preprocessing import DECLARATIONS, Preprocessing

__all__ = [
    "DataReading",
    "DataSource",
    "Examples",
    "FederatedData",
    "Task",
    "preprocessing_of",
    "seeded",
]


_SHORT = (torch.int8, torch.int16, torch.int32)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Inputs and targets, row by row, resident once.

    Attributes:
        x: (M, ...) inputs in whatever type the model takes; bytes stay bytes (``uint8``) and the
            model converts them, so that a data set takes no more memory than its file.
        y: (M, ...) targets; class indices are ``int64``.

    Numpy arrays become tensors, their float64 float32; targets of shorter integers int64.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", _tensor("x", self.x))
        y = _tensor("y", self.y)
        object.__setattr__(self, "y", y.long() if y.dtype in _SHORT else y)
        if len(self.x) != len(self.y):
            raise DataError(f"{len(self.x)} inputs but {len(self.y)} targets; they go in pairs")

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Examples:
        """The same examples on `device`; self when they are there."""
        if self.x.device == device and self.y.device == device:
            return self
        return Examples(x=self.x.to(device), y=self.y.to(device))


class DataReading(Protocol):
    """What a task read, in words."""

    def lines(self) -> list[str]:
        """For whoever may see the data: counts, values, ranges."""
        ...

    def summary(self) -> str:
        """For a log: one line that quotes nothing of the data."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file that stays with whoever holds the data."""
        ...


@dataclass(frozen=True, kw_only=True)
class FederatedData:
    """All examples of a task; who holds which is a partition's business.

    Attributes:
        train: What clients train on.
        test: What the server evaluates on.
        natural: (M,) ``int64`` client of each training example, numbered from 0 without gaps,
            or None where the data names no clients.
        client_names: What the natural clients are called, by number; may be empty.
        reading: What was read, for people: printed before the first round and kept with the run.
    """

    train: Examples
    test: Examples
    natural: Tensor | None = None
    client_names: tuple[str, ...] = ()
    reading: DataReading | None = None

    def __post_init__(self) -> None:
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


def _tensor(name: str, given: object) -> Tensor:
    """A tensor as it is, a numpy array as one."""
    if isinstance(given, Tensor):
        return given
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "biuf":
        kind = f"numpy {given.dtype}" if isinstance(given, np.ndarray) else type(given).__name__
        raise DataError(f"Examples.{name} is {kind}; it has to be a tensor of numbers")
    if given.dtype == np.float64:
        given = given.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(given.astype(given.dtype.newbyteorder("="))))


def _client_numbers(given: object) -> Tensor:
    """(M,) ``int64`` of what numbers clients."""
    if isinstance(given, Tensor):
        found = given
    else:
        array = np.asarray(given)
        found = torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else float))
    if found.ndim != 1:
        raise DataError(
            f"FederatedData.natural has shape {tuple(found.shape)}; one client an example is needed"
        )
    if found.is_floating_point():
        bad = torch.nonzero(~(torch.isfinite(found) & (found == found.floor())))
        if len(bad):
            row = int(bad[0])
            raise DataError(
                f"FederatedData.natural: the client of training example {row} is no whole number; "
                f"leave such examples out, or number their client"
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
    """Where data files may lie, in the order in which they are looked for.

    Attributes:
        folders: Each folder with what named it, e.g. ``("--data", Path("data"))``.
        private: Whether errors may quote nothing that stands in the files: on a device, whose
            logs travel further than its data may.
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
        """``--data DIR`` where given, then ``$FEDSYS_DATA``."""
        folders = [] if given is None else [("--data", given)]
        if environment.get("FEDSYS_DATA"):
            folders.append(("FEDSYS_DATA", Path(environment["FEDSYS_DATA"])))
        return cls(folders=tuple(folders), private=private)

    def find(self, name: str, how_to_get: str) -> Path:
        """The first folder's file called `name`.

        Raises:
            DataError: says where it was looked for and `how_to_get` it.
        """
        for _, folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        looked = ", ".join(f"{label}={folder}" for label, folder in self.folders)
        where = f"looked in {looked}" if looked else "neither --data nor FEDSYS_DATA is set"
        raise DataError(f"{name} not found ({where}); {how_to_get}")


@runtime_checkable
class Task(Protocol):
    """What the clients learn together."""

    name: str

    def init_model(self, seed: int) -> nn.Module:
        """A fresh model whose weights are a function of `seed` alone."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) the training loss, one value an example."""
        ...

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Each (B,): one value an example; the evaluator averages over examples."""
        ...

    def clients(self, source: DataSource) -> FederatedData:
        """Reads the data; raises DataError where it is missing or unusable."""
        ...


def preprocessing_of(task: Task) -> Preprocessing:
    """What a task declares of its preprocessing; ``undeclared`` if it says nothing.

    Raises:
        ConfigError: it declares something else than `fedsys.preprocessing` knows.
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
    """Torch's global generator starts from `seed` inside, and is as it was afterwards.

    >>> with seeded(1):
    ...     a = torch.rand(1)
    >>> with seeded(1):
    ...     bool((torch.rand(1) == a).item())
    True
    """
    with torch.random.fork_rng(devices=[]):
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.manual_seed(seed)
        else:
            # torch.manual_seed would keep a stack trace for each device that might come to be:
            # slow, and memory that grows with every call.
            torch.default_generator.manual_seed(seed)
        yield
