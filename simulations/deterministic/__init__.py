"""Deterministic simulation testing: one seed is one world in which everything may go wrong.

The manner is FoundationDB's and TigerBeetle's. The parties are the product's own: on each device a
`client.session.Session`, and at the coordinator all that runs a deployed job: the queue, consent,
rounds and their conversations, the devices' port, registry, sealing keys and database. One thread
drives them on a virtual clock (asyncio's loop too, see `loop`), over a network that delays, loses,
doubles and splits, on disks that keep only what was flushed, and any party may die at any flush and
any event. Agents may cheat or be unwilling, and the operator stops the coordinator or cancels the
job. What must hold anyway is in `invariants`; a seed that breaks it replays:

    python -m simulations.deterministic --seed 4711 --trace
"""

from simulations.deterministic.invariants import Violation
from simulations.deterministic.schedule import Schedule
from simulations.deterministic.world import Outcome, World, run

__all__ = ["Outcome", "Schedule", "Violation", "World", "run"]
