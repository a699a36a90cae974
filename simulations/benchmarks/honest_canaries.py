"""How often does the one-run audit refute an honest run? At most one in twenty may be.

    python -m simulations.benchmarks.honest_canaries --runs 100

Each run goes the whole way that `fedsys simulate --canaries` and `fedsys audit --empirical` go:
one release of digits to 600 canaries beside 100 real clients at a claimed epsilon, clipped,
encoded, noised, summed (protocol ``ideal``, the integers of secure aggregation), decoded, attacked.
Directions, coins, noise: fresh entropy each time. Printed beside it: how many were refuted, the
largest bound, and how often the same audit catches weaker noise (its power, by simulated scores).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsys.audit import audit_canaries
from fedsys.audit.canaries import one_run
from fedsys.audit.empirical import CANARIES, read_canaries
from fedsys.config import Config, load
from fedsys.records import Claim
from simulations.canaries import run

__all__ = ["Honest", "main", "measure"]

BOUND = "Empirical lower bound on epsilon (one-run)"
POWER = "Power of the one-run audit"


@dataclass(frozen=True, kw_only=True)
class Honest:
    """One honest run, audited.

    Attributes:
        refuted: whether the audit said that epsilon cannot be what is claimed.
        bound: the largest epsilon that it refuted.
        power: what the audit says about its own power.
    """

    refuted: bool
    bound: float
    power: str


def measure(*, canaries: int, epsilon: float, protocol: str = "ideal") -> Honest:
    """Plant, release, audit, once.

    Args:
        canaries: m, at most 650.
        epsilon: claimed, and kept.
        protocol: ``ideal`` or ``secure``.
    """
    with tempfile.TemporaryDirectory() as name:
        job = _one_release(epsilon, protocol)
        folder = run(job, canaries=canaries, out=Path(name) / "run").folder
        claims = {claim.name: claim for claim in audit_canaries(folder).claims}
        outcome = read_canaries(folder / CANARIES)
        found = one_run(
            outcome.scores, outcome.included, guesses=outcome.guesses, delta=job.privacy.delta
        )
    verdict: Claim = claims[BOUND]
    return Honest(
        refuted=verdict.holds is not True, bound=found.bound, power=claims[POWER].rederived
    )


def _one_release(epsilon: float, protocol: str) -> Config:
    return load(
        "quickstart",
        [
            "population.partition=iid",
            "population.clients=100",
            "cohort.expected=100",
            "rounds.count=1",
            f"privacy.epsilon={epsilon}",
            "privacy.clip=1.0",
            f"aggregation.protocol={protocol}",
            "aggregation.dropout=0.0",
            "faults.dropout=0.0",
            "evaluation.data=none",
            "engine.path=batched",
            "engine.chunk=64",
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--canaries", type=int, default=600)
    parser.add_argument("--epsilon", type=float, default=2.0)
    options = parser.parse_args(arguments)
    if options.runs < 1:
        raise SystemExit(f"--runs: {options.runs}; at least one is needed")
    started = time.process_time()
    found: list[Honest] = []
    for number in range(options.runs):
        found.append(measure(canaries=options.canaries, epsilon=options.epsilon))
        print(f"run {number + 1}: bound {found[-1].bound:.3f}", file=sys.stderr, flush=True)
    refuted = sum(each.refuted for each in found)
    print(
        json.dumps(
            {
                "runs": len(found),
                "refuted": refuted,
                "share": refuted / len(found),
                "largest_bound": round(max(each.bound for each in found), 4),
                "mean_bound": round(sum(each.bound for each in found) / len(found), 4),
                "claimed": options.epsilon,
                "canaries": options.canaries,
                "power": found[0].power,
                "cpu_seconds": round(time.process_time() - started, 1),
            },
            indent=1,
            ensure_ascii=False,
        )
    )


if __name__ == "__main__":
    main()
