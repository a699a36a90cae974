"""A round of a large model: seconds, CPU and memory under each protocol.

    python -m simulations.benchmarks.large_model --protocols float,ideal,secure --turns 3

A perceptron 784-h-10 of about ``--dimension`` parameters, ``--clients`` of a thousand virtual
clients a round, each with 50 examples in batches of 10; noise of multiplier 1. Whole jobs with
ledger and checkpoints, as users run them. Protocols take turns (A B C A B C ...), each turn in a
fresh process; a turn's first round, which includes set-up, is left out.

Seconds are those by the clock, so they mean something on a quiet machine only. CPU seconds and
memory are those of all processes of a job together; memory is the largest proportional set size
that is seen in five readings a second, of the whole job, set-up included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from simulations.benchmarks.machine import machine, measured_on
from simulations.benchmarks.peers.clock import process_tree

__all__ = ["main", "measure", "table"]

PROTOCOLS = ("float", "ideal", "secure")
_ROOT = Path(__file__).parents[2]
_PER_UNIT = 795  # parameters of a unit of the perceptron 784-h-10, which has 10 more
_PAUSE = 0.2
_TIMEOUT = 1800


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = _parser().parse_args(arguments)
    if options.turn:
        _turn(options.turn, options)
        return
    protocols = options.protocols.split(",")
    if unknown := sorted(set(protocols) - set(PROTOCOLS)):
        raise SystemExit(
            f"--protocols: unknown {', '.join(unknown)}; there are {', '.join(PROTOCOLS)}"
        )
    if options.rounds < 2:
        raise SystemExit(f"--rounds {options.rounds}: the first is not counted; use 2 or more")
    result = measure(protocols, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "large_model.json").write_text(json.dumps(result, indent=1))
    print(table(result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--protocols", default=",".join(PROTOCOLS))
    parser.add_argument("--dimension", type=int, default=12_000_000, help="parameters, about")
    parser.add_argument("--clients", type=int, default=20, help="clients a round")
    parser.add_argument("--rounds", type=int, default=4, help="rounds a turn, the first included")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processes", type=int, default=0, help="of the engine; 0 lets it choose")
    parser.add_argument("--out", type=Path, default=Path("build"))
    parser.add_argument("--turn", default="", help=argparse.SUPPRESS)
    return parser


def measure(protocols: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure all turns of all protocols."""
    found: dict[str, list[dict[str, Any]]] = {protocol: [] for protocol in protocols}
    for _ in range(options.turns):
        for protocol in protocols:
            turn = _measured(protocol, options)
            found[protocol].append(turn)
            # One line a turn, so that nothing measured is lost if the run is cut short.
            print(
                f"{protocol}: {statistics.median(turn['seconds']):.3g} s a round, "
                f"{statistics.median(turn['cpu']):.3g} CPU s, peak {turn['peak_mb']:.0f} MB",
                file=sys.stderr,
                flush=True,
            )
    return {
        "protocols": found,
        "dimension": options.dimension // _PER_UNIT * _PER_UNIT + 10,
        "clients": options.clients,
        "machine": machine(),
        "command": " ".join(["python -m simulations.benchmarks.large_model", *sys.argv[1:]]),
    }


def _measured(protocol: str, options: argparse.Namespace) -> dict[str, Any]:
    """One turn in a process of its own, whose memory is read from here."""
    command = [sys.executable, "-m", "simulations.benchmarks.large_model", "--turn", protocol]
    for name in ("dimension", "clients", "rounds", "processes"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    peak, began = 0, time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=errors, text=True)
        try:
            while process.poll() is None:
                peak = max(peak, process_tree(process.pid)[1])
                if time.monotonic() - began > _TIMEOUT:
                    raise SystemExit(f"{protocol}: no result after {_TIMEOUT} s")
                time.sleep(_PAUSE)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read()[-4000:]}")
        turn: dict[str, Any] = json.loads(out.read().splitlines()[-1])
    return {**turn, "peak_mb": peak / 1e6}


def _turn(protocol: str, options: argparse.Namespace) -> None:
    """Run a job and print each later round's seconds and CPU seconds."""
    from fedsys import config
    from simulations import harness

    job = config.load(
        "w5",
        [
            f"task.options.hidden={max(1, options.dimension // _PER_UNIT)}",
            "population.clients=1000",
            f"cohort.expected={options.clients}",
            "cohort.sampling=fixed",
            f"rounds.count={options.rounds}",
            f"aggregation.protocol={protocol}",
            "aggregation.dropout=0.03",
            "evaluation.data=none",
            f"engine.processes={options.processes}",
        ],
    )
    seconds: list[float] = []
    cpu: list[float] = []

    def note(event: object) -> None:
        if not isinstance(event, str):
            seconds.append(time.perf_counter())
            cpu.append(process_tree(os.getpid())[0])

    with tempfile.TemporaryDirectory() as folder:
        run = harness.run(job, out=Path(folder) / "run", observer=note)
        engine = config.load(run.folder / "config.toml").engine
    print(
        json.dumps(
            {
                "seconds": [end - start for start, end in pairwise(seconds)],
                "cpu": [end - start for start, end in pairwise(cpu)],
                "engine": engine.model_dump(),
            }
        )
    )


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown: medians over the rounds of all turns, and the largest peak."""
    lines = [
        f"{result['dimension']:,} parameters, {result['clients']} clients a round",
        "",
        "| protocol | s a round | turns | CPU s a round | processes | clients at once | peak MB |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for protocol, turns in result["protocols"].items():
        seconds = [each for turn in turns for each in turn["seconds"]]
        cpu = [each for turn in turns for each in turn["cpu"]]
        engine = turns[-1]["engine"]
        shown = " ".join(f"{statistics.median(turn['seconds']):.3g}" for turn in turns)
        lines.append(
            f"| `{protocol}` | {statistics.median(seconds):.3g} | {shown} | "
            f"{statistics.median(cpu):.3g} | {engine['processes']} | {engine['chunk']} | "
            f"{max(turn['peak_mb'] for turn in turns):.0f} |"
        )
    return "\n".join([*lines, "", measured_on(result)])


if __name__ == "__main__":
    main()
