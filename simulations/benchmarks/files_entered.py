"""Which files of the product one simulated secure round enters, stretch by stretch.

``python -m simulations.benchmarks.files_entered`` prints their numbers, and with ``--files`` their
names: what a reader opens to follow an update through the code. Python tells of every call
(`sys.setprofile`), and the round runs in one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType
from unittest import mock

from fedsys.config import load
from fedsys.privacy.randomness import Entropy
from server.coordinator import Coordinator, OpenRound
from simulations import harness, summation
from simulations.population import Population

__all__ = ["SETTINGS", "STRETCHES", "entered"]

STRETCHES = ("train", "encode to sum", "top up to commit")
SETTINGS = (
    "rounds.count=1",
    "cohort.expected=40",
    "aggregation.dropout=0.01",
    "faults.dropout=0",
    "evaluation.data=none",
    "engine.processes=1",
    "engine.path=batched",
    "engine.chunk=32",
)

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("client", "fedsys", "secure_agg", "server", "simulations")
_BEGIN: dict[CodeType, str] = {
    Population.train.__code__: "train",
    summation.summation.__code__: "encode to sum",
    Coordinator.finish_round.__code__: "top up to commit",
}
"""The functions whose calls are the stretches; training is within the second."""


def entered(settings: tuple[str, ...] = SETTINGS) -> dict[str, tuple[str, ...]]:
    """Run a round, and tell which files its calls enter.

    Args:
        settings: replace keys of the recipe ``quickstart``.

    Returns:
        For each of ``STRETCHES``, the names of the files, from the repository's root.
    """
    watch, begin = _Watch(), Coordinator.begin_round

    def begun(coordinator: Coordinator, sampling_entropy: Entropy) -> OpenRound:
        opened = begin(coordinator, sampling_entropy)
        sys.setprofile(watch.tell)  # not before: it would slow down what prepares the job
        return opened

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Coordinator, "begin_round", begun),
    ):
        try:
            harness.run(load("quickstart", settings), out=Path(folder) / "run")
        finally:
            sys.setprofile(None)
    return {name: tuple(sorted(watch.files[name])) for name in STRETCHES}


class _Watch:
    """Collects the files of all calls, by the innermost stretch that they are in."""

    def __init__(self) -> None:
        self.files: dict[str, set[str]] = {name: set() for name in STRETCHES}
        self._open: list[str] = []
        self._names: dict[str, str] = {}

    def tell(self, frame: FrameType, event: str, _argument: object) -> None:
        """As `sys.setprofile` calls it."""
        if event not in ("call", "return"):
            return
        stretch = _BEGIN.get(frame.f_code)
        if event == "return":
            if stretch is not None:
                self._open.pop()
            return
        if stretch is not None:
            self._open.append(stretch)
        name = self._name(frame.f_code.co_filename) if self._open else ""
        if name:
            self.files[self._open[-1]].add(name)

    def _name(self, file: str) -> str:
        """A product file's name; empty for any other."""
        if file not in self._names:
            path = Path(file)
            name = str(path.relative_to(_ROOT)) if path.is_relative_to(_ROOT) else ""
            self._names[file] = name if name.startswith(_PACKAGES) else ""
        return self._names[file]


def main() -> None:
    """Print how many files each stretch enters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", action="store_true", help="name them")
    listed = parser.parse_args().files
    found = entered()
    for stretch, files in found.items():
        sys.stdout.write(f"{stretch}: {len(files)} files\n")
        if listed:
            sys.stdout.writelines(f"  {name}\n" for name in files)
    whole = {name for files in found.values() for name in files}
    sys.stdout.write(f"in all: {len(whole)} files\n")


if __name__ == "__main__":
    main()
