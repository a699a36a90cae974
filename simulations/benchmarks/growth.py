"""How cost grows: CPU seconds, memory and bytes against one size at a time, and fitted exponents.

    python -m simulations.benchmarks.growth --subjects simulation,audit,deployment

Every point is a fresh process with one worker. Sizes grow along one axis, over a decade or more,
and the others stay as they are: of a simulation under each protocol the population, the cohort, the
dimension d and the rounds; of an audit the same; of a deployment the connected agents, d and the
rounds. Seconds are CPU seconds of all processes, so that other work on the machine disturbs them
little: those of all rounds after the first where a simulation grows in anything but its rounds
(set-up is a cost of its own), otherwise those of the whole. Memory is the peak of the resident set,
of a deployment its coordinator's. Bytes are those of the run's folder; of a deployment,
those of its uploads.

A cost is fitted as a + b x^p; p is the exponent, found by least squares in relative error with a at
least 0, so that a fixed cost does not hide growth. Where the largest size costs no more than the
smallest could in another run (`NOISE`), it is 0. Exponents above 1.1 are marked. Points are kept in
the folder as they are measured: a run that was cut short goes on where it ended, and ``--minutes``
cuts it short in time for a table and a plot of what is there. A point that fails is named and left
out; the next run tries it again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["exponent", "main", "measure_point", "table"]

AXES: Mapping[str, Mapping[str, Sequence[int]]] = {
    "simulation": {
        "population": (1_000, 4_000, 16_000, 64_000),
        "cohort": (30, 100, 300, 1_000),
        "d": (25_450, 101_770, 407_050, 1_628_200),
        "rounds": (10, 40, 160, 640),
    },
    "audit": {
        "population": (1_000, 4_000, 16_000, 64_000),
        "cohort": (30, 100, 300, 1_000),
        "d": (6_370, 25_450, 101_770, 407_050),
        "rounds": (30, 100, 300, 1_000),
    },
    "deployment": {
        "agents": (10, 30, 100, 300),
        "d": (10_000, 100_000, 1_000_000),
        "rounds": (2, 6, 20),
    },
}
BASE: Mapping[str, Mapping[str, int]] = {
    "simulation": {"population": 2_000, "cohort": 100, "d": 25_450, "rounds": 6},
    "audit": {"population": 2_000, "cohort": 100, "d": 805, "rounds": 30},
    "deployment": {"agents": 30, "d": 100_000, "rounds": 3},
}
VARIANTS: Mapping[str, Sequence[str]] = {
    "simulation": ("float", "ideal", "secure"),
    "audit": ("ideal",),
    "deployment": ("secure",),
}
MEASURES = {"cpu_s": "CPU seconds", "peak_mb": "peak memory, MB", "kb": "kB"}
NOISE = {"cpu_s": 1.25, "peak_mb": 1.1, "kb": 1.05}
STEEP = 1.1
_PER_UNIT = 795  # parameters of a unit of the perceptron 784-h-10, which has 10 more
_TIMEOUT = 1800


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = _parser().parse_args(arguments)
    if options.point:
        print(json.dumps(measure_point(json.loads(options.point))))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    subjects = options.subjects.split(",")
    if unknown := sorted(set(subjects) - set(AXES)):
        raise SystemExit(f"--subjects: unknown {', '.join(unknown)}; there are {', '.join(AXES)}")
    wanted = [
        (subject, variant, axis, size)
        for subject in subjects
        for axis, sizes in AXES[subject].items()
        if not options.axes or axis in options.axes.split(",")
        for variant in VARIANTS[subject]
        for size in sizes[: options.sizes or None]
    ]
    found, missing = _measured(wanted, options)
    if found:
        print(table(found))
        plot(found, options.out / "growth.png")
    if missing:
        raise SystemExit("\n".join([f"{len(missing)} points are missing:", *missing]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--subjects", default=",".join(AXES))
    parser.add_argument("--axes", default="", help="some axes only, separated by commas")
    parser.add_argument(
        "--sizes", type=int, default=0, help="only so many of each axis, from below"
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="start no point after so many")
    parser.add_argument("--out", type=Path, default=Path("build") / "growth")
    parser.add_argument("--point", default="", help=argparse.SUPPRESS)
    return parser


def _measured(
    wanted: Sequence[tuple[str, str, str, int]], options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[str]]:
    """All points that are there or can be measured in time, and the others with the reason."""
    found, missing, began = [], [], time.monotonic()
    for subject, variant, axis, size in wanted:
        path = options.out / f"{subject}_{variant}_{axis}_{size}.json"
        if not path.exists():
            if options.minutes and time.monotonic() - began > 60 * options.minutes:
                missing.append(f"{path.stem}: no time was left; run the command again")
                continue
            point = {**BASE[subject], axis: size, "subject": subject, "variant": variant}
            if reason := _measure_into(path, {**point, "axis": axis}):
                missing.append(f"{path.stem}: {reason}")
                print(missing[-1], file=sys.stderr, flush=True)
                continue
        each: dict[str, Any] = json.loads(path.read_text())
        found.append(each)
        shown = "  ".join(f"{each[name]:.4g} {words}" for name, words in MEASURES.items())
        print(f"{subject} {variant} {axis} = {size:,}: {shown}", file=sys.stderr, flush=True)
    return found, missing


def _measure_into(path: Path, point: Mapping[str, Any]) -> str:
    """Measure a point in a process of its own; the reason why it failed, or nothing."""
    command = [sys.executable, "-m", "simulations.benchmarks.growth", "--point", json.dumps(point)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no result after {_TIMEOUT} s"
    lines = done.stderr.strip().splitlines()
    if done.returncode:
        return lines[-1] if lines else f"its process ended with status {done.returncode}"
    unfinished = path.with_suffix(".part")  # a run may be cut short while it writes
    unfinished.write_text(done.stdout.splitlines()[-1])
    unfinished.replace(path)
    return ""


def measure_point(point: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one point in this process: the point itself with `MEASURES` added."""
    if point["subject"] == "deployment":
        return {**point, **_deployment(point)}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        laps = _simulate(point, run)
        if point["subject"] == "simulation":
            whole = point["axis"] == "rounds"
            cpu = laps[-1] if whole else laps[-1] - laps[0]
            return {**point, "cpu_s": cpu, "peak_mb": _peak_mb(), "kb": _folder_kb(run)}
        # The audit in a process of its own, so that its peak is not the simulation's.
        code = (
            "import sys; from pathlib import Path; from fedsys.audit import audit_run; "
            "import time, resource; t = time.process_time(); audit_run(Path(sys.argv[1])); "
            "print(time.process_time() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True
        )
        cpu, peak = (float(word) for word in done.stdout.split()[:2])
        return {**point, "cpu_s": cpu, "peak_mb": peak / 1024, "kb": _folder_kb(run)}


def _simulate(point: Mapping[str, Any], run: Path) -> list[float]:
    """CPU seconds of this process after each round."""
    from fedsys import config
    from simulations import harness

    job = config.load(
        "w5",
        [
            f"population.clients={point['population']}",
            f"cohort.expected={point['cohort']}",
            f"rounds.count={point['rounds']}",
            f"task.options.hidden={max(1, point['d'] // _PER_UNIT)}",
            f"aggregation.protocol={point['variant']}",
            "aggregation.dropout=0.0",
            "population.examples=10",
            "evaluation.data=none",
            "engine.processes=1",
            "engine.path=dual",
            "engine.chunk=32",
        ],
    )
    laps: list[float] = []

    def note(event: object) -> None:
        if not isinstance(event, str):
            laps.append(time.process_time())

    harness.run(job, out=run, observer=note)
    return laps


def _deployment(point: Mapping[str, Any]) -> dict[str, float]:
    """A round of a deployment over real sockets, of all agents that are connected."""
    from simulations.benchmarks.secure_round import measure

    found = measure(point["agents"], dimension=point["d"], rounds=point["rounds"], processes=1)
    rounds = point["rounds"] if point["axis"] == "rounds" else 1
    return {
        "cpu_s": rounds * sum(found["cpu_s"].values()),
        "peak_mb": found["coordinator_peak_mb"],
        "kb": found["upload_kb"] * point["agents"] * rounds,
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _folder_kb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1024


def exponent(sizes: Sequence[float], costs: Sequence[float], noise: float = 1.05) -> float:
    """p of the best fit a + b x^p with a, b >= 0, by least squares in relative error; 0 where the
    last cost is less than `noise` times the first.

    >>> round(exponent([1, 10, 100], [5 + 2 * x**1.5 for x in (1, 10, 100)]), 2)
    1.5
    >>> exponent([1, 10, 100], [7.0, 7.0, 7.0])
    0.0
    """
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    if y.min() <= 0 or y[-1] < noise * y[0]:
        return 0.0
    best, chosen = math.inf, 0.0
    for p in np.arange(0.05, 3.0001, 0.01):
        grown = (x / x.max()) ** p
        for columns in (np.stack([1 / y, grown / y], axis=1), (grown / y)[:, None]):
            weights = np.linalg.lstsq(columns, np.ones(len(x)), rcond=None)[0]
            error = float(np.square(columns @ weights - 1).sum())
            if (weights >= 0).all() and error < best - 1e-12:
                best, chosen = error, float(p)
    return round(chosen, 2)


def _series(
    found: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
    """Points by subject, axis and variant, in order of size."""
    series: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for point in found:
        series.setdefault((point["subject"], point["axis"], point["variant"]), []).append(point)
    for (_, axis, _), points in series.items():
        points.sort(key=lambda point: point[axis])
    return series


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Exponents as Markdown, with the costs at both ends of each axis."""
    lines = [
        "| subject | axis | from, to | CPU s | exponent | MB | exponent | kB | exponent |",
        "| --- | --- | --- | --- | ---: | --- | ---: | --- | ---: |",
    ]
    for (subject, axis, variant), points in _series(found).items():
        sizes = [point[axis] for point in points]
        cells = [f"{subject} `{variant}`", axis, f"{sizes[0]:,}, {sizes[-1]:,}"]
        for name in MEASURES:
            costs = [point[name] for point in points]
            p = exponent(sizes, costs, NOISE[name])
            steep = " **steep**" if p > STEEP else ""
            cells += [f"{costs[0]:.3g}, {costs[-1]:.3g}", f"{p:.2f}{steep}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Costs against sizes on logarithmic scales: a row for each axis, a column for each measure.

    Both scales of a drawing span as many decades, so that what grows like its size rises at the
    angle of the grey line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    series = _series(found)
    rows = list(dict.fromkeys((subject, axis) for subject, axis, _ in series))
    figure = Figure(figsize=(9, 2.2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(MEASURES), squeeze=False)
    for (subject, axis), drawn in zip(rows, grid, strict=True):
        for (name, words), axes in zip(MEASURES.items(), drawn, strict=True):
            for (own, along, variant), points in series.items():
                if (own, along) == (subject, axis):
                    axes.loglog(
                        [point[axis] for point in points],
                        [point[name] for point in points],
                        marker="o",
                        markersize=3,
                        label=variant,
                    )
            (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
            half, middle = math.sqrt(max(right / left, high / low)), math.sqrt(low * high)
            low, high = middle / half, middle * half
            axes.set_ylim(low, high)
            centre = math.sqrt(left * right)
            line = [middle * left / centre, middle * right / centre]
            axes.loglog([left, right], line, color="0.85", linewidth=1, zorder=0)
            axes.set_xlim(left, right)
            for scale in (axes.xaxis, axes.yaxis):
                scale.set_minor_formatter(NullFormatter())
            axes.set_xlabel(f"{axis} ({subject})")
            axes.set_ylabel(words)
            axes.spines[["top", "right"]].set_visible(False)
        drawn[0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
