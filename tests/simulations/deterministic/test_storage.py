"""What a simulated disk keeps: what was flushed for certain, anything or nothing of the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secure_agg import FileStore
from simulations.deterministic.storage import Crashed, Disk, FlushFate, Storage

SEEDS = range(24)
Write = Callable[[Path], None]


def flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def left(
    folder: Path, write: Write, *, power_lost: bool = True, fates: tuple[FlushFate, ...] = ()
) -> list[dict[str, bytes]]:
    """Over many seeds: what is left of what `write` did once its machine has died."""
    outcomes = []
    for seed in SEEDS:
        root = folder / str(seed)
        root.mkdir()
        to_come = iter(fates)

        def fate(disk: Disk, to_come: Iterator[FlushFate] = to_come) -> FlushFate:
            return next(to_come, FlushFate())

        storage = Storage(root, seed, fate)
        disk = storage.acting = storage.disk("machine")
        with storage.watched():
            try:
                write(disk.root)
                disk.die(power_lost=power_lost)
            except Crashed:
                pass
            disk.restart()
        outcomes.append(found(disk))
    return outcomes


def found(disk: Disk) -> dict[str, bytes]:
    paths = (path for path in disk.root.rglob("*") if path.is_file())
    return {path.relative_to(disk.root).as_posix(): path.read_bytes() for path in paths}


def distinct(outcomes: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
    return [outcome for i, outcome in enumerate(outcomes) if outcome not in outcomes[:i]]


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        (root / "a").write_bytes(b"unflushed")

    assert distinct(left(tmp_path, write, power_lost=False)) == [{"a": b"unflushed"}]


def test_what_was_flushed_survives(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        (root / "a").write_bytes(b"flushed")
        flush(root / "a")
        flush(root)

    assert distinct(left(tmp_path, write)) == [{"a": b"flushed"}]


def test_a_file_whose_folder_was_not_flushed_may_be_gone(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        (root / "a").write_bytes(b"flushed")
        flush(root / "a")

    outcomes = distinct(left(tmp_path, write))
    assert {} in outcomes
    assert {"a": b"flushed"} in outcomes
    assert len(outcomes) == 2


def test_a_folder_that_was_not_flushed_takes_its_files_along(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        (root / "deep").mkdir()
        (root / "deep" / "a").write_bytes(b"flushed")
        flush(root / "deep" / "a")
        flush(root / "deep")

    assert {} in left(tmp_path, write)


def test_an_append_is_torn_anywhere_after_what_was_flushed(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        path = root / "log"
        path.write_bytes(b"first\n")
        flush(path)
        flush(root)
        with path.open("ab") as file:
            file.write(b"second\n")

    contents = {outcome["log"] for outcome in left(tmp_path, write)}
    assert all(content.startswith(b"first\n") for content in contents)
    assert {b"first\n", b"first\nsecond\n"} < contents
    assert any(content.rstrip(b"\0") != content for content in contents)
    assert all(b"first\nsecond\n".startswith(content.rstrip(b"\0")) for content in contents)


def test_what_was_written_over_is_old_or_new_sector_by_sector(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        path = root / "a"
        path.write_bytes(b"o" * 2000)
        flush(path)
        flush(root)
        with path.open("rb+") as file:
            file.write(b"n" * 1500)
            file.truncate()

    contents = {outcome["a"] for outcome in left(tmp_path, write)}
    assert {b"o" * 2000, b"n" * 1500} < contents
    assert any({*b"on"} <= {*content} for content in contents)
    for content in contents:
        assert {len({*content[at : at + 512]} - {0}) for at in range(0, 1500, 512)} == {1}


def test_a_rename_happened_or_did_not(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        store = FileStore(root / "state")
        store.save(b"old")
        store.save(b"new")

    before = FlushFate(dies="before", power_lost=True)
    well = FlushFate()
    outcomes = left(tmp_path, write, fates=(well, well, well, before))
    assert {outcome["state"] for outcome in outcomes} == {b"old", b"new"}


def test_a_crash_after_the_flush_keeps_it(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        (root / "a").write_bytes(b"x")
        flush(root)
        flush(root / "a")
        raise AssertionError("the process outlived its crash")

    after = FlushFate(dies="after", power_lost=True)
    assert distinct(left(tmp_path, write, fates=(FlushFate(), after))) == [{"a": b"x"}]


def test_a_dying_process_writes_nothing_more(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        path = root / "a"
        path.write_bytes(b"x")
        try:
            flush(path)
        finally:
            path.unlink()
            (root / "b").write_bytes(b"from the grave")

    before = FlushFate(dies="before", power_lost=False)
    assert distinct(left(tmp_path, write, power_lost=False, fates=(before,))) == [{"a": b"x"}]


def test_a_failing_disk_says_so(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        (root / "a").write_bytes(b"x")
        with pytest.raises(OSError, match="Input/output error"):
            flush(root / "a")

    left(tmp_path, write, fates=(FlushFate(fails=True),))


def test_other_files_are_flushed_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(disk: Disk) -> FlushFate:
        raise AssertionError("asked about a file of somebody else's")

    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    (tmp_path / "disks").mkdir()
    storage = Storage(tmp_path / "disks", 0, unwanted)
    storage.acting = storage.disk("machine")
    with storage.watched():
        flush(outside)
    storage.acting = None
    assert os.fsync.__name__ == "fsync"
    flush(outside)
