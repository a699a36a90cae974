"""An agent's footprint on a device: disk, and memory while it waits and while it trains.

    python -m simulations.benchmarks.agent_footprint --venv build/agent graph torch flower

``graph`` installs this checkout into an environment of its own, with what `requirements-agent.lock`
names, and runs three agents in it that train from a graph. ``torch`` runs three agents with the
task's code, and ``flower`` a SuperNode, in this environment. The coordinator is in this environment
in all cases. Memory is resident, shared pages included; "own" is what no other process shares.
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
from collections.abc import Iterable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

__all__ = ["installed", "measure"]

_ROOT = Path(__file__).resolve().parents[2]
_JOB = Path(__file__).with_suffix(".toml")
_SILOS = 3
_PATIENCE = 300.0
_OF_PIP = ("pip", "setuptools", "pkg_resources", "_distutils_hack")


def install(venv: Path) -> None:
    """Create an environment with an agent and nothing else, from this checkout."""
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    lock = (_ROOT / "requirements-agent.lock").read_text("utf-8")
    named = [line.split(" ")[0] for line in lock.splitlines() if "==" in line]
    versions = venv / "versions.txt"
    versions.write_text("\n".join(named), encoding="utf-8")
    pip: list[str | Path] = [venv / "bin" / "python", "-m", "pip", "--quiet", "install"]
    subprocess.run([*pip, "--constraint", versions, _ROOT], check=True)


def measure(python: Path, folder: Path, *, graph: bool) -> dict[str, Any]:
    """Memory of three agents that run under this interpreter.

    Args:
        python: the agents' interpreter.
        folder: an empty folder.
        graph: whether they train from a graph; otherwise from the task's code.

    Returns:
        MB of resident memory once connected and after a job, and at most of the process that
        trains from a graph; threads and descriptors; seconds for one agent to join, and until all
        were connected.
    """
    here = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    here["FEDSYS_HOME"] = str(folder / "home")
    there = {**here, "OPENBLAS_NUM_THREADS": "1"}
    if graph:
        there.pop("PYTHONPATH")
    with ExitStack() as stack:

        def run(*words: str) -> str:
            return _output([sys.executable, "-m", "fedsys", *words], here, folder)

        def start(name: str, command: Iterable[str | Path], env: dict[str, str]) -> psutil.Process:
            with (folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    list(command), cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return psutil.Process(process.pid)

        sources = _graph(folder) if graph else []
        run("coordinator", "init", "hq", "--host", "127.0.0.1")
        serve = [sys.executable, "-m", "fedsys", "coordinator", "run", "hq"]
        start("hq", [*serve, "--listen", "127.0.0.1:0"], here)
        address = _found(r"listening on (\S+)", folder / "hq.log")
        agents, began = [], time.monotonic()
        for number in range(_SILOS):
            token = run("coordinator", "enroll", "hq", f"n{number}", "--quiet")
            join: list[str | Path] = [
                python,
                "-m",
                "fedsys",
                "agent",
                "join",
                address,
                "--token",
                token,
            ]
            _output([*join, f"a{number}"], there, folder)
        joined = time.monotonic()
        for number in range(_SILOS):
            words = ["--data", "digits", "--shard", f"{number}/{_SILOS}"]
            if graph:
                words = ["--graph", "digits.graph", "--data", sources[number]]
            command: list[str | Path] = [
                python,
                "-m",
                "fedsys",
                "agent",
                "run",
                f"a{number}",
                "--corrupt",
                "0",
            ]
            agents.append(start(f"a{number}", [*command, *words], there))
        for number in range(_SILOS):
            _found(r"(connected to)", folder / f"a{number}.log")
        connected = time.monotonic()
        time.sleep(2.0)
        waiting = [agent.memory_full_info() for agent in agents]
        setting = ["--set", f"task.graph_sha256={_sha256(folder)}"] if graph else []
        job = run("job", "submit", "hq", str(_JOB), "--quiet", *setting)
        run("job", "watch", "hq", job)
        after = [agent.memory_info().rss for agent in agents]
        logs = [(folder / f"a{number}.log").read_text() for number in range(_SILOS)]
        children = [int(each) for log in logs for each in re.findall(r"\((\d+) MB resident", log)]
        return {
            "join_seconds": round((joined - began) / _SILOS, 1),
            "connect_seconds": round(connected - joined, 1),
            "waiting_mb": round(max(each.rss for each in waiting) / 1e6, 1),
            "waiting_own_mb": round(max(each.uss for each in waiting) / 1e6, 1),
            "after_a_job_mb": round(max(after) / 1e6, 1),
            "training_process_mb": max(children, default=None),
            "threads": agents[0].num_threads(),
            "descriptors": agents[0].num_fds(),
        }


def _graph(folder: Path) -> list[str]:
    """Write the digits' graph and thirds of their examples; returns the latter's paths."""
    import numpy as np

    from fedsys import tasks
    from fedsys.tasks.export import export_task

    task = tasks.load("digits")
    examples = task.clients(tasks.DataSource()).train
    made = export_task(task, examples, name="digits", options={}, batch_size=32)
    (folder / "digits.graph").write_bytes(made.encoded)
    paths = [folder / f"part{number}.npz" for number in range(_SILOS)]
    for number, path in enumerate(paths):
        rows = slice(number, None, _SILOS)
        np.savez(path, x=examples.x[rows].numpy(), y=examples.y[rows].numpy())
    return [str(path) for path in paths]


def _sha256(folder: Path) -> str:
    import hashlib

    return hashlib.sha256((folder / "digits.graph").read_bytes()).hexdigest()


def _output(command: Iterable[str | Path], environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        list(command), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.stderr or done.stdout}")
    return done.stdout.strip()


def installed(venv: Path, *, largest: int = 6) -> dict[str, Any]:
    """MB on disk of what pip installed, with byte code; with pip; of the largest packages."""
    (packages,) = (venv / "lib").glob("python3*/site-packages")
    sizes = {each.name: _bytes(each) for each in packages.iterdir()}
    of_pip = sum(size for name, size in sizes.items() if name.startswith(_OF_PIP))
    top = sorted(sizes, key=lambda name: -sizes[name])[:largest]
    return {
        "installed_mb": round((_bytes(venv) - of_pip) / 1e6),
        "with_pip_mb": round(_bytes(venv) / 1e6),
        "largest_mb": {name: round(sizes[name] / 1e6) for name in top},
    }


def closure(name: str) -> dict[str, Any]:
    """MB on disk, here, of a distribution and all that it requires; `packages` counts them."""
    from packaging.requirements import Requirement

    found: dict[str, int] = {}
    waiting = [Requirement(name)]
    while waiting:
        wanted = waiting.pop()
        key = f"{wanted.name.lower()}[{','.join(sorted(wanted.extras))}]"
        if key in found:
            continue
        distribution = metadata.distribution(wanted.name)
        places = [Path(str(each.locate())) for each in distribution.files or ()]
        counted = any(each.partition("[")[0] == wanted.name.lower() for each in found)
        sizes = [place.stat().st_size for place in places if place.is_file()]
        found[key] = 0 if counted else sum(sizes)
        for text in distribution.requires or ():
            further = Requirement(text)
            for extra in ("", *wanted.extras):
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    waiting.append(further)
                    break
    return {
        "installed_mb": round(sum(found.values()) / 1e6),
        "packages": len({each.partition("[")[0] for each in found}),
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


def _flower() -> dict[str, Any]:
    from simulations.benchmarks.flower_superlink import measure as run

    found = run(1, stages=1, megabytes=[])
    return closure("flwr") | {"after_a_job_mb": found["rss_of_an_agent_mb"]}


def main() -> None:
    """Print one JSON line for each kind of agent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("kinds", nargs="*", default=["graph"], help="graph, torch, flower")
    parser.add_argument("--venv", type=Path, default=Path("build/agent"))
    given = parser.parse_args()
    for kind in given.kinds:
        with tempfile.TemporaryDirectory() as folder:
            if kind == "flower":
                found = _flower()
            elif kind == "torch":
                found = measure(Path(sys.executable), Path(folder), graph=False)
                found |= closure("fedsys[train]")
            else:
                if not (given.venv / "bin" / "fedsys").exists():
                    install(given.venv)
                python = (given.venv / "bin").resolve() / "python"
                found = installed(given.venv) | measure(python, Path(folder), graph=True)
        print(json.dumps({"agent": kind} | found), flush=True)


if __name__ == "__main__":
    main()
