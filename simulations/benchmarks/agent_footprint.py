"""An agent's footprint on a device: disk, and memory while it waits and after it has trained.

    python -m simulations.benchmarks.agent_footprint --venv build/agent

Creates an environment with only ``fedsys[deploy]`` (no ray, no flwr, no extra for tracking, tuning
or export) unless it exists already, and runs a coordinator and three agents in it with a short job
on the digits. Memory is resident, shared pages included; "own" is what no other process shares.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

__all__ = ["measure"]

_ROOT = Path(__file__).resolve().parents[2]
_SILOS = 3
_PATIENCE = 300.0


def install(venv: Path) -> None:
    """Create an environment with only the extra `deploy`, from this checkout."""
    subprocess.run(
        ["make", "--quiet", f"PYTHON={sys.executable}", f"VENV={venv}", f"{venv}/.core"],
        cwd=_ROOT,
        check=True,
    )


def measure(python: Path) -> dict[str, Any]:
    """Memory of an agent that runs under this interpreter.

    Returns:
        MB of resident memory once it is connected, and after a job; threads and descriptors;
        seconds for one agent to join, and until all were connected.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        environment = {**os.environ, "FEDSYS_HOME": str(root / "home"), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)

        def run(*words: str) -> str:
            done = subprocess.run(
                [python, "-m", "fedsys", *words],
                cwd=root,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise RuntimeError(f"fedsys {' '.join(words)}: {done.stderr or done.stdout}")
            return done.stdout.strip()

        def start(name: str, *words: str) -> psutil.Process:
            with (root / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    [python, "-m", "fedsys", *words],
                    cwd=root,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return psutil.Process(process.pid)

        run("coordinator", "init", "hq", "--host", "127.0.0.1")
        start("hq", "coordinator", "run", "hq", "--listen", "127.0.0.1:0")
        address = _found(r"listening on (\S+)", root / "hq.log")
        agents, began = [], time.monotonic()
        for number in range(_SILOS):
            token = run("coordinator", "enroll", "hq", f"n{number}", "--quiet")
            run("agent", "join", address, "--token", token, f"a{number}")
        joined = time.monotonic()
        for number in range(_SILOS):
            words = ["--data", "digits", "--shard", f"{number}/{_SILOS}"]
            agents.append(start(f"a{number}", "agent", "run", f"a{number}", *words))
        for number in range(_SILOS):
            _found(r"(connected to)", root / f"a{number}.log")
        connected = time.monotonic()
        time.sleep(2.0)
        waiting = [agent.memory_full_info() for agent in agents]
        job = run("job", "submit", "hq", "silo", "--quiet")
        run("job", "watch", "hq", job)
        after = [agent.memory_info().rss for agent in agents]
        return {
            "join_seconds": round((joined - began) / _SILOS, 1),
            "connect_seconds": round(connected - joined, 1),
            "waiting_mb": round(max(each.rss for each in waiting) / 1e6, 1),
            "waiting_own_mb": round(max(each.uss for each in waiting) / 1e6, 1),
            "after_a_job_mb": round(max(after) / 1e6, 1),
            "threads": agents[0].num_threads(),
            "descriptors": agents[0].num_fds(),
        }


def size_of(venv: Path, *, largest: int = 8) -> dict[str, Any]:
    """MB on disk, in all and of the largest packages."""
    (packages,) = (venv / "lib").glob("python3*/site-packages")
    sizes = {each.name: _bytes(each) for each in packages.iterdir()}
    top = sorted(sizes, key=lambda name: -sizes[name])[:largest]
    return {
        "installed_mb": round(_bytes(venv) / 1e6),
        "largest_mb": {name: round(sizes[name] / 1e6) for name in top},
        "without_torch_mb": round((_bytes(venv) - sizes.get("torch", 0)) / 1e6),
    }


def _bytes(path: Path) -> int:
    if path.is_symlink():
        return 0
    if path.is_file():
        return path.stat().st_size
    return sum(_bytes(each) for each in path.iterdir())


def _found(pattern: str, log: Path) -> str:
    """Wait until a log matches; returns the pattern's first group."""
    end = time.monotonic() + _PATIENCE
    while True:
        text = log.read_text("utf-8", "replace")
        found = re.search(pattern, text)
        if found is not None:
            return found[1]
        if time.monotonic() > end:
            raise RuntimeError(text[-2000:])
        time.sleep(0.05)


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--venv", type=Path, default=Path("build/agent"))
    given = parser.parse_args()
    if not (given.venv / "bin" / "fedsys").exists():
        install(given.venv)
    python = (given.venv / "bin").resolve() / "python"
    print(json.dumps(size_of(given.venv) | measure(python)))


if __name__ == "__main__":
    main()
