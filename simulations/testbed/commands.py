"""``fedsys`` commands as processes, forked from one that has imported everything.

A fork server's child starts in a tenth of a second instead of three; it then runs
``python -m fedsys`` with the arguments that a person would type.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from simulations.testbed.wall_clock import shift_wall_clock

__all__ = ["run", "start"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["simulations.testbed.preloaded"])
_SECONDS = 900.0


def start(
    words: Sequence[str],
    *,
    output: Path,
    folder: Path,
    environment: Mapping[str, str],
    clock: float = 0.0,
    before: Callable[[], object] | None = None,
) -> ForkServerProcess:
    """Start a command.

    Args:
        words: Arguments after ``fedsys``.
        output: File to which its output is appended.
        folder: Its working directory.
        environment: Changes to this process's environment.
        clock: Seconds by which its wall clock is wrong.
        before: Called in its process before the command; must be picklable.
    """
    process = _CONTEXT.Process(
        target=_main,
        args=(list(words), output, folder, dict(environment), clock, before),
        daemon=True,
    )
    process.start()
    return process


def run(
    words: Sequence[str], *, output: Path, folder: Path, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Run a command to its end; returns its exit code and output."""
    output.unlink(missing_ok=True)
    process = start(words, output=output, folder=folder, environment=environment)
    process.join(_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    return -1 if code is None else code, output.read_text("utf-8")


def _main(
    words: list[str],
    output: Path,
    folder: Path,
    environment: dict[str, str],
    clock: float,
    before: Callable[[], object] | None,
) -> None:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    os.environ.update(environment)
    os.chdir(folder)
    if clock:
        shift_wall_clock(clock)
    if before is not None:
        before()
    sys.argv = ["fedsys", *words]
    runpy.run_module("fedsys", run_name="__main__")
