"""Finds the runs below a folder."""

from __future__ import annotations

import os
from pathlib import Path

from fedsys.errors import RunFolderError

__all__ = ["run_folders"]

_FILES = {"config.toml", "ledger.jsonl"}
_DEPTH = 3
_MOST_FOLDERS = 20_000


def run_folders(root: Path, *, most: int = 500) -> list[Path]:
    """The folder itself if it is a run's, otherwise the runs below it, newest first.

    No link is followed, and nothing in a run's folder is looked for.

    Args:
        root: where to look.
        most: how many to return.

    Raises:
        RunFolderError: there is no such folder.
    """
    found: list[tuple[float, Path]] = []
    level, looked = [root], 0
    if not root.is_dir():
        raise RunFolderError(f"{root}: no such folder; give one that holds runs")
    for depth in range(_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            looked += 1
            files, folders = _entries(folder)
            if _FILES & files.keys():
                found.append((max(files[name] for name in _FILES & files.keys()), folder))
            elif depth < _DEPTH:
                below += folders
        level = below[: max(0, _MOST_FOLDERS - looked)]
    return [folder for _, folder in sorted(found, key=lambda each: (-each[0], each[1]))][:most]


def _entries(folder: Path) -> tuple[dict[str, float], list[Path]]:
    """A run's files with the time of their last write, and the folders."""
    files, folders = {}, []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in _FILES and entry.is_file(follow_symlinks=False):
                    files[entry.name] = entry.stat(follow_symlinks=False).st_mtime
                elif not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
    except OSError:  # another user's, or gone by now
        return {}, []
    return files, folders
