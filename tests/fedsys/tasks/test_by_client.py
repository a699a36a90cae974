"""Examples that are read as their client trains give what the same examples in memory give."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from client.training import LocalConfig, Trainer
from fedsys.config import load
from fedsys.errors import ConfigError, DataError
from fedsys.tasks import ByClient, DataSource, Examples, FederatedData, Origin, seeded, split
from fedsys.tasks.classification import Classification
from simulations import harness
from simulations.population import Population

SIZES = (3, 0, 5, 1, 4, 2, 6, 3)


def of(client: int) -> Examples:
    own, size = torch.Generator().manual_seed(client), SIZES[client]
    return Examples(
        x=torch.randn(size, 4, generator=own), y=torch.randint(0, 2, (size,), generator=own)
    )


def of_the_global_generator(client: int) -> Examples:
    with seeded(client):
        return of(client)


def whole() -> FederatedData:
    parts = [of(client) for client in range(len(SIZES))]
    train = Examples(x=torch.cat([p.x for p in parts]), y=torch.cat([p.y for p in parts]))
    natural = torch.from_numpy(np.repeat([0, 0, 1, 2, 3, 4, 5, 6], SIZES))
    return FederatedData(train=train, test=of(6), natural=natural)


class InMemory(Classification):
    name = "in-memory"

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Linear(4, 2)

    def clients(self, source: DataSource) -> FederatedData:
        return whole()


class Read(InMemory):
    def clients(self, source: DataSource) -> FederatedData:
        held = [client for client in range(len(SIZES)) if SIZES[client]]
        by_client = ByClient(load=Numbered(held), sizes=[SIZES[each] for each in held])
        return FederatedData(by_client=by_client, test=of(6))


class Numbered:
    """Clients that hold examples, numbered from 0; remembers which threads asked for whom."""

    def __init__(self, held: list[int]) -> None:
        self._held = held
        self.asked: list[tuple[int, bool]] = []

    def __call__(self, client: int) -> Examples:
        self.asked.append((client, threading.current_thread() is threading.main_thread()))
        return of(self._held[client])

    def __getstate__(self) -> dict[str, object]:
        return {"_held": self._held, "asked": []}


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_is_the_same(processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    models = []
    for task in (InMemory, Read):
        changes = [
            "privacy.mechanism=none",
            "aggregation.protocol=ideal",
            "population.partition=by-column",
            "cohort.expected=4",
            "rounds.count=3",
            "local.batch_size=2",
            "engine.path=batched",
            "engine.chunk=2",
            f"engine.processes={processes}",
        ]
        out = tmp_path / task.__name__
        harness.run(load("quickstart", changes), out=out, origin=Origin.of(task))
        models.append(torch.load(out / "model.pt"))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_next_chunk_is_read_while_one_trains() -> None:
    data = Read().clients(DataSource())
    assert data.by_client is not None
    load_ = data.by_client.load
    assert isinstance(load_, Numbered)
    trainer = Trainer(Read(), LocalConfig(learning_rate=0.1), path="loop", chunk=2)
    population = Population(
        train_set=data.train,
        partition=split(data, "by-column", None, 0),
        trainer=trainer,
        seed=0,
        by_client=data.by_client,
    )
    weights = trainer.initial_weights()
    population.choose(None)
    load_.asked.clear()
    population.expect((4, 2))
    population.train(weights, (0, 1), round=1)
    population.train(weights, (4, 2), round=1)
    assert sorted(client for client, _ in load_.asked) == [0, 1, 2, 4], "each is read once"


def test_what_people_get_wrong() -> None:
    with pytest.raises(DataError, match="sizes has to be one whole number"):
        ByClient(load=of, sizes=[1.5])
    with pytest.raises(DataError, match=r"load\(0\) returned 3 examples, but sizes\[0\] is 2"):
        ByClient(load=of, sizes=[2]).sample()
    with pytest.raises(DataError, match=r"load\(0\) returned NoneType"):
        ByClient(load=lambda client: None, sizes=[2]).sample()  # type: ignore[arg-type,return-value]
    with pytest.raises(DataError, match=r"load\(1\) failed: IndexError: tuple index"):
        ByClient(load=lambda k: of(k + 7), sizes=[3, 3]).sample()
    with pytest.raises(DataError, match="whose generator other threads use at the same time"):
        ByClient(load=of_the_global_generator, sizes=SIZES[:1]).sample()
    mixed = [Examples(x=torch.zeros(1, k), y=torch.zeros(1)) for k in (1, 2)]
    with pytest.raises(DataError, match="have different forms"):
        ByClient(load=lambda k: mixed[k], sizes=[1, 1]).sample()
    lazy = ByClient(load=of, sizes=SIZES)
    with pytest.raises(DataError, match="by_client is given, and train or natural too"):
        FederatedData(by_client=lazy, train=of(0), test=of(0))
    with pytest.raises(DataError, match="neither train nor by_client"):
        FederatedData(test=of(0))
    with pytest.raises(ConfigError, match="'iid': this task's examples are read client by client"):
        split(FederatedData(by_client=lazy, test=of(0)), "iid", 3, 0)
