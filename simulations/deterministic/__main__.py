"""``python -m simulations.deterministic``: run schedules; exit 1 if one broke an invariant.

Ctrl-C ends it after the schedules so far, which it sums up.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter

from simulations.deterministic.world import run


def main() -> int:
    """Run the schedules that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m simulations.deterministic")
    parser.add_argument("--seed", type=int, default=0, help="the first schedule")
    parser.add_argument("--count", type=int, default=1, help="how many, from that seed on")
    parser.add_argument("--trace", action="store_true", help="print what happened, line by line")
    asked = parser.parse_args()
    logging.disable(logging.ERROR)  # what agents log is in the trace
    started = time.monotonic()
    broken, ends, crashes, commits = 0, Counter[str](), 0, 0
    for seed in range(asked.seed, asked.seed + asked.count):
        try:
            outcome = run(seed)
        except KeyboardInterrupt:
            print(f"interrupted in seed {seed}: go on with --seed {seed}")
            break
        if asked.trace:
            print("\n".join(outcome.trace))
        if outcome.violation is not None:
            broken += 1
            print(f"seed {seed}: {outcome.violation}", flush=True)
        ends[outcome.status or "broken"] += 1
        crashes, commits = crashes + outcome.crashes, commits + outcome.commits
    seconds = time.monotonic() - started
    print(
        f"{ends.total()} schedules in {seconds:.1f} s: "
        + ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
        + f"; {commits} rounds committed, {crashes} crashes"
    )
    if broken:
        return 1
    return 0 if ends.total() == asked.count else 130


if __name__ == "__main__":
    sys.exit(main())
