"""The newest committed model is on disk whatever happens, and nothing else is taken for it."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from fedsys.errors import RunFolderError
from server.checkpoint import Checkpoint, Checkpoints, sha256_of_weights


def of(round: int, *, size: int = 5) -> Checkpoint:
    return Checkpoint(
        round=round,
        weights=np.full(size, round, dtype=np.float32),
        strategy={"velocity": np.arange(size) * round / 3},
        clipping={"norm": round / 7},
        mechanism=bytes([round]) * round,
    )


def committed(*rounds: int) -> dict[int, str]:
    return {round: sha256_of_weights(of(round).weights) for round in rounds}


def assert_same(found: Checkpoint | None, expected: Checkpoint) -> None:
    assert found is not None
    assert (found.round, found.clipping, found.mechanism) == (
        expected.round,
        expected.clipping,
        expected.mechanism,
    )
    np.testing.assert_array_equal(found.weights, expected.weights)
    assert found.strategy.keys() == expected.strategy.keys()
    np.testing.assert_array_equal(found.strategy["velocity"], expected.strategy["velocity"])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_reads_back(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert Checkpoints(folder).newest({}) is None
    checkpoints = Checkpoints(folder)
    for round in (1, 2, 5, 6):  # 3 and 4 were aborted
        checkpoints.save(of(round))
        assert_same(Checkpoints(folder).newest(committed(1, 2, 5, 6)), of(round))
    assert files(folder) == ["a.npz", "b.npz"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


@pytest.mark.parametrize("rounds", [(1,), (1, 2), (1, 2, 3), (1, 3, 4)])
def test_one_without_a_commit_is_overwritten_next(rounds: tuple[int, ...], tmp_path: Path) -> None:
    """Crash after crash between a checkpoint and its commit never costs the committed model."""
    first = Checkpoints(tmp_path)
    for round in rounds:
        first.save(of(round))
    for lost in (7, 8, 9):
        checkpoints = Checkpoints(tmp_path)
        assert_same(checkpoints.newest(committed(*rounds)), of(rounds[-1]))
        checkpoints.save(of(lost))
    assert_same(Checkpoints(tmp_path).newest(committed(*rounds)), of(rounds[-1]))


@pytest.mark.parametrize("keeps", [0, 1, 300, 700])
def test_a_torn_one_is_not_in_the_way(keeps: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for round in (1, 2):
        checkpoints.save(of(round))
    older = tmp_path / "a.npz"
    old = older.read_bytes()
    checkpoints.save(of(3))
    new = older.read_bytes()
    older.write_bytes(new[:keeps] + old[keeps:])
    again = Checkpoints(tmp_path)
    assert_same(again.newest(committed(1, 2)), of(2))
    again.save(of(4))
    assert_same(Checkpoints(tmp_path).newest(committed(1, 2, 4)), of(4))


def test_the_first_one_torn(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(of(1))
    os.truncate(tmp_path / "a.npz", 100)
    again = Checkpoints(tmp_path)
    assert again.newest({}) is None
    again.save(of(2))
    assert_same(Checkpoints(tmp_path).newest(committed(2)), of(2))


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_committed_one_is_named(size: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for round in (1, 2):
        checkpoints.save(of(round))
    os.truncate(tmp_path / "b.npz", size)
    with pytest.raises(RunFolderError, match=r"b\.npz: checkpoint does not read back.*delete it"):
        Checkpoints(tmp_path).newest(committed(1, 2))
    (tmp_path / "b.npz").unlink()
    assert_same(Checkpoints(tmp_path).newest(committed(1, 2)), of(1))


def test_another_model_than_the_committed_one_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for round in (1, 2):
        checkpoints.save(of(round))
    told = committed(1) | {2: "0" * 64}
    with pytest.raises(RunFolderError, match=r"b\.npz: not the model that .* round 2; delete it"):
        Checkpoints(tmp_path).newest(told)
    (tmp_path / "b.npz").unlink()
    assert_same(Checkpoints(tmp_path).newest(told), of(1))


def test_a_smaller_one_over_a_larger_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(of(1, size=5000))
    checkpoints.save(of(2))
    checkpoints.save(of(3))
    assert (tmp_path / "a.npz").stat().st_size < 5000
    assert_same(Checkpoints(tmp_path).newest(committed(2, 3)), of(3))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"kept")
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    (folder / "a.npz").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        checkpoints.save(of(1))
    assert target.read_bytes() == b"kept"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(RunFolderError, match=r"a\.npz: .*not a regular file"):
        Checkpoints(tmp_path).newest(committed(1))


@pytest.mark.parametrize("thread", [False, True])
def test_one_that_fails_leaves_the_newest_alone_next_time_too(
    thread: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) if thread else nullcontext() as disk:
        checkpoints = Checkpoints(tmp_path, disk)
        for round in (1, 2):
            checkpoints.save(of(round))()
        for _ in range(2):
            with monkeypatch.context() as patched:
                patched.setattr("server.checkpoint.overwrite", _torn)
                with pytest.raises(OSError, match="No space left"):
                    checkpoints.save(of(3))()
            assert_same(Checkpoints(tmp_path).newest(committed(1, 2)), of(2))


def _torn(path: Path, content: memoryview, *, mode: int) -> None:
    path.write_bytes(content[:100])
    raise OSError(errno.ENOSPC, "No space left on device")
