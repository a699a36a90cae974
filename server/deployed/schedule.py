"""Which jobs of a queue start, and what the others wait for; no state and no clock.

A device serves one job at a time, so jobs run at once where their devices do not overlap. Those
that wait are looked at in order, and each keeps its devices free for itself: no later job takes one
of them, however short it may be, so that a job waits for those before it and for no others. One
thing sets a job aside: that too few of its devices are connected. It keeps nothing, later jobs pass
it, and it is back in its place once enough of its devices are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Decision", "Queued", "decide"]


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A job that does not run.

    Attributes:
        id: its.
        nodes: devices that it may use.
        lacks: whether it began, and too few of them are connected.
    """

    id: str
    nodes: frozenset[int]
    lacks: bool = False


@dataclass(kw_only=True)
class Decision:
    """What becomes of a queue.

    Attributes:
        starts: jobs that start now, in order.
        waits: for each other job the jobs that it waits for, which run or come before it; none
            where as many run as may.
    """

    starts: list[str] = field(default_factory=list)
    waits: dict[str, tuple[str, ...]] = field(default_factory=dict)


def decide(
    queue: Sequence[Queued], running: Mapping[str, frozenset[int]], *, at_once: int
) -> Decision:
    """Decide which jobs start.

    Args:
        queue: in order.
        running: devices of each job that runs.
        at_once: how many jobs may run.
    """
    decision, taken = Decision(), dict(running)
    room = at_once - len(running)
    for job in sorted(queue, key=lambda each: each.lacks):  # stable: the order is kept
        before = tuple(id for id, nodes in taken.items() if nodes & job.nodes)
        if not before and room > 0:
            decision.starts.append(job.id)
            room -= 1
        else:
            decision.waits[job.id] = before
            if job.lacks:
                continue
        taken[job.id] = job.nodes
    return decision
