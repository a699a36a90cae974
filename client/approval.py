"""What an owner approves: a task's code or graph by its hash, and what changed since last time.

``approved.json`` in the device's folder remembers the files behind each hash in ``policy.toml``; it
is for people to compare, and decides nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.policy import ApprovedTask, Policy
from fedsys.secret_files import write_secret

__all__ = ["Candidate", "approve", "changes_since", "remember"]

_FILE = "approved.json"
_MOST_SHOWN = 40


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A task that might be approved.

    Attributes:
        task: its name.
        sha256: of its code or graph.
        options: with which it is to run.
        files: SHA-256 of each of its files, by name.
    """

    task: str
    sha256: str
    options: Mapping[str, Any]
    files: Mapping[str, str] = field(repr=False)


def approve(folder: Path, candidate: Candidate) -> None:
    """Let a task run, in place of what was approved under its name; the rest of the owner's policy
    stays. The file before is kept as ``policy.toml.before``.

    Raises:
        ConfigError: the policy cannot be read.
        OSError: it cannot be written.
    """
    path = folder / "policy.toml"
    approved = ApprovedTask(sha256=candidate.sha256, options=dict(candidate.options))
    if path.exists():
        before = Policy.load(path)
        write_secret(folder / "policy.toml.before", path.read_bytes())
        known = dict(before.tasks or {})
        policy = dataclasses.replace(before, tasks={**known, candidate.task: approved})
    else:
        policy = Policy.fresh(candidate.task, approved)
    write_secret(path, policy.dump().encode())
    remember(folder, candidate)


def remember(folder: Path, candidate: Candidate) -> None:
    """Note the files behind an approved hash.

    Raises:
        OSError: the note cannot be written.
    """
    known = _known(folder)
    known[candidate.task] = {"sha256": candidate.sha256, "files": dict(candidate.files)}
    write_secret(folder / _FILE, json.dumps(known).encode())


def changes_since(folder: Path, candidate: Candidate) -> list[str]:
    """Lines that say how a task differs from what is approved under its name now.

    Raises:
        ConfigError: the policy cannot be read.
    """
    path = folder / "policy.toml"
    before = (Policy.load(path).tasks or {}).get(candidate.task) if path.exists() else None
    if before is None:
        return ["nothing is approved under this name yet"]
    same = before.sha256 == candidate.sha256
    lines = [] if same else [f"approved so far: {before.sha256}"]
    old, new = dict(before.options), dict(candidate.options)
    lines += [
        f"option {key}: {_shown(old, key)} -> {_shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    known = _known(folder).get(candidate.task, {})
    if not same and known.get("sha256") == before.sha256:
        files = known["files"]
        changed = [
            f"{'-' if name not in candidate.files else '+' if name not in files else '~'} {name}"
            for name in sorted(files.keys() | candidate.files.keys())
            if files.get(name) != candidate.files.get(name)
        ]
        lines += changed[:_MOST_SHOWN]
        if len(changed) > _MOST_SHOWN:
            lines.append(f"and {len(changed) - _MOST_SHOWN} more files")
    elif not same:
        lines.append("which files differ is not known: that version was not approved here")
    return lines or ["the same as what is approved"]


def _shown(options: Mapping[str, Any], key: str) -> str:
    return repr(options[key]) if key in options else "not given"


def _known(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _FILE).read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
