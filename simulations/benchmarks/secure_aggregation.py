"""Secure aggregation, timed: ours, Flower's SecAgg+ as installed, and what the machine allows.

    python -m simulations.benchmarks.secure_aggregation [--quick] [--parts A,B] [--json FILE]

Alongside Flower both sides run the same n, d and dropouts on one core of the same process,
alternating (A B A B ...), and medians of CPU time are compared, so that a busy machine changes
little. Flower's stage functions are called directly, without its messages, processes or state
files: what is left is the cryptography, with 50 neighbours a client where its upload is timed and
20 in a whole round. Ours has a committee of everybody up to 100 members, hashes and verifies
everything, and takes a malicious server for granted; Flower's has no signatures. Where flwr is not
installed only ours is timed.

Parts: ``bounds`` what the machine allows, ``flower`` rows alongside Flower's, ``whole`` rounds of
all parties with their memory, each in a process of its own, ``devices`` bytes and milliseconds of
one device for cohorts of all sizes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from secure_agg import SecAggParams
from secure_agg.masking import Accumulator
from simulations.benchmarks import flower_secagg
from simulations.benchmarks.machine import one_core, quiet
from simulations.benchmarks.secagg_parties import Device, device, peak_mb, play, timed

__all__ = ["PARTS", "Bound", "Row", "Whole", "main"]

PARTS = ("bounds", "flower", "whole", "devices")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: medians in CPU seconds, and how many times faster ours is."""

    name: str
    setting: str
    ours: float
    flower: float | None
    aim: float | None = None

    @property
    def ratio(self) -> float | None:
        """Flower's time over ours."""
        return None if self.flower is None else self.flower / self.ours


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What the machine allows, and how near we come."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A round of all parties in one process: CPU seconds and memory in MiB, with their aims."""

    n: int
    dimension: int
    modulus_bits: int
    committee: int
    upload_bytes: int
    seconds: float
    server_seconds: float
    peak_mb: float
    idle_mb: float
    aim_seconds: float | None = None


def params_of(n: int, dimension: int, bits: int = 32) -> SecAggParams:
    """A tenth corrupt and a tenth lost."""
    return SecAggParams.derive(
        n=n, corrupt=0.1, dropout=0.1, modulus_bits=bits, dimension=dimension
    )


def alternate(
    ours: Callable[[], float], theirs: Callable[[], float] | None, repeats: int
) -> tuple[float, float | None]:
    """Run A B A B ...; return the two medians."""
    a, b = [], []
    for _ in range(repeats):
        a.append(ours())
        if theirs is not None:
            b.append(theirs())
    return statistics.median(a), statistics.median(b) if b else None


# -- what the machine allows -----------------------------------------------------------------------


def bounds(dimension: int, repeats: int) -> list[Bound]:
    """Hashing and adding an upload against SHA-256 and a copy of memory alone."""
    params = params_of(100, dimension)
    ciphertext = os.urandom(params.ciphertext_bytes)
    total, target = Accumulator(params), bytearray(len(ciphertext))
    total.add(ciphertext)  # touch the memory
    found: dict[str, list[float]] = {"sha256": [], "copy": [], "add": []}

    def copy() -> None:
        target[:] = ciphertext

    for _ in range(3 * repeats):
        found["sha256"].append(timed(lambda: hashlib.sha256(ciphertext)))
        found["copy"].append(timed(copy))
        found["add"].append(timed(lambda: total.add(ciphertext)))
    size = len(ciphertext)
    rates = {name: size / statistics.median(values) / 1e9 for name, values in found.items()}
    at = f"d={dimension}, b=32"
    return [
        Bound(name="SHA-256 alone", value=rates["sha256"], unit="GB/s"),
        Bound(name="memory, copy", value=rates["copy"], unit="GB/s"),
        Bound(name=f"server, adding a ciphertext, {at}", value=rates["add"], unit="GB/s"),
        Bound(
            name=f"server, adding a ciphertext, {at}",
            value=1e3 * statistics.median(found["add"]),
            unit="ms",
        ),
    ]


# -- alongside Flower
# ---------------------------------------------------------------------------------


def upload_row(
    n: int, dimension: int, degree: int, repeats: int, *, with_flower: bool, aim: float
) -> Row:
    """A client's step from its trained vector to what it sends."""
    params = params_of(n, dimension)
    theirs = flower_secagg.Upload(degree, dimension).run if with_flower else None
    a, b = alternate(lambda: play(params).upload, theirs, repeats)
    return Row(
        name="client, upload step",
        setting=f"d={dimension}, C={n}, k={degree}",
        ours=a,
        flower=b,
        aim=aim,
    )


def round_rows(
    n: int, dimension: int, degree: int, lost: int, repeats: int, *, with_flower: bool
) -> list[Row]:
    """A whole round: the server alone, one client alone, all parties in one process."""
    params, gone = params_of(n, dimension), frozenset(range(lost))
    ours: dict[str, list[float]] = {"server": [], "entry": [], "client": [], "all": []}
    theirs: dict[str, list[float]] = {"server": [], "client": [], "all": []}
    for _ in range(repeats):
        played = play(params, gone)
        ours["server"].append(played.server)
        ours["entry"].append(played.entry)
        ours["client"].append(played.device)
        ours["all"].append(played.everybody)
        if with_flower:
            other = flower_secagg.whole_round(n, dimension, degree, gone)
            for part, values in theirs.items():
                values.append(other[part])
    names = {
        "server": ("server, whole round", 80.0),
        "entry": ("client, check before training", None),
        "client": ("client on the committee, all", None),
        "all": ("all parties, one process", None),
    }
    return [
        Row(
            name=names[part][0],
            setting=f"n={n}, d={dimension}, k={degree}, {lost} lost",
            ours=statistics.median(values),
            flower=statistics.median(theirs[part]) if theirs.get(part) else None,
            aim=names[part][1],
        )
        for part, values in ours.items()
    ]


# -- whole rounds ----------------------------------------------------------------------------------


def whole(n: int, dimension: int, bits: int) -> Whole:
    """A round of all parties in this process, a twentieth lost."""
    params, idle = params_of(n, dimension, bits), peak_mb()
    played = play(params, frozenset(range(n // 20)), apart=False)
    return Whole(
        n=n,
        dimension=dimension,
        modulus_bits=bits,
        committee=params.committee,
        upload_bytes=params.upload_bytes,
        seconds=round(played.everybody, 3),
        server_seconds=round(played.server, 3),
        peak_mb=round(peak_mb(), 1),
        idle_mb=round(idle, 1),
    )


def whole_apart(n: int, dimension: int, bits: int, aim: float | None, repeats: int) -> Whole:
    """The same, each in a process of its own, whose memory is then that round's alone: the median
    by CPU time of an odd number of them, the slower of the middle two of an even one."""
    runs = sorted((_whole_apart(n, dimension, bits) for _ in range(repeats)), key=_seconds)
    return replace(runs[repeats // 2], aim_seconds=aim)


def _seconds(run: Whole) -> float:
    return run.seconds


def _whole_apart(n: int, dimension: int, bits: int) -> Whole:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "simulations.benchmarks.secure_aggregation",
            "--whole",
            f"{n},{dimension},{bits}",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    return Whole(**json.loads(done.stdout))


# -- everything ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured; `QUICK` is to see that it runs, and no figures to quote."""

    dimension: int
    uploads: tuple[tuple[int, float], ...]
    members: int
    degree: int
    round: tuple[int, int, int, int]
    whole: tuple[tuple[int, int, int, float], ...]
    cohorts: tuple[int, ...]
    device: tuple[int, int]


FULL = Sizes(
    dimension=1_000_000,
    uploads=((1_000_000, 7.0), (100_000, 6.0)),
    members=100,
    degree=50,
    round=(100, 100_000, 20, 10),
    whole=((300, 1_000_000, 20, 7.0), (1000, 100_000, 32, 10.0)),
    cohorts=(10, 30, 100, 300, 1000, 3000, 10_000),
    device=(100_000, 20),
)
QUICK = Sizes(
    dimension=100_000,
    uploads=((20_000, 6.0),),
    members=12,
    degree=10,
    round=(12, 20_000, 10, 2),
    whole=((20, 10_000, 20, 7.0),),
    cohorts=(10, 120),
    device=(10_000, 20),
)


def measure(
    sizes: Sizes, parts: Sequence[str], *, with_flower: bool, repeats: int
) -> dict[str, list[Any]]:
    """Measure the parts that are asked for; lists of `Bound`, `Row`, `Whole`, `Device` by part."""
    found: dict[str, list[Any]] = {}
    if "bounds" in parts:
        found["bounds"] = list(bounds(sizes.dimension, repeats))
    if "flower" in parts:
        rows = [
            upload_row(
                sizes.members, dimension, sizes.degree, repeats, with_flower=with_flower, aim=aim
            )
            for dimension, aim in sizes.uploads
        ]
        n, dimension, degree, lost = sizes.round
        rows += round_rows(n, dimension, degree, lost, repeats, with_flower=with_flower)
        found["flower"] = rows
    if "whole" in parts:
        found["whole"] = [whole_apart(*each, repeats) for each in sizes.whole]
    if "devices" in parts:
        found["devices"] = [device(n, *sizes.device) for n in sizes.cohorts]
    return found


def table(found: dict[str, list[Any]], sizes: Sizes) -> str:
    """Everything as text."""
    lines = [
        f"{bound.name:<58} {bound.value:>10.3f} {bound.unit}" for bound in found.get("bounds", [])
    ]
    if "flower" in found:
        lines += ["", f"{'':<30} {'':<38} {'ours':>11} {'Flower':>11} {'ratio':>8} {'aim':>6}"]
    for row in found.get("flower", []):
        flower = "-" if row.flower is None else f"{1e3 * row.flower:.2f} ms"
        ratio = "-" if row.ratio is None else f"{row.ratio:.1f}x"
        aim = "" if row.aim is None else f"{row.aim:.0f}x"
        ours = f"{1e3 * row.ours:>8.2f} ms"
        lines.append(f"{row.name:<30} {row.setting:<38} {ours} {flower:>11} {ratio:>8} {aim:>6}")
    for each in found.get("whole", []):
        lines += [
            "",
            f"all parties, n={each.n} d={each.dimension} b={each.modulus_bits} C={each.committee}: "
            f"{each.seconds:.2f} s CPU (aim {each.aim_seconds:g}), server {each.server_seconds:.2f}"
            f" s, {each.peak_mb:.0f} MiB at most, {each.idle_mb:.0f} of them before the round; "
            f"an upload of {each.upload_bytes / 1e3:.0f} kB",
        ]
    if "devices" in found:
        d, bits = sizes.device
        lines += ["", f"one device, d={d}, b={bits}", *_devices(found["devices"])]
    return "\n".join(lines)


def _devices(devices: Sequence[Device]) -> list[str]:
    head = ("n", "C", "entry ms", "upload ms", "kB up", "kB down", "duties ms", "kB up", "kB down")
    rows = [
        (
            f"{each.n:,}",
            str(each.committee),
            f"{each.entry_ms:.1f}",
            f"{each.upload_ms:.1f}",
            f"{each.upload_bytes / 1e3:.1f}",
            f"{each.opening_bytes / 1e3:.1f}",
            f"{each.duties_ms:.1f}",
            f"{each.duties_sent / 1e3:.1f}",
            f"{each.duties_received / 1e3:.1f}",
        )
        for each in devices
    ]
    return [" ".join(f"{cell:>10}" for cell in row) for row in (head, *rows)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=3, help="alternations (default 3)")
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--whole", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}: at least 1 is needed")
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts is {options.parts}: known are {', '.join(PARTS)}")
    if options.whole:
        n, dimension, bits = map(int, options.whole.split(","))
        with one_core():
            print(json.dumps(asdict(whole(n, dimension, bits))))
        return 0
    version = flower_secagg.version()
    if version is None and "flower" in parts:
        print("flwr is not installed: only ours is timed", file=sys.stderr)
    sizes = QUICK if options.quick else FULL
    with one_core(), quiet():
        found = measure(sizes, parts, with_flower=version is not None, repeats=options.repeats)
    print(table(found, sizes))
    if options.json is not None:
        record = {
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "flwr": version,
            "cores": 1,
            "repeats": options.repeats,
            **{part: [asdict(each) for each in values] for part, values in found.items()},
        }
        for row, body in zip(found.get("flower", []), record.get("flower", []), strict=True):
            body["ratio"] = row.ratio
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
