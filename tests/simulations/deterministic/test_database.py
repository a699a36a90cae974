"""The database on a failing disk: a commit that returned is certain, one that failed is undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from server.home.state import State
from simulations.deterministic.database import job_of, open_state
from simulations.deterministic.storage import Crashed, Disk, FlushFate, Storage

FLUSHES = 2  # of a commit: the file, then its folder


class Machine:
    """A disk that fails when it is told to."""

    def __init__(self, root: Path) -> None:
        self.fates: list[FlushFate] = []
        self.flushes = 0
        self.storage = Storage(root, 0, self._fate)
        self.disk = self.storage.acting = self.storage.disk("machine")
        self.path = self.disk.root / "state.sqlite"

    def _fate(self, _disk: Disk) -> FlushFate:
        self.flushes += 1
        return self.fates.pop(0) if self.fates else FlushFate()

    def restarted(self) -> State:
        self.disk.die(power_lost=True)
        self.disk.restart()
        return open_state(self.path)


@contextmanager
def blaming(root: Path) -> Iterator[tuple[Machine, State]]:
    machine = Machine(root)
    with machine.storage.watched():
        state = open_state(machine.path)
        state.blame(job="a", round=1, node=1, reason="first")
        yield machine, state


def test_what_is_committed_is_certain(tmp_path: Path) -> None:
    with blaming(tmp_path) as (machine, _):
        assert machine.restarted().blamed("a") == {1: "first"}


def test_reading_flushes_nothing(tmp_path: Path) -> None:
    with blaming(tmp_path) as (machine, state):
        before = machine.flushes
        assert state.blamed("a")
        assert state.jobs() == []
        assert machine.flushes == before


@pytest.mark.parametrize("flush", range(FLUSHES))
def test_a_commit_that_the_disk_refused_is_undone(flush: int, tmp_path: Path) -> None:
    with blaming(tmp_path) as (machine, state):
        machine.fates = [FlushFate()] * flush + [FlushFate(fails=True)]
        with pytest.raises(OperationalError, match="disk I/O error"):
            state.blame(job="a", round=2, node=2, reason="second")
        assert state.blamed("a") == {1: "first"}
        state.blame(job="a", round=3, node=3, reason="third")
        assert machine.restarted().blamed("a") == {1: "first", 3: "third"}


@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("flush", range(FLUSHES))
def test_a_commit_that_was_cut_short_is_there_or_is_not(
    flush: int, dies: str, tmp_path: Path
) -> None:
    with blaming(tmp_path) as (machine, state):
        machine.fates = [FlushFate()] * flush + [FlushFate(dies=dies, power_lost=True)]
        with pytest.raises(Crashed):
            state.blame(job="a", round=2, node=2, reason="second")
        found = machine.restarted().blamed("a")
        assert found in ({1: "first"}, {1: "first", 2: "second"})
        if (flush, dies) == (FLUSHES - 1, "after"):
            assert 2 in found


def test_a_database_without_a_job(tmp_path: Path) -> None:
    with blaming(tmp_path) as (machine, _):
        assert job_of(machine.disk.durable(machine.path) or b"") is None
