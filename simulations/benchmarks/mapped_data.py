"""Memory of a job whose examples are a mapped file: in one process, in two, and on Ray.

    python -m simulations.benchmarks.mapped_data --gigabytes 2 --engines 1,2,ray

A file of random bytes, 4,096 an example and 10 examples a client; ``--rounds`` rounds of
``--clients`` clients, protocol ideal, without noise, in a fresh process for each engine. Every
client of the file is evaluated once, too, so that all of its pages are read.

Memory is read five times a second, of the job's process and all below it. What counts is the
proportional set size (PSS): a page that k processes have mapped counts 1/k in each, so the sum is
what the machine holds. Resident sizes (RSS) count such a page k times, and would show the file
once more for each process, which nobody has to buy memory for. ``own`` is the part that is no file
(anonymous and shared memory), which would be swapped if memory were short; the rest are pages of
the examples' file and of programs, which the system drops and reads again.

Each engine is measured with a small file, too. What it takes then (interpreters with torch in them,
and Ray's own processes) no file causes; by how many bytes its peak grows with each byte of the file
is the rest, and 1 where the file is in memory once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsys.tasks import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.classification import Classification, Rescale
from simulations.benchmarks.machine import machine, measured_on
from simulations.benchmarks.peers.clock import below, peaks_of

__all__ = ["Mapped", "main", "measure", "memory_of", "table"]

_ROOT = Path(__file__).parents[2]
_WIDTH, _EACH, _CLASSES = 4096, 10, 10
_SMALL = 0.02


class Mapped(Classification):
    """Ten classes of rows of 4,096 bytes in a file that is mapped, never read into memory."""

    name = "mapped"
    preprocessing = "fixed"

    def __init__(self, path: str) -> None:
        self._path = path

    def init_model(self, seed: int) -> nn.Module:
        """A linear map of bytes (40,970 parameters)."""
        with seeded(seed):
            return nn.Sequential(Rescale(127.5, 73.9), nn.Linear(_WIDTH, _CLASSES))

    def clients(self, source: DataSource) -> FederatedData:
        """The file's rows."""
        rows = np.memmap(self._path, np.uint8, "r").reshape(-1, _WIDTH)
        labels = torch.arange(len(rows)) % _CLASSES
        train = Examples(x=rows, y=labels)
        return FederatedData(train=train, test=train)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = _parser().parse_args(arguments)
    if options.turn:
        _turn(options.turn, options)
        return
    result = measure(options.engines.split(","), options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "mapped_data.json").write_text(json.dumps(result, indent=1))
    print(table(result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the file")
    parser.add_argument("--engines", default="1,2,ray", help="numbers of processes, and ray")
    parser.add_argument("--actors", type=int, default=2, help="of Ray")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, default=200, help="clients a round")
    parser.add_argument("--out", type=Path, default=Path("build"))
    parser.add_argument("--turn", default="", help=argparse.SUPPRESS)
    parser.add_argument("--file", default="", help=argparse.SUPPRESS)
    return parser


def measure(engines: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure all engines over one file."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file, small = Path(folder) / "examples.bin", Path(folder) / "small.bin"
        rows, few = _written(file, options.gigabytes), _written(small, _SMALL)
        for engine in engines:
            found[engine] = _measured(engine, file, options)
            found[engine]["small"] = _measured(engine, small, options)["pss"]
            # One line an engine, so that nothing measured is lost if the rest is cut short.
            print(engine, found[engine], file=sys.stderr, flush=True)
    return {
        "engines": found,
        "bytes": rows * _WIDTH,
        "small": few * _WIDTH,
        "clients": options.clients,
        "rounds": options.rounds,
        "machine": machine(),
        "command": " ".join(["python -m simulations.benchmarks.mapped_data", *sys.argv[1:]]),
    }


def _written(file: Path, gigabytes: float) -> int:
    """Write rows of random bytes; their number."""
    rows = int(gigabytes * 1e9) // (_WIDTH * _EACH) * _EACH
    rng, left = np.random.default_rng(0), rows
    with file.open("wb") as out:
        while left:
            some = min(left, 1 << 14)
            out.write(rng.bytes(some * _WIDTH))
            left -= some
    return rows


def _measured(engine: str, file: Path, options: argparse.Namespace) -> dict[str, float]:
    """The peaks of one engine, in a process whose memory is read from here."""
    command = [sys.executable, "-m", "simulations.benchmarks.mapped_data", "--turn", engine]
    command += ["--file", str(file)]
    for name in ("actors", "rounds", "clients"):
        command += [f"--{name}", str(getattr(options, name))]
    return peaks_of(
        command, memory_of, environment={"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    )[0]


def memory_of(root: int) -> dict[str, float]:
    """Bytes of a process and its descendants: ``pss``, the part of it that is no file (``own``),
    ``rss``; and the number of processes."""
    sums = dict.fromkeys(("Pss", "Pss_Anon", "Pss_Shmem", "Rss"), 0)
    tree = below(root)
    for pid in tree:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        for line in lines:
            name, _, rest = line.partition(":")
            if name in sums:
                sums[name] += int(rest.split()[0]) * 1024
    return {
        "pss": float(sums["Pss"]),
        "own": float(sums["Pss_Anon"] + sums["Pss_Shmem"]),
        "rss": float(sums["Rss"]),
        "processes": float(len(tree)),
    }


def _turn(engine: str, options: argparse.Namespace) -> None:
    """Run the job."""
    from fedsys import config
    from simulations import harness

    backend = (
        ["engine.backend=ray", f"engine.processes={options.actors}"]
        if engine == "ray"
        else [f"engine.processes={engine}"]
    )
    job = config.load(
        None,
        [
            "task.name=simulations.benchmarks.mapped_data:Mapped",
            "population.partition=iid",
            f"population.clients={os.path.getsize(options.file) // (_WIDTH * _EACH)}",
            f"cohort.expected={options.clients}",
            "cohort.sampling=fixed",
            f"rounds.count={options.rounds}",
            "privacy.mechanism=none",
            "aggregation.protocol=ideal",
            f"evaluation.every={options.rounds}",
            *backend,
        ],
        {"task.options": {"path": options.file}},
    )
    with tempfile.TemporaryDirectory() as folder:
        harness.run(job, out=Path(folder) / "run")


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown, in megabytes, with each engine's peak over the first one's."""
    lines = [
        f"a file of {result['bytes'] / 1e6:,.0f} MB, {result['rounds']} rounds of "
        f"{result['clients']} clients",
        "",
        "| engine | processes | peak PSS MB | to the first "
        f"| with {result['small'] / 1e6:.0f} MB | grows by | of it no file | sum of RSS MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    first = next(iter(result["engines"].values()))["pss"]
    more = result["bytes"] - result["small"]
    for engine, peaks in result["engines"].items():
        lines.append(
            f"| {engine} | {peaks['processes']:.0f} | {peaks['pss'] / 1e6:,.0f} | "
            f"{peaks['pss'] / first:.2f} | {peaks['small'] / 1e6:,.0f} | "
            f"{(peaks['pss'] - peaks['small']) / more:.2f} | {peaks['own'] / 1e6:,.0f} | "
            f"{peaks['rss'] / 1e6:,.0f} |"
        )
    return "\n".join([*lines, "", measured_on(result)])


if __name__ == "__main__":
    main()
