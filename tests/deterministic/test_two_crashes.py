"""An agent killed before its store was certain, then robbed of power, masks no second vector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.agent import Agent
from fedsys.wire import Assignment
from secure_agg import FileStore, Identity, Roster, SecAggParams
from secure_agg.messages import Kind, kind_of
from server.coordinator import OpenRound
from server.rounds import SecureRound
from simulations.deterministic.coordinator import describe
from simulations.deterministic.dice import Dice
from simulations.deterministic.schedule import Schedule
from simulations.deterministic.storage import Crashed, Disk, FlushFate, Storage

MEMBERS = 4


class Scene:
    """A round whose first member stands on a disk that fails when it is told to."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.fates: list[FlushFate] = []
        self.storage = Storage(folder, seed, self._fate)
        self.disk = self.storage.disk("member")
        self.storage.acting = self.disk
        dice = Dice(seed, "keys")
        self.identities = {id: Identity.generate(dice.bytes) for id in range(MEMBERS)}
        self.roster = Roster({id: key.public_bytes for id, key in self.identities.items()})
        plan = describe(Schedule.of(0)).plan
        self.mechanism = plan.build_mechanism()
        self.assignment = Assignment(
            job=bytes(32),
            round=1,
            task="none",
            weights=np.zeros(plan.dimension, dtype=np.float32),
            local={},
            mechanism=plan.event().to_json(),
            seed=0,
        )
        open_ = OpenRound(number=1, cohort=tuple(range(MEMBERS)), assignment=self.assignment)
        self.round = SecureRound(
            open=open_, mechanism=self.mechanism, roster=self.roster, corrupt=0.0, dropout=0.25
        )
        self.agents = {id: self.agent(id) for id in range(MEMBERS)}
        self.delivery = self._until_delivery(self.round.params)

    def _fate(self, disk: Disk) -> FlushFate:
        return self.fates.pop(0) if self.fates else FlushFate()

    def agent(self, id: int) -> Agent:
        return Agent(
            id=id,
            identity=self.identities[id],
            roster=self.roster,
            store=FileStore(self.disk.root / "state") if id == 0 else None,
        )

    def _until_delivery(self, params: SecAggParams) -> bytes:
        for agent in self.agents.values():
            agent.accept(self.assignment, params)
        messages = self.round.begin()
        while kind_of(messages[0]) is not Kind.DELIVERY:
            for id, message in messages.items():
                self.round.receive(id, self.agents[id].handle(message))
            messages = self.round.close_stage()
        return messages[0]

    def masked(self, agent: Agent, fill: int) -> bytes:
        """What the first member uploads, given a vector of its own if it has sent none."""
        if not agent.masked:
            agent.provide(np.full(self.mechanism.length, fill, dtype=np.uint32))
        return agent.handle(self.delivery)

    def restarted(self) -> Agent:
        self.disk.restart()
        agent = self.agent(0)
        assert agent.resume(self.assignment) is not None
        return agent


@pytest.mark.parametrize("seed", range(12))
def test_killed_then_without_power(seed: int, tmp_path: Path) -> None:
    scene = Scene(tmp_path, seed)
    with scene.storage.watched():
        # the state is flushed and renamed; the process dies before the folder is flushed
        scene.fates = [FlushFate(), FlushFate(dies="before")]
        with pytest.raises(Crashed):
            scene.masked(scene.agents[0], 1)
        said = scene.masked(scene.restarted(), 2)
        scene.disk.die(power_lost=True)
        assert scene.masked(scene.restarted(), 3) == said
