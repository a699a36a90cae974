"""The real command line, in its own process, with a home of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

Completed = subprocess.CompletedProcess[str]


@contextlib.contextmanager
def _hearing_ctrl_c() -> Iterator[None]:
    """A shell's background job ignores SIGINT, and so would the children that it starts here.

    Set in this process, not by ``preexec_fn``: that makes ``subprocess`` fork, and a fork of a
    process in which gRPC runs threads may abort before it becomes the command.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class CommandLine:
    """``fedsys`` as a user has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "PATH": os.environ["PATH"],
            "RUNTIME_DIRECTORY": os.environ["RUNTIME_DIRECTORY"],
            "HOME": str(folder),
            "FEDSYS_HOME": str(folder / "home"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "100",
            "LANG": "C.UTF-8",
        }

    def run(self, *arguments: str | Path, **environment: str) -> Completed:
        """Run a command to its end."""
        return subprocess.run(
            self._command(arguments),
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def run_until(
        self, happens: Callable[[], bool], send: signal.Signals, *arguments: str | Path
    ) -> Completed:
        """Run a command, and send it a signal as soon as something is the case."""
        with _hearing_ctrl_c():
            process = subprocess.Popen(
                self._command(arguments),
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        deadline = time.monotonic() + 120
        while process.poll() is None and not happens() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(send)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def _command(self, arguments: tuple[str | Path, ...]) -> list[str]:
        return [sys.executable, "-P", "-m", "fedsys", *map(str, arguments)]


@pytest.fixture(scope="module")
def fedsys(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """The command line in a fresh folder, shared by a module's tests."""
    return CommandLine(tmp_path_factory.mktemp("user"))
