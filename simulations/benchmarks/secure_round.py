"""A round of secure aggregation over real sockets: 100 agents, a million weights.

    python -m simulations.benchmarks.secure_round --agents 100 --dimension 1000000

The coordinator is the deployed one, the agents are real sessions with updates of zeros (see
`simulations.testbed.crowd`): keys, shares, encryption, uploads, the committee's part and the commit
are all there, training and noise are not. All share this machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import psutil

from simulations.testbed.crowd import Crowd, crowd_job

__all__ = ["measure"]


def measure(agents: int, *, dimension: int, rounds: int = 3, processes: int = 2) -> dict[str, Any]:
    """Seconds and memory of a round in which everybody takes part.

    The coordinator's memory at rest is its largest until everybody was connected.

    Args:
        agents: in the population and in every cohort.
        dimension: d, weights of the model.
        rounds: the median counts, by stage.
        processes: that hold the agents.

    Raises:
        RuntimeError: the job did not complete.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        Crowd.make(Path(folder), agents, dimension=dimension, processes=processes) as crowd,
    ):
        crowd.wait_connected()
        before, at_rest = _cpu(crowd), _peak(crowd.coordinator.pid)
        row = crowd.run(crowd_job(agents, agents, rounds=rounds))
        if row.status != "completed":
            raise RuntimeError(f"{row.status}: {row.reason}")
        coordinator, held = (now - then for now, then in zip(_cpu(crowd), before, strict=True))
        stages = crowd.seconds(row.id)
        found: dict[str, Any] = {
            "agents": agents,
            "dimension": dimension,
            "round_s": round(statistics.median(sum(each.values()) for each in stages), 2),
            "stages_s": {
                name: round(statistics.median(each[name] for each in stages), 2)
                for name in stages[0]
            },
            "coordinator_cpu_s": round(coordinator / rounds, 2),
            "agent_cpu_s": round(held / rounds / agents, 3),
            "coordinator_at_rest_mb": at_rest,
            "coordinator_peak_mb": _peak(crowd.coordinator.pid),
            "agents_peak_mb": round(sum(_peak(each.pid) for each in crowd.holders), 1),
        }
        return found


def _cpu(crowd: Crowd) -> tuple[float, float]:
    """Seconds of the coordinator, and of all agents."""
    each = []
    for process in [crowd.coordinator, *crowd.holders]:
        times = psutil.Process(process.pid).cpu_times()
        each.append(times.user + times.system)
    return each[0], sum(each[1:])


def _peak(pid: int | None) -> float:
    """Largest resident memory so far, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return 0.0


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--dimension", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 2)
    given = parser.parse_args()
    found = measure(
        given.agents,
        dimension=given.dimension,
        rounds=given.rounds,
        processes=given.processes,
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
