"""What a process that is locked in can still do: compute, and nothing else."""

from __future__ import annotations

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_SECCOMP = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
_only_seccomp = pytest.mark.skipif(
    not _SECCOMP, reason="seccomp filters are for Linux on x86-64 and aarch64"
)


def _locked_in(code: str, *, memory: int = 1 << 28, seconds: int = 60) -> str:
    """What a process prints that runs `code` after it was locked in."""
    whole = (
        "import os, socket, subprocess, threading, ctypes, signal, time\n"
        "import numpy as np\n"
        "from client.graphs.sandbox import confine\n"
        "def attempt(what):\n"
        "    try:\n"
        "        print('DONE', what())\n"
        "    except BaseException as error:\n"
        "        print(type(error).__name__)\n"
        f"walls = confine(memory={memory}, seconds={seconds})\n" + textwrap.dedent(code)
    )
    done = subprocess.run(
        [sys.executable, "-c", whole], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    return f"{done.returncode} {done.stdout.strip()}"


ATTEMPTS = [
    "open('/etc/passwd').read()",
    "open('/dev/null', 'w')",
    "os.listdir('/')",
    "os.stat('/')",
    "os.unlink('/nothing')",
    "os.chdir('/')",
    "os.kill(os.getppid(), 0)",
    "os.pipe()",
    "os.memfd_create('x')",
    "socket.socket()",
    "socket.socket(socket.AF_UNIX)",
    "socket.socketpair()",
    "subprocess.run(['/bin/true'])",
    "os.fork()",
    "os.execv('/bin/true', ['true'])",
    "threading.Thread(target=print).start()",
]


@_only_seccomp
def test_everything_but_computing_is_denied() -> None:
    lines = "\n".join(f"attempt(lambda: {each})" for each in ATTEMPTS)
    code, _, said = _locked_in(f"print(walls)\n{lines}").partition(" ")
    walls, *answers = said.split("\n")
    assert (code, walls) == ("0", "seccomp")
    assert len(answers) == len(ATTEMPTS)
    assert not [each for each, answer in zip(ATTEMPTS, answers, strict=True) if "DONE" in answer]


def test_computing_goes_on() -> None:
    said = _locked_in(
        "a = np.ones((300, 300), np.float32)\n"
        "print(float((a @ a).sum()), len(os.urandom(4)), time.monotonic() > 0)"
    )
    assert said == "0 27000000.0 4 True"


def test_memory_is_bounded() -> None:
    said = _locked_in("attempt(lambda: np.ones(1 << 28).sum())", memory=1 << 27)
    assert said.endswith("MemoryError")


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_CPU sends no signal everywhere")
def test_time_is_bounded() -> None:
    assert _locked_in("while True: pass", seconds=1).startswith("-")


@_only_seccomp
def test_open_files_are_closed() -> None:
    said = _locked_in("attempt(lambda: os.read(3, 1))")
    assert said.endswith("OSError")


@_only_seccomp
def test_limits_cannot_be_raised_again() -> None:
    said = _locked_in(
        "import resource\nattempt(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))"
    )
    assert "DONE" not in said


@_only_seccomp
def test_threads_that_run_already_are_locked_in_too() -> None:
    whole = textwrap.dedent(
        """
        import threading, os
        from client.graphs.sandbox import confine
        go, done = threading.Event(), []
        def other():
            go.wait()
            try:
                os.listdir('/')
                done.append('DONE')
            except PermissionError:
                done.append('denied')
        thread = threading.Thread(target=other)
        thread.start()
        confine(memory=1 << 28, seconds=60)
        go.set()
        thread.join()
        print(done[0])
        """
    )
    found = subprocess.run(
        [sys.executable, "-c", whole], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    assert found.stdout == "denied\n"
