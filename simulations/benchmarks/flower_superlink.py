"""Cost of flwr 1.42's transport: a SuperLink and SuperNodes on the loopback, without TLS.

    python -m simulations.benchmarks.flower_superlink --agents 3 20 --megabytes 10

Needs the extra `flower`. A SuperNode starts a process for every message, which dominates the
figures on few cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

__all__ = ["measure"]

_BIN = Path(sys.executable).parent
_PROJECT = """\
[project]
name = "stages"
version = "0.1.0"
description = "times Flower's wire"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedsys"

[tool.flwr.app.components]
serverapp = "flower_stage_app:server_app"
clientapp = "flower_stage_app:client_app"

[tool.flwr.app.config]
agents = 0
stages = 0
megabytes = ""
out = ""
"""


def measure(
    agents: int, *, stages: int, megabytes: list[int], seconds: float = 900.0
) -> dict[str, Any]:
    """Figures with this many SuperNodes.

    Args:
        agents: Number of SuperNodes.
        stages: Empty stages to time, after a warm-up.
        megabytes: Sizes of models to send down to, and up from, the first node.
        seconds: Time after which the run counts as failed.

    Returns:
        The figures of `simulations.benchmarks.wire.measure` that apply.

    Raises:
        RuntimeError: The run failed; the message is the end of the SuperLink's log.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        app, out = root / "app", root / "found.json"
        app.mkdir()
        (app / "pyproject.toml").write_text(_PROJECT, encoding="utf-8")
        shutil.copy(Path(__file__).with_name("flower_stage_app.py"), app)
        port = _free_port()
        environment = _environment(root, port)
        started = time.monotonic()
        processes = [
            stack.enter_context(
                _running(
                    *("flower-superlink", "--insecure", "--host", "127.0.0.1"),
                    *("--port", str(port), "--disable-runtime-dependency-installation"),
                    environment=environment,
                    log=root / "superlink.log",
                )
            )
        ]
        while not _listens(port):
            if time.monotonic() - started > 120:
                raise RuntimeError((root / "superlink.log").read_text()[-2000:])
            time.sleep(0.1)
        processes += [
            stack.enter_context(
                _running(
                    *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"),
                    *("--port", str(_free_port())),
                    environment=environment,
                    log=root / f"supernode-{number}.log",
                )
            )
            for number in range(agents)
        ]
        sizes = ",".join(map(str, megabytes))
        settings = f'agents={agents} stages={stages} megabytes="{sizes}" out="{out}"'
        asked = subprocess.run(
            [_BIN / "flwr", "run", app, "lo", "--run-config", settings],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if asked.returncode != 0:
            raise RuntimeError(asked.stdout + asked.stderr)
        return _await(out, processes, root / "superlink.log", seconds)


def _await(out: Path, processes: list[psutil.Process], log: Path, seconds: float) -> dict[str, Any]:
    most, ends = 0, time.monotonic() + seconds
    while not out.exists():
        if time.monotonic() > ends:
            raise RuntimeError(log.read_text()[-3000:])
        most = max(most, sum(map(_memory, processes)))
        time.sleep(0.5)
    found: dict[str, Any] = {
        key: round(value, 3) for key, value in json.loads(out.read_text("utf-8")).items()
    }
    found["agents"] = int(found["agents"])
    found["rss_mb"] = round(processes[0].memory_info().rss / 1e6, 1)
    found["rss_of_an_agent_mb"] = round(processes[1].memory_info().rss / 1e6, 1)
    found["rss_of_all_at_most_mb"] = round(most / 1e6, 1)
    return found


def _memory(process: psutil.Process) -> int:
    """Resident bytes of a process and its descendants."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.Error:
            continue
    return total


def _environment(root: Path, port: int) -> dict[str, str]:
    home = root / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "lo"\n\n[superlink.lo]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    return {
        **os.environ,
        "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def _running(
    program: str, *arguments: str, environment: dict[str, str], log: Path
) -> Iterator[psutil.Process]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [_BIN / program, *arguments],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:
            if child.is_running():
                child.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    """Print one JSON line for each number of SuperNodes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--agents", type=int, nargs="*", default=[3, 20])
    parser.add_argument("--megabytes", type=int, nargs="*", default=[10])
    parser.add_argument("--stages", type=int, default=5)
    given = parser.parse_args()
    for number in given.agents:
        sizes = given.megabytes if number == given.agents[0] else []
        print(json.dumps(measure(number, stages=given.stages, megabytes=sizes)), flush=True)


if __name__ == "__main__":
    main()
