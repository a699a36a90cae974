"""A round of a large model: seconds, CPU and memory under each protocol, and of other simulators.

    python -m simulations.benchmarks.large_model --engines float,ideal,secure,pfl,flwr --turns 3

A perceptron 784-h-10 of about ``--dimension`` parameters, ``--clients`` of a thousand virtual
clients a round, each with 50 examples in batches of 10; noise of multiplier 1. Whole jobs with
ledger and checkpoints, as users run them. ``pfl`` and ``flwr`` are pfl-research and Flower with the
same model, weights, data, batches and rounds, in plain training without clipping, noise or ledger
(`simulations.benchmarks.clients_per_second` compares their updates with ours; here one client's
update is). Engines take turns (A B C A B C ...), each turn in a fresh process; the first round of a
turn, which includes set-up, is left out.

Seconds are those by the clock, so they mean something on a quiet machine only. CPU seconds and
memory are those of all processes of a job together; memory is the largest proportional set size
that is seen in five readings a second, of the whole job, set-up included (of a peer, from its start
to its last round).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulations.benchmarks.machine import machine, measured_on
from simulations.benchmarks.peers.clock import peaks_of, process_tree

if TYPE_CHECKING:
    from fedsys.config import Config

__all__ = ["main", "measure", "table"]

PROTOCOLS = ("float", "ideal", "secure")
PEERS = {"pfl": "pfl_rounds", "flwr": "flower_rounds"}
_ROOT = Path(__file__).parents[2]
_PER_UNIT = 795  # parameters of a unit of the perceptron 784-h-10, which has 10 more


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = _parser().parse_args(arguments)
    if options.turn:
        _turn(options.turn, options)
        return
    engines = options.engines.split(",")
    known = [*PROTOCOLS, *PEERS]
    if unknown := sorted(set(engines) - set(known)):
        raise SystemExit(f"--engines: unknown {', '.join(unknown)}; there are {', '.join(known)}")
    if set(engines) & set(PEERS) and not options.peers.exists():
        raise SystemExit(f"--peers {options.peers}: is not there; `make bench` installs it")
    if options.rounds < 2:
        raise SystemExit(f"--rounds {options.rounds}: the first is not counted; use 2 or more")
    result = measure(engines, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "large_model.json").write_text(json.dumps(result, indent=1))
    print(table(result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--engines",
        "--protocols",
        default=",".join(PROTOCOLS),
        help="protocols of fedsys, and pfl and flwr",
    )
    parser.add_argument("--dimension", type=int, default=12_000_000, help="parameters, about")
    parser.add_argument("--clients", type=int, default=20, help="clients a round")
    parser.add_argument("--rounds", type=int, default=4, help="rounds a turn, the first included")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processes", type=int, default=0, help="of the engine; 0 lets it choose")
    parser.add_argument("--peers", type=Path, default=_ROOT / ".venv-bench" / "bin" / "python")
    parser.add_argument("--out", type=Path, default=Path("build"))
    parser.add_argument("--turn", default="", help=argparse.SUPPRESS)
    return parser


def measure(engines: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure all turns of all engines."""
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    differs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if set(engines) & set(PEERS):
            _dealt(folder, options, everyone="flwr" in engines)
        for _ in range(options.turns):
            for engine in engines:
                if engine in PEERS:
                    turn = _measured_peer(engine, folder, options)
                else:
                    turn = _measured(engine, options)
                found[engine].append(turn)
                # One line a turn, so that nothing measured is lost if the run is cut short.
                print(
                    f"{engine}: {statistics.median(turn['seconds']):.3g} s a round, "
                    f"{statistics.median(turn['cpu']):.3g} CPU s, peak {turn['peak_mb']:.0f} MB",
                    file=sys.stderr,
                    flush=True,
                )
        if set(engines) & set(PEERS):
            differs = _differences(folder)
    return {
        "protocols": found,
        "differs": differs,
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
    environment = {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    peaks, printed = peaks_of(command, _memory, environment=environment)
    turn: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return {**turn, "peak_mb": peaks["memory"] / 1e6}


def _memory(pid: int) -> dict[str, float]:
    return {"memory": process_tree(pid)[1]}


def _dealt(folder: Path, options: argparse.Namespace, *, everyone: bool) -> None:
    """Write what the peers train, as files."""
    from simulations.benchmarks.peers.deal import deal

    deal(
        _job("float", options), folder, folder, rounds=options.rounds, everyone=everyone, checked=1
    )


def _measured_peer(peer: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One turn of another simulator, in its own environment."""
    from simulations.engine.layout import cores

    script = Path(__file__).parent / "peers" / f"{PEERS[peer]}.py"
    out = folder / f"{PEERS[peer]}.json"
    out.unlink(missing_ok=True)
    command = [str(options.peers), str(script), str(folder), str(options.rounds), str(out)]
    environment = {"PYTHONPATH": str(_ROOT), "FLWR_TELEMETRY_ENABLED": "0"}
    peaks, _ = peaks_of([*command, str(cores())], _memory, environment=environment, until=out)
    found = json.loads(out.read_text())
    # CPU seconds are read after some rounds only: the mean of those between two readings counts.
    between = [
        (last[1] - first[1]) / (last[0] - first[0]) for first, last in pairwise(found["cpu"])
    ]
    return {
        "seconds": found["seconds"][1:],
        "cpu": between,
        "peak_mb": peaks["memory"] / 1e6,
        "engine": {"processes": cores() if peer == "flwr" else 1, "chunk": 1},
    }


def _differences(folder: Path) -> dict[str, float]:
    """By peer, the largest difference of a client's update from the plain loop's in float64,
    relative to the update's largest entry."""
    from simulations.benchmarks.peers.work import Work, updates

    exact = updates(Work.read(folder), exact=True)
    scale = np.abs(exact).max()
    return {
        peer: float(np.abs(np.load(folder / f"{stem}.npy") - exact).max() / scale)
        for peer, stem in PEERS.items()
        if (folder / f"{stem}.npy").exists()
    }


def _job(protocol: str, options: argparse.Namespace) -> Config:
    from fedsys import config

    return config.load(
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


def _turn(protocol: str, options: argparse.Namespace) -> None:
    """Run a job and print each later round's seconds and CPU seconds."""
    from fedsys import config
    from simulations import harness

    job = _job(protocol, options)
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
        "| engine | s a round | turns | CPU s a round | processes | clients at once | peak MB |",
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
    lines += [
        "",
        *(
            f"A client's update in {peer} differs from the plain loop's in float64 by {by:.1e} of "
            f"its largest entry."
            for peer, by in result.get("differs", {}).items()
        ),
    ]
    return "\n".join([*lines, "", measured_on(result)])


if __name__ == "__main__":
    main()
