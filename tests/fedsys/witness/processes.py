"""Witnesses as their operators run them: the real command, a real socket."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def environment(home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "LANG": "C.UTF-8",
    }


def command(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`fedsys witness` to its end."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "fedsys", "witness", *map(str, arguments)],
        env=environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@dataclass(frozen=True, kw_only=True)
class Running:
    """A witness's process.

    Attributes:
        port: where it listens, on the loopback.
        vkey: its public key.
    """

    port: int
    vkey: str
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(folder: Path, *, port: int = 0) -> Iterator[Running]:
    """The witness of a folder, until the block ends or it was stopped."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "fedsys", "witness", "run", str(folder)),
            *("--listen", f"127.0.0.1:{port}"),
        ],
        env=environment(folder.parent),
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("listening on 127.0.0.1:"), (said, process.communicate(timeout=30))
        vkey = (folder / "witness.vkey").read_text().strip()
        yield Running(port=int(said.rpartition(":")[2]), vkey=vkey, process=process)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)
