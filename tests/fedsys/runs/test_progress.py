"""A run is read while it trains: as it grows, without a write, and as often as that is worth."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

import fedsys
from fedsys import Run
from fedsys.errors import RunFolderError
from fedsys.runs import progress
from fedsys.runs.progress import ProgressReader, is_written
from tests.fedsys.api.conftest import SMALL


def part_of(run: Path, folder: Path, rounds: int) -> Path:
    """The run as it was after so many rounds."""
    shutil.copytree(run, folder, dirs_exist_ok=True)
    (folder / "summary.json").unlink()
    for name, kept in (("ledger.jsonl", 1 + 2 * rounds), ("metrics.jsonl", rounds)):
        lines = (run / name).read_bytes().splitlines(keepends=True)
        (folder / name).write_bytes(b"".join(lines[:kept]))
    return folder


def test_a_finished_run_has_the_summarys_epsilons(finished: Run) -> None:
    found = ProgressReader(finished.folder).read()
    assert found.over
    assert found.status == "completed"
    assert found.spent == finished.epsilon
    assert found.metrics == pytest.approx(finished.metrics)
    assert (found.round, found.rounds, found.head) == (3, 3, finished.summary["ledger_head"])
    assert [point.round for point in found.curve] == [1, 2, 3]
    assert found.delta == finished.delta
    assert found.problem == ""


def test_a_run_grows(finished: Run, tmp_path: Path) -> None:
    seconds = [0.0]
    reader = ProgressReader(part_of(finished.folder, tmp_path / "run", 1), clock=lambda: seconds[0])
    first = reader.read()
    assert (first.status, first.round, first.rounds) == ("running", 1, 3)
    assert not first.over
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir())
    assert reader.read() == first
    after = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir())
    assert before == after, "nothing was written"
    part_of(finished.folder, tmp_path / "run", 2)
    second = reader.read()
    assert second.round == 2
    assert len(second.metrics) == 2
    assert first.spent is not None
    assert second.spent is not None
    assert second.spent.outsider > first.spent.outsider


def test_how_often_epsilon_is_derived_depends_on_what_it_costs(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, original = [0.0], progress._of_ledger

    def slow(folder: Path) -> object:
        seconds[0] += 2.0
        return original(folder)

    monkeypatch.setattr(progress, "_of_ledger", slow)
    reader = ProgressReader(part_of(finished.folder, tmp_path / "run", 1), clock=lambda: seconds[0])
    assert len(reader.read().curve) == 1
    part_of(finished.folder, tmp_path / "run", 2)
    found = reader.read()
    assert (found.round, len(found.curve)) == (2, 1), "its metrics say where it is"
    seconds[0] += 61.0
    assert len(reader.read().curve) == 2


def test_a_run_that_nobody_writes_has_stopped(finished: Run, tmp_path: Path) -> None:
    folder = part_of(finished.folder, tmp_path / "run", 2)
    now = (folder / "ledger.jsonl").stat().st_mtime
    assert ProgressReader(folder, now=lambda: now + 60).read().status == "running"
    assert ProgressReader(folder, now=lambda: now + 600).read().status == "stopped"


def test_the_lock_of_a_ledger_is_seen_and_not_taken(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    assert not is_written(ledger)
    ledger.write_bytes(b"")
    inode = ledger.stat().st_ino
    locks = tmp_path / "locks"
    locks.write_text(f"1: POSIX  ADVISORY  WRITE 1 00:2f:{inode} 0 EOF\n")
    assert not is_written(ledger, locks=locks)
    locks.write_text(f"7: FLOCK  ADVISORY  WRITE 1 00:2f:{inode} 0 EOF\n")
    assert is_written(ledger, locks=locks)
    locks.write_text(f"7: FLOCK  ADVISORY  WRITE 1 00:2f:1{inode} 0 EOF\nnonsense\n")
    assert not is_written(ledger, locks=locks)
    assert not is_written(ledger, locks=tmp_path / "none")
    handle = os.open(ledger, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a run that begins is not in the way
    finally:
        os.close(handle)


def test_folders_are_shown_as_far_as_they_can_be_read(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such run folder"):
        ProgressReader(tmp_path / "none").read()
    (tmp_path / "new").mkdir()
    empty = ProgressReader(tmp_path / "new").read()
    assert (empty.round, empty.rounds, empty.spent, empty.problem) == (0, 0, None, "")
    folder = part_of(finished.folder, tmp_path / "run", 2)
    ledger = (folder / "ledger.jsonl").read_bytes()
    (folder / "ledger.jsonl").write_bytes(ledger.replace(b'"reserve"', b'"reverse"', 1))
    broken = ProgressReader(folder).read()
    assert "ledger line" in broken.problem
    assert broken.spent is None
    assert broken.round == 2
    (folder / "ledger.jsonl").write_bytes(ledger[:-20])
    assert ProgressReader(folder).read().problem == "", "a torn last line is no fault"


def test_without_private_lines_only_the_outsider_is_known(finished: Run, tmp_path: Path) -> None:
    folder = part_of(finished.folder, tmp_path / "run", 3)
    (folder / "private.jsonl").unlink()
    spent = ProgressReader(folder).read().spent
    assert spent is not None
    assert (spent.outsider, spent.participant, spent.server) == (
        finished.epsilon.outsider,
        None,
        None,
    )


def test_a_comparison_takes_runs_that_have_not_ended(finished: Run, tmp_path: Path) -> None:
    folder = part_of(finished.folder, tmp_path / "half", 2)
    table = fedsys.compare([finished, folder])
    assert table.column("run") == ["finished", "half"]
    assert table.column("rounds") == [3, 2]
    assert table.column("status")[1] in ("running", "stopped")
    assert table.column("epsilon_outsider")[1] < table.column("epsilon_outsider")[0]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(RunFolderError, match="no run here"):
        fedsys.compare([tmp_path / "nothing"])
    assert (
        json.loads((finished.folder / "summary.json").read_text())["rounds"]
        == SMALL["rounds.count"]
    )
