"""An agent of a schedule: the product's `Agent`, `Journal` and `FileStore`, on failing disks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.agent import Agent
from client.journal import Journal
from client.policy import Policy
from client.privatize import privatize
from fedsys.errors import FedsysError
from fedsys.privacy import Mechanism, PrivacyPlan
from fedsys.wire import Assignment
from fedsys.wire.terms import Terms
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

JOURNAL = "journal.json"


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
        plan: of the job.
        most: rounds in which its owner lets it take part.
        disk: keeps its store and its journal.
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
        plan: PrivacyPlan,
        most: int | None,
        disk: Disk,
        dice: Dice,
        shared: Shared,
        witness: Witness,
    ) -> None:
        self.id = id
        self.disk = disk
        self._identity = identity
        self._roster = roster
        self._plan = plan
        self._policy = Policy(max_participations=most)
        self._dice = dice
        self._shared = shared
        self._witness = witness
        self._agent: Agent | None = None
        self._round = 0
        self._mechanism: Mechanism | None = None
        self._journal: Journal | None = None
        self._vector: tuple[int, NDArray[Any]] | None = None

    def boot(self) -> None:
        """A fresh process: nothing is left but the store and the journal."""
        path = self.disk.root / JOURNAL
        begun = self.disk.durable(path) is not None  # then it must be there
        journal = self._journal = Journal(path) if begun else Journal.begin(path)
        self._agent = Agent(
            id=self.id,
            identity=self._identity,
            roster=self._roster,
            policy=self._policy,
            floor=Floor(modulus_bits=self._plan.modulus_bits),
            entropy=self._dice.bytes,
            store=FileStore(self.disk.root / "round.state"),
            counted=journal,
            shared=self._shared,
        )
        self._round, self._mechanism, self._vector = 0, None, None

    @property
    def counted(self) -> frozenset[int]:
        """Rounds that a loss of power could not make this agent forget."""
        content = self.disk.durable(self.disk.root / JOURNAL)
        try:
            jobs = json.loads(content or b"")["jobs"]
        except ValueError:
            return frozenset()
        return frozenset(number for job in jobs for number in job["joined"])

    def answer(self, ask: Ask) -> bytes | str:
        """The reply, or why there is none."""
        agent, assignment = self._agent, ask.assignment
        if agent is None or assignment.round < self._round:
            return "of a round that is over"
        kind = kind_of(ask.message)
        try:
            if assignment.round > self._round:
                self._agree(assignment.job)
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

    def _agree(self, job: bytes) -> None:
        if self._journal is not None:
            self._journal.agree(
                Terms(
                    job=job,
                    name="schedule",
                    task="none",
                    options={},
                    task_sha256="",
                    local={},
                    path="loop",
                    dimension=self._plan.dimension,
                    example_clip=1.0,
                    plan=self._plan,
                    seed=0,
                    roster_version=1,
                    roster_hash=self._roster.hash.hex(),
                )
            )

    def _provide(self, agent: Agent, assignment: Assignment, mechanism: Mechanism) -> None:
        """One vector a process and round, so that the witness knows which one was masked."""
        if self._vector is None or self._vector[0] != assignment.round:
            raw = np.frombuffer(self._dice.bytes(2 * len(assignment.weights)), "<i2")
            update = (raw / 32768.0).astype(np.float32)[np.newaxis]
            privatized = privatize(
                mechanism, update, seed=assignment.digest, entropy=self._dice.bytes
            )
            self._vector = assignment.round, privatized.vectors[0]
        self._witness.provides(self.id, assignment.round, self._vector[1])
        agent.provide(self._vector[1])
