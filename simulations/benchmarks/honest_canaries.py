"""How often the empirical audit refutes an honest run, which it may do once in 10,000 at most.

    python -m simulations.benchmarks.honest_canaries --runs 100
    python -m simulations.benchmarks.honest_canaries --simulated 1000 --epsilon 8.8 --canaries 500

With ``--runs``, each run uses the whole pipeline of `fedsys simulate --canaries` and `fedsys audit
--empirical`: one release of the digits task, with canaries next to 100 real clients at a claimed
epsilon, is clipped, encoded, noised, summed (protocol ``ideal``, the integers of secure
aggregation), decoded and attacked. Each run has fresh directions, coins and noise.

With ``--simulated``, the canaries' scores are drawn from their distribution under the claim, with
the claimed noise and with more or less, and every registered test is run on them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsys.audit import audit_canaries
from fedsys.audit.canary_claim import Claimed, planned
from fedsys.audit.canary_protocol import FALSE_ALARM, register
from fedsys.audit.canary_tests import Battery, simulated
from fedsys.audit.empirical import CLAIMS
from fedsys.config import Config, load
from fedsys.privacy import make_plan
from fedsys.privacy.accounting.exact_gaussian import gaussian_epsilon
from simulations.canaries import run

__all__ = ["Honest", "main", "measure", "simulate_runs"]

_NOISE = {
    "noise as claimed": 1.0,
    "noise times 1.5": 1 / 1.5,
    "noise divided by 1.5": 1.5,
    "noise divided by 2": 2.0,
    "no noise": math.inf,
}
_POWER = "Power of the empirical audit"


@dataclass(frozen=True, kw_only=True)
class Honest:
    """One honest run, audited.

    Attributes:
        refuted: Names of the tests that refuted the claim.
        power: The audit's statement about its own power.
    """

    refuted: tuple[str, ...]
    power: str


def measure(*, canaries: int, epsilon: float, protocol: str = "ideal") -> Honest:
    """Plant canaries, release and audit, once.

    Args:
        canaries: Number of canaries m, at most 650.
        epsilon: The claimed epsilon, which the run keeps to.
        protocol: ``ideal`` or ``secure``.
    """
    with tempfile.TemporaryDirectory() as name:
        job = _one_release(epsilon, protocol)
        folder = run(job, canaries=canaries, out=Path(name) / "run").folder
        claims = {claim.name: claim for claim in audit_canaries(folder).claims}
    refuted = tuple(test for test, name in CLAIMS.items() if claims[name].holds is False)
    return Honest(refuted=refuted, power=claims[_POWER].rederived)


def simulate_runs(
    claimed: Claimed, *, canaries: int, runs: int, seed: int, dimension: int = 650
) -> dict[str, dict[str, int]]:
    """Number of simulated runs that are refuted, by noise level: by any test, and by each test.

    Args:
        claimed: The ledger's claim.
        canaries: Number of canaries m.
        runs: Number of runs at each noise level.
        seed: Seed of the simulation, in which nothing is secret.
        dimension: Number of dimensions d.

    Raises:
        SystemExit: The claim says nothing about scores.
    """
    protocol = register(claimed, canaries=canaries, dimension=dimension, commitment="0" * 64)
    battery, generator = Battery(claimed, protocol), np.random.default_rng(seed)
    if claimed.law is None:
        raise SystemExit("this claim says nothing about scores")
    found: dict[str, dict[str, int]] = {}
    for name, weaker in _NOISE.items():
        counts: Counter[str] = Counter(refuted=0)
        for _ in range(runs):
            scores = simulated(claimed.law, protocol, generator, weaker=weaker)
            by = list(battery.refuted_by(scores))
            counts["refuted"] += bool(by)
            counts.update(by)
        found[name] = dict(counts)
    return found


def _claim_at(epsilon: float, canaries: int) -> Claimed:
    """The claim of one release with every client in it, at this epsilon."""
    delta = 1e-5
    low, high = 0.1, 100.0
    while high - low > 1e-6 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_epsilon(delta, middle) > epsilon else (low, middle)
    return planned(
        make_plan(
            mechanism="distributed-gaussian",
            population=100 + canaries,
            expected_cohort=100 + canaries,
            rounds=1,
            dimension=650,
            clip=1.0,
            delta=delta,
            noise_multiplier=high,
        )
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
    parser.add_argument("--runs", type=int, default=0, help="runs of the whole pipeline")
    parser.add_argument("--simulated", type=int, default=0, help="runs with simulated scores")
    parser.add_argument("--canaries", type=int, default=600)
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0, help="seed of simulated scores")
    options = parser.parse_args(arguments)
    if min(options.runs, options.simulated) < 0 or options.runs + options.simulated < 1:
        raise SystemExit(f"--runs: {options.runs}; at least one is needed, or --simulated")
    started = time.process_time()
    result: dict[str, object] = {
        "claimed": options.epsilon,
        "canaries": options.canaries,
        "allowed": FALSE_ALARM,
    }
    if options.simulated:
        claimed = _claim_at(options.epsilon, options.canaries)
        result["simulated"] = options.simulated
        result["refuted"] = simulate_runs(
            claimed, canaries=options.canaries, runs=options.simulated, seed=options.seed
        )
    found: list[Honest] = []
    for number in range(options.runs):
        found.append(measure(canaries=options.canaries, epsilon=options.epsilon))
        print(f"run {number + 1}: refuted by {found[-1].refuted}", file=sys.stderr, flush=True)
    if found:
        result["runs"] = len(found)
        result["refuted_runs"] = sum(bool(each.refuted) for each in found)
        result["power"] = found[0].power
    result["cpu_seconds"] = round(time.process_time() - started, 1)
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
