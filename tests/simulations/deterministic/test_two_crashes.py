"""An agent killed at any moment of its upload, then robbed of power, lets out no second vector."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from client.agent import Agent
from client.volatile import VolatileStore
from fedsys.wire import Assignment
from secure_agg import FileStore, Identity, Roster, SealingKeys, SecureAggError
from server.coordinator import OpenRound
from server.rounds import SecureRound, params_for
from simulations.deterministic.dice import Dice
from simulations.deterministic.job import describe
from simulations.deterministic.schedule import Schedule
from simulations.deterministic.storage import TMPFS, Crashed, Disk, FlushFate, Storage

MEMBERS = 4
FLUSHES = 2  # of the marks: the file, then its folder


class Scene:
    """A round whose first member stands on a disk that fails when it is told to."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.fates: list[FlushFate] = []
        self.storage = Storage(folder, seed, self._fate)
        self.disk = self.storage.disk("member")
        self.storage.acting = self.disk
        self.dice = Dice(seed, "keys")
        self.identities = {id: Identity.generate(self.dice.bytes) for id in range(MEMBERS)}
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
        self.params = params_for(plan, self.mechanism, self.roster, MEMBERS)
        agents = {0: self.started()} | {
            id: Agent(id=id, identity=self.identities[id], roster=self.roster)
            for id in range(1, MEMBERS)
        }
        round_ = SecureRound(
            open=OpenRound(number=1, cohort=tuple(range(MEMBERS)), assignment=self.assignment),
            mechanism=self.mechanism,
            roster=self.roster,
            params=self.params,
            prekeys={id: agent.sealing.issue(1)[0] for id, agent in agents.items()},
        )
        self.opening = round_.begin()[0]
        self.agent = agents[0]
        self.said: set[bytes] = set()

    def _fate(self, disk: Disk) -> FlushFate:
        return self.fates.pop(0) if self.fates else FlushFate()

    def started(self) -> Agent:
        """A process of the first member: what it has is on its disk and in its machine's memory."""
        memory = self.disk.root / TMPFS
        memory.mkdir(exist_ok=True)
        agent = Agent(
            id=0,
            identity=self.identities[0],
            roster=self.roster,
            sealing=SealingKeys(
                self.identities[0],
                entropy=self.dice.bytes,
                store=VolatileStore(self.disk.root, memory),
            ),
            entropy=self.dice.bytes,
            store=FileStore(self.disk.root / "state"),
        )
        agent.accept(self.assignment, self.params)
        return agent

    def uploads(self, fill: int) -> None:
        """The first member is asked, and given a vector of its own unless one has left already."""
        if not self.agent.uploaded:
            self.agent.provide(np.full(self.mechanism.length, fill, dtype=np.uint32))
        with suppress(SecureAggError):
            self.said.add(self.agent.handle(self.opening))

    def dies(self, *, power_lost: bool) -> None:
        """Its process ends now, and another one starts."""
        self.disk.die(power_lost=power_lost)
        self.disk.restart()
        self.agent = self.started()


@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("flush", range(FLUSHES))
@pytest.mark.parametrize("seed", range(6))
def test_killed_then_without_power(seed: int, flush: int, dies: str, tmp_path: Path) -> None:
    scene = Scene(tmp_path, seed)
    with scene.storage.watched():
        scene.fates = [FlushFate()] * flush + [FlushFate(dies=dies)]
        with pytest.raises(Crashed):
            scene.uploads(1)
        scene.dies(power_lost=False)
        for fill, power_lost in enumerate((False, True, True), start=2):
            scene.uploads(fill)
            scene.dies(power_lost=power_lost)
    assert len(scene.said) <= 1


def test_a_process_that_is_restarted_says_the_same_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 0)
    with scene.storage.watched():
        for fill in range(3):
            scene.uploads(fill)
            scene.dies(power_lost=False)
        assert len(scene.said) == 1
        scene.dies(power_lost=True)
        with pytest.raises(SecureAggError):
            scene.agent.handle(scene.opening)


def test_a_member_that_would_forget_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With marks that do not outlive a loss of power there is a second upload."""
    monkeypatch.setattr(FileStore, "load", lambda self: None)
    scene = Scene(tmp_path, 0)
    with scene.storage.watched():
        scene.uploads(1)
        scene.dies(power_lost=True)
        scene.uploads(2)
    assert len(scene.said) == 2
