"""How often does the empirical audit refute an honest run? At most once in ten thousand may be.

    python -m simulations.benchmarks.honest_canaries --runs 100
    python -m simulations.benchmarks.honest_canaries --simulated 1000 --epsilon 8.8 --canaries 500

With ``--runs``, each run goes the whole way that `fedsys simulate --canaries` and `fedsys audit
--empirical` go: one release of digits to canaries beside 100 real clients at a claimed epsilon,
clipped, encoded, noised, summed (protocol ``ideal``, the integers of secure aggregation), decoded,
attacked. Directions, coins, noise: fresh entropy each time.

With ``--simulated``, the canaries' scores are drawn from their law under the claim, with the
claimed noise, with more and with less, and every registered test is carried out on them.
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
        refuted: names of the tests that said that the claim cannot be true.
        power: what the audit says about its own power.
    """

    refuted: tuple[str, ...]
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
    refuted = tuple(test for test, name in CLAIMS.items() if claims[name].holds is False)
    return Honest(refuted=refuted, power=claims[_POWER].rederived)


def simulate_runs(
    claimed: Claimed, *, canaries: int, runs: int, seed: int, dimension: int = 650
) -> dict[str, dict[str, int]]:
    """How many simulated runs are refuted, by the noise that they had: by any test, and by each.

    Args:
        claimed: by the ledger.
        canaries: m.
        runs: of each noise.
        seed: of the simulation, which keeps no secret.
        dimension: d.

    Raises:
        SystemExit: the claim says nothing about scores.
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
    """Everybody in one release, at this epsilon."""
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
    parser.add_argument("--simulated", type=int, default=0, help="runs by simulated scores")
    parser.add_argument("--canaries", type=int, default=600)
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0, help="of simulated scores")
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
