"""An agent of a schedule: the product's `Agent` and `FileStore`, on a disk that may fail."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.agent import Agent
from client.privatize import privatize
from fedsys.errors import FedsysError
from fedsys.privacy import Mechanism
from fedsys.wire import Assignment
from secure_agg import (
    FileStore,
    Floor,
    Identity,
    Roster,
    SecAggParams,
    SecureAggError,
    Shared,
)
from secure_agg.messages import Kind, kind_of
from simulations.deterministic.dice import Dice
from simulations.deterministic.invariants import Witness
from simulations.deterministic.storage import Disk

__all__ = ["AgentParty", "Ask"]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One message of the coordinator to one agent; enough for an agent that has just restarted."""

    assignment: Assignment
    params: SecAggParams
    message: bytes


class AgentParty:
    """One agent over its restarts; `boot` is what a process does when it starts.

    Args:
        id: in the roster.
        identity: its key, which no crash takes.
        roster: the population.
        disk: keeps its store.
        dice: for its updates and all its secrets.
        shared: work shared within this process; it holds no state of a protocol.
        witness: sees its inputs.
    """

    def __init__(
        self,
        *,
        id: int,
        identity: Identity,
        roster: Roster,
        disk: Disk,
        dice: Dice,
        shared: Shared,
        witness: Witness,
    ) -> None:
        self.id = id
        self.disk = disk
        self._identity = identity
        self._roster = roster
        self._dice = dice
        self._shared = shared
        self._witness = witness
        self._agent: Agent | None = None
        self._round = 0
        self._mechanism: Mechanism | None = None

    def boot(self) -> None:
        """A fresh process: nothing is left but the store."""
        self._agent = Agent(
            id=self.id,
            identity=self._identity,
            roster=self._roster,
            floor=Floor(modulus_bits=32),
            entropy=self._dice.bytes,
            store=FileStore(self.disk.root / "round.state"),
            shared=self._shared,
        )
        self._round, self._mechanism = 0, None

    def answer(self, ask: Ask) -> bytes | str:
        """The reply, or why there is none."""
        agent, assignment = self._agent, ask.assignment
        if agent is None or assignment.round < self._round:
            return "of a round that is over"
        kind = kind_of(ask.message)
        try:
            if assignment.round > self._round:
                mechanism = agent.resume(assignment)
                if mechanism is None and kind is not Kind.BEGIN:
                    return "of a round that it never joined"
                self._mechanism = mechanism or agent.accept(assignment, ask.params)
                self._round = assignment.round
            if kind is Kind.DELIVERY and not agent.masked and self._mechanism is not None:
                self._provide(agent, assignment, self._mechanism)
            return agent.handle(ask.message)
        except (SecureAggError, FedsysError) as refusal:
            return f"{type(refusal).__name__}: {refusal}"

    def _provide(self, agent: Agent, assignment: Assignment, mechanism: Mechanism) -> None:
        raw = np.frombuffer(self._dice.bytes(2 * len(assignment.weights)), "<i2")
        update = (raw / 32768.0).astype(np.float32)[np.newaxis]
        privatized = privatize(mechanism, update, seed=assignment.digest, entropy=self._dice.bytes)
        vector = privatized.vectors[0]
        self._witness.provides(self.id, assignment.round, vector)
        agent.provide(vector)
