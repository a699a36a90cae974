"""Deterministic simulation testing: one seed is one world in which everything may go wrong.

The manner is FoundationDB's and TigerBeetle's. Coordinator, agents, secure aggregation and ledger
do no input or output of their own making, so one thread drives them all on a virtual clock, over a
network that delays, loses, doubles, overtakes and splits, on disks that keep only what was
flushed, and any party may die at any flush and any event. What must hold anyway is in
`invariants`; a seed that breaks it replays:

    python -m simulations.deterministic --seed 4711 --trace
"""

from simulations.deterministic.invariants import Violation
from simulations.deterministic.schedule import Schedule
from simulations.deterministic.world import Outcome, World, run

__all__ = ["Outcome", "Schedule", "Violation", "World", "run"]
