"""Costs of rounds: seconds, and CPU seconds and memory of the process and its descendants, read
from within (`Clock`) or from outside (`peaks_of`)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["Clock", "below", "peaks_of", "process_tree"]

_PAUSE = 0.2
_TIMEOUT = 1800


class Clock:
    """Records each round's seconds, and CPU seconds and memory of the process tree.

    Args:
        root: The tree's first process; None is this process.
    """

    def __init__(self, *, root: int | None = None) -> None:
        self._root = os.getpid() if root is None else root
        self._seconds: list[float] = []
        self._clients: list[int] = []
        self._examples: list[int] = []
        self._cpu: list[tuple[int, float]] = []
        self._memory = 0
        self._looking = 0.0
        self._look_again = 0.0
        self._last = time.perf_counter()
        self.facts: dict[str, Any] = {}

    def start(self, began: float | None = None) -> None:
        """Begin the first round, now or at a reading of `time.perf_counter` in another process."""
        self._last = time.perf_counter() if began is None else began

    def lap(self, clients: int, examples: int) -> None:
        """End a round of this many clients, who hold this many examples in all.

        The measurement itself counts in no round's seconds or CPU seconds. As it leaves cold caches
        to the next round, it is limited to a hundredth of the time.
        """
        self._seconds.append(time.perf_counter() - self._last)
        self._clients.append(clients)
        self._examples.append(examples)
        if len(self._cpu) < 2 or time.perf_counter() >= self._look_again:
            began, spent = time.perf_counter(), time.process_time()
            cpu, memory = process_tree(self._root)
            self._cpu.append((len(self._seconds), cpu - self._looking))
            self._looking += time.process_time() - spent
            self._look_again = time.perf_counter() + 100 * (time.perf_counter() - began)
            self._memory = max(self._memory, memory)
        self._last = time.perf_counter()

    def recount(self, clients: Sequence[int], examples: Sequence[int]) -> None:
        """Set each round's numbers of clients and examples, if they are known only afterwards."""
        self._clients, self._examples = list(clients), list(examples)

    def write(self, path: Path) -> None:
        """Write everything recorded as JSON."""
        found = {
            "seconds": self._seconds,
            "clients": self._clients,
            "examples": self._examples,
            "cpu": self._cpu,
            "memory": self._memory,
            "threads": torch.get_num_threads(),
            **self.facts,
        }
        path.write_text(json.dumps(found))


def peaks_of(
    command: Sequence[str],
    look: Callable[[int], Mapping[str, float]],
    *,
    environment: Mapping[str, str] | None = None,
    until: Path | None = None,
) -> tuple[dict[str, float], str]:
    """Run a command, and return the largest of each value that was seen, and what it printed.

    Args:
        command: Program and arguments.
        look: Returns the values of a process, given its id; called five times a second.
        environment: Environment variables besides this process's own.
        until: Once this file is there, the process is waited for and looked at no more.

    Raises:
        SystemExit: It failed, or took more than half an hour.
    """
    peaks: dict[str, float] = {}
    began, shown = time.monotonic(), " ".join(command)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, stdout=out, stderr=errors, text=True
        )
        try:
            while process.poll() is None:
                if until is None or not until.exists():
                    for name, value in look(process.pid).items():
                        peaks[name] = max(peaks.get(name, 0.0), value)
                if time.monotonic() - began > _TIMEOUT:
                    raise SystemExit(f"{shown}: no result after {_TIMEOUT} s")
                time.sleep(_PAUSE)
        finally:
            for each in below(process.pid) if process.poll() is None else ():
                with contextlib.suppress(ProcessLookupError):  # it ended with one of the others
                    os.kill(each, signal.SIGKILL)
            process.wait()
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{shown} failed:\n{errors.read()[-4000:]}")
        return peaks, out.read()


def process_tree(root: int) -> tuple[float, int]:
    """CPU seconds and proportional set size in bytes of a process and its descendants."""
    ticks, memory = 0, 0
    for pid in below(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
        memory += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return ticks / os.sysconf("SC_CLK_TCK"), memory


def below(root: int) -> set[int]:
    """The ids of a process and its descendants."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
    tree, grown = {root}, True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in tree}
        grown = not children <= tree
        tree |= children
    return tree
