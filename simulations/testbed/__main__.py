"""``python -m simulations.testbed``: inject faults into a deployment, and report what held."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from simulations.testbed.crowd import survive
from simulations.testbed.faults import FAULTS
from simulations.testbed.federation import Federation
from simulations.testbed.trial import Trial


def main() -> int:
    """Exit status 0 if everything held, 1 if not."""
    listed = "; ".join(f"{fault.name}: {fault.meaning}" for fault in FAULTS.values())
    parser = argparse.ArgumentParser(prog="python -m simulations.testbed", description=__doc__)
    parser.add_argument("--fault", default=",".join(FAULTS), help=f"by comma, of {listed}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--agents", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="a new folder that keeps everything written")
    parser.add_argument(
        "--crowd",
        type=int,
        metavar="N",
        help="instead: run N light agents, kill the coordinator during their job, print figures",
    )
    given = parser.parse_args()
    if given.crowd is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(survive(given.keep or Path(folder), given.crowd)))
        return 0
    unknown = [name for name in given.fault.split(",") if name not in FAULTS]
    if unknown:
        parser.error(f"--fault {','.join(unknown)}: allowed are {', '.join(FAULTS)}")
    if given.agents < 3:
        parser.error(f"--agents {given.agents}: at least 3")
    faults = [FAULTS[name] for name in given.fault.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        root = given.keep or Path(folder)
        root.mkdir(parents=True, exist_ok=given.keep is None)
        proxied = any(fault.network for fault in faults)
        with Federation.make(root, given.agents, proxied=proxied, seed=given.seed) as federation:
            trial = Trial(
                federation, faults, seed=given.seed, say=lambda line: print(line, flush=True)
            )
            report = trial.run(seconds=60 * given.minutes)
    print("\n".join(report.lines()))
    return 0 if report.passed else 1


def _stopped(number: int, _frame: object) -> None:
    """Raise SystemExit, so that every party is ended on the way out."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    for wish in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wish, _stopped)
    sys.exit(main())
