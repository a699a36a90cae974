"""The hash under which a task's code is approved, from its files: installed, or in a wheel."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import IO

from fedsys.errors import ConfigError

__all__ = ["MOST_BYTES", "MOST_FILES", "counts", "digest_of", "hash_of", "wheel_files"]

MOST_FILES = 10_000
"""The most files of one task."""
MOST_BYTES = 1 << 30
"""The most bytes of them together."""
_PARTS_LEFT = ("__pycache__", ".git", ".hg", ".svn")


def hash_of(entry: str, files: Mapping[str, str]) -> str:
    """SHA-256 over a task's entry and its files.

    Args:
        entry: ``module:Class``.
        files: SHA-256, as hex, by the file's name relative to the folder that is on the path.
    """
    body = json.dumps([entry, sorted(files.items())], separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(b"fedsys task code v2\x00" + body.encode()).hexdigest()


def wheel_files(content: IO[bytes], path: str) -> dict[str, str]:
    """SHA-256 of the files that a wheel installs, by name, as `fedsys.tasks.code` finds them.

    Args:
        content: the wheel.
        path: its name, for messages.

    Raises:
        ConfigError: it is not a wheel of plain modules and data, or an unreasonably large one.
    """
    found: dict[str, str] = {}
    try:
        with zipfile.ZipFile(content) as wheel:
            entries = [each for each in wheel.infolist() if not each.is_dir()]
            if len(entries) > MOST_FILES or sum(e.file_size for e in entries) > MOST_BYTES:
                raise ConfigError(f"{path}: more than {MOST_FILES} files or 1 GiB")
            for each in entries:
                parts = PurePosixPath(each.filename).parts
                if parts[0].endswith(".data") or ".." in parts or each.filename.startswith("/"):
                    raise ConfigError(
                        f"{path}: installs {each.filename} outside of its package; a task's wheel "
                        f"has modules and data only"
                    )
                if not parts[0].endswith(".dist-info") and counts(parts):
                    with wheel.open(each) as data:
                        found[each.filename] = digest_of(data)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{path}: not a wheel: {error}") from None
    return found


def counts(parts: tuple[str, ...]) -> bool:
    """Whether a file with these parts of a name is of the task, and not made from it."""
    return (
        ".." not in parts
        and not any(part in _PARTS_LEFT for part in parts)
        and not parts[-1].endswith((".pyc", ".pyo"))
    )


def digest_of(content: IO[bytes]) -> str:
    """SHA-256 of a file's content, as hex."""
    digest = hashlib.sha256()
    while piece := content.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()
