"""What is flushed, in which order, and what a failing disk leaves."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsys.durable import DurableFile, append_lines, make_folder, write_atomically, write_new


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is flushed and renamed, as it happens."""
    found: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        found.append("flush " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        found.append(f"rename {self.name} {target.name}")
        rename(self, target)
        return target

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    return found


def full(*_arguments: object) -> int:
    raise OSError(28, "No space left on device")


def interrupted(*_arguments: object) -> int:
    raise KeyboardInterrupt


def few_bytes(write: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
    """A system that takes three bytes at a time."""
    return lambda descriptor, data: write(descriptor, data[:3])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestWriting:
    def test_content_then_name_then_the_folder_s_names(
        self, tmp_path: Path, events: list[str]
    ) -> None:
        write_atomically(tmp_path / "a", b"one")
        assert events == ["flush a.partial", "rename a.partial a", f"flush {tmp_path.name}"]
        write_atomically(tmp_path / "a", b"two", mode=0o600)
        assert (tmp_path / "a").read_bytes() == b"two"
        assert mode(tmp_path / "a") == 0o600
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_a_new_file_s_name_is_left_to_the_caller(
        self, tmp_path: Path, events: list[str]
    ) -> None:
        write_new(tmp_path / "a", memoryview(b"one"), mode=0o600)
        assert events == ["flush a"]
        assert mode(tmp_path / "a") == 0o600

    def test_a_failing_disk_leaves_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a"
        write_atomically(path, b"before")
        for name in ("write", "fsync"):
            with monkeypatch.context() as patch:
                patch.setattr(os, name, full)
                with pytest.raises(OSError, match="No space"):
                    write_atomically(path, b"after")
            assert path.read_bytes() == b"before"
        write_atomically(path, b"after")  # what the failed attempts left is in nobody's way
        assert path.read_bytes() == b"after"

    def test_nothing_is_written_through_a_link(self, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(b"theirs")
        for name in ("a", "a.partial"):
            (tmp_path / name).symlink_to(elsewhere)
        write_atomically(tmp_path / "a", b"ours")
        assert not (tmp_path / "a").is_symlink()
        (tmp_path / "lines").symlink_to(elsewhere)
        with pytest.raises(OSError, match="symbolic links"):
            append_lines(tmp_path / "lines", b"ours\n")
        with pytest.raises(OSError, match="symbolic links"):
            DurableFile(tmp_path / "lines", create=False, mode=0o600)
        assert elsewhere.read_bytes() == b"theirs"

    def test_short_writes_go_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "write", few_bytes(os.write))
        write_atomically(tmp_path / "a", b"0123456789")
        append_lines(tmp_path / "b", b"0123456789\n")
        file = DurableFile(tmp_path / "c", create=True, mode=0o600)
        file.append(b"0123456789")
        file.close()
        for name in "abc":
            assert (tmp_path / name).read_bytes().strip() == b"0123456789"


class TestFolders:
    def test_every_new_folder_s_own_name_is_flushed(
        self, tmp_path: Path, events: list[str]
    ) -> None:
        make_folder(tmp_path / "one" / "two" / "three", mode=0o700)
        assert events == ["flush two", "flush one", f"flush {tmp_path.name}"]
        assert mode(tmp_path / "one" / "two" / "three") == 0o700

    def test_one_that_somebody_made_and_did_not_flush_is(
        self, tmp_path: Path, events: list[str]
    ) -> None:
        (tmp_path / "one").mkdir()
        make_folder(tmp_path / "one")
        assert events == [f"flush {tmp_path.name}"]

    def test_one_that_is_there_needs_no_readable_parent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def closed(folder: Path) -> None:
            raise PermissionError(13, "Permission denied", str(folder))

        monkeypatch.setattr("fedsys.durable.flush_names", closed)
        (tmp_path / "theirs").mkdir()
        make_folder(tmp_path / "theirs")
        with pytest.raises(PermissionError):
            make_folder(tmp_path / "ours")


class TestLines:
    def test_they_are_added_and_flushed(self, tmp_path: Path, events: list[str]) -> None:
        path = tmp_path / "lines"
        append_lines(path, b"1\n2\n", mode=0o600)
        append_lines(path, b"")
        append_lines(path, b"3\n")
        assert path.read_bytes() == b"1\n2\n3\n"
        assert mode(path) == 0o600
        assert events == ["flush lines", f"flush {tmp_path.name}", "flush lines", "flush lines"]

    @pytest.mark.parametrize(("before", "whole"), [(b"1\n2", b"1\n"), (b"torn", b""), (b"", b"")])
    def test_a_torn_line_is_cut_off(self, tmp_path: Path, before: bytes, whole: bytes) -> None:
        path = tmp_path / "lines"
        path.write_bytes(before)
        append_lines(path, b"3\n")
        assert path.read_bytes() == whole + b"3\n"


class TestGrowing:
    def test_a_new_one_s_name_is_flushed_and_then_every_append(
        self, tmp_path: Path, events: list[str]
    ) -> None:
        file = DurableFile(tmp_path / "a", create=True, mode=0o600)
        file.append(b"one")
        file.append(b"two")
        file.cut(2)
        file.close()
        assert events == [f"flush {tmp_path.name}", *["flush a"] * 3]
        assert (tmp_path / "a").read_bytes() == b"onet"
        assert mode(tmp_path / "a") == 0o600

    def test_what_a_killed_process_wrote_is_flushed_before_it_is_relied_upon(
        self, tmp_path: Path, events: list[str]
    ) -> None:
        (tmp_path / "a").write_bytes(b"written, perhaps not flushed")
        DurableFile(tmp_path / "a", create=False, mode=0o600).close()
        assert events == ["flush a"]

    def test_it_has_one_owner(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        with pytest.raises(FileNotFoundError):
            DurableFile(path, create=False, mode=0o600)
        file = DurableFile(path, create=True, mode=0o600)
        with pytest.raises(FileExistsError):
            DurableFile(path, create=True, mode=0o600)
        with pytest.raises(BlockingIOError):
            DurableFile(path, create=False, mode=0o600)
        file.close()
        DurableFile(path, create=False, mode=0o600).close()

    @pytest.mark.parametrize("name", ["write", "fsync"])
    @pytest.mark.parametrize("failing", [full, interrupted])
    def test_after_a_failure_it_takes_no_more(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        failing: Callable[..., int],
    ) -> None:
        """A second line must not follow upon half of a first."""
        file = DurableFile(tmp_path / "a", create=True, mode=0o600)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            with pytest.raises((OSError, KeyboardInterrupt)):
                file.append(b"one")
        before = (tmp_path / "a").read_bytes()
        with pytest.raises(OSError, match="earlier write"):
            file.append(b"two")
        file.close()
        assert (tmp_path / "a").read_bytes() == before

    def test_one_that_cannot_be_flushed_is_let_go(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                DurableFile(tmp_path / "a", create=True, mode=0o600)
        DurableFile(tmp_path / "a", create=False, mode=0o600).close()
