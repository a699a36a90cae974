"""The owner's data: which rows a shard has, what it refuses, what its code's hash depends on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

import client.local_data
from client.local_data import DataSpec, LocalData, job_code
from client.task_model import TaskModel
from client.training.example.privacy import ExamplePrivateTrainer
from fedsys import tasks
from fedsys.config import load
from fedsys.errors import ConfigError, PolicyRefusal
from fedsys.privacy import AesCtrStream, Entropy, make_plan
from fedsys.privacy.noise import RoundedGaussian
from fedsys.tasks.digits import Digits
from fedsys.wire import Assignment
from fedsys.wire.terms import Terms

PLAN = make_plan(
    mechanism="none",
    population=3,
    expected_cohort=3,
    rounds=1,
    dimension=650,
    clip=1.0,
    delta=1e-5,
    cap=3,
    min_survivors=2,
)
TERMS = Terms(
    job=bytes(32),
    name="n",
    task="digits",
    options={},
    task_sha256="",
    local={"epochs": 1},
    path="loop",
    dimension=650,
    example_clip=1.0,
    plan=PLAN,
    seed=7,
    roster_version=1,
    roster_hash="",
)


@pytest.mark.parametrize(
    ("source", "shard", "expected"),
    [
        ("digits", None, DataSpec(task="digits")),
        ("mnist=/data", "0/3", DataSpec(task="mnist", folder=Path("/data"), shard=(0, 3))),
        ("my.module:Task", "2/3", DataSpec(task="my.module:Task", shard=(2, 3))),
    ],
)
def test_data_is_named_on_the_command_line(
    source: str, shard: str | None, expected: DataSpec
) -> None:
    assert DataSpec.parse(source, shard) == expected


@pytest.mark.parametrize(
    ("source", "shard"), [("", None), ("digits=", None), ("digits", "3/3"), ("digits", "1")]
)
def test_anything_else_is_one_line(source: str, shard: str | None) -> None:
    with pytest.raises(ConfigError, match="expected"):
        DataSpec.parse(source, shard)


def test_shards_are_the_simulators_iid_partition() -> None:
    data = tasks.load("digits").clients(tasks.DataSource())
    partition = tasks.split(data, "iid", 3, 7)
    seen = []
    for part in range(3):
        worker = LocalData(DataSpec(task="digits", shard=(part, 3)))
        assert np.array_equal(worker.rows(7), partition.indices_of(part))
        seen.append(worker.rows(7))
    assert len(np.unique(np.concatenate(seen))) == len(data.train)
    assert len(LocalData(DataSpec(task="digits")).rows(7)) == len(data.train)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task": "mnist"}, "has data for 'digits'"),
        ({"options": {"hidden": 8}}, "are asked for"),
        ({"dimension": 651}, "has 650 weights here"),
        ({"local": {"epochs": 0}}, "local.epochs"),
        ({"local": {"code": "x"}}, "not possible here"),
        ({"path": "warp"}, "engine.path"),
        ({"local": {"procedure": "os:system"}}, "this device runs none of its own"),
        ({"local": {"procedure": "scaffold"}}, "sends 1300"),
        ({"weight_cap": 10}, "sends 651"),
    ],
)
def test_what_cannot_be_trained_is_refused(change: dict[str, Any], reason: str) -> None:
    worker = LocalData(DataSpec(task="digits"))
    worker.check(TERMS)
    with pytest.raises(PolicyRefusal, match=reason):
        worker.check(dataclasses.replace(TERMS, **change))


class Frozen(Digits):
    """A pretrained layer, which each machine reads from its own copy of a file."""

    name = "frozen"
    scale = 1.0

    def init_model(self, seed: int) -> nn.Module:
        first = nn.Linear(64, 8)
        for parameter in first.parameters():
            nn.init.constant_(parameter, self.scale)
            parameter.requires_grad_(False)
        return nn.Sequential(first, nn.Linear(8, 10))


def test_a_device_with_other_frozen_weights_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    named = f"{Frozen.__module__}:Frozen"
    monkeypatch.setattr(tasks, "load", lambda *_: Frozen({}))
    config = load("quickstart", [f"task.name={named}"])
    model = TaskModel(config)
    assert model.frozen_compared == model.frozen_sha256
    asked = dataclasses.replace(
        TERMS, task=named, dimension=90, plan=PLAN.changed(dimension=90),
        frozen_sha256=model.frozen_compared,
    )  # fmt: skip
    assert Terms.decode(asked.encoded) == asked
    LocalData(DataSpec(task=named)).check(asked)
    monkeypatch.setattr(Frozen, "scale", 1.001)
    with pytest.raises(PolicyRefusal, match=rf"frozen weights.*{asked.frozen_sha256} at the coor"):
        LocalData(DataSpec(task=named)).check(asked)


def test_nothing_is_compared_where_nothing_is_frozen() -> None:
    model = TaskModel(load("quickstart"))
    assert (model.frozen_compared, bool(model.frozen_sha256)) == ("", True)


def test_a_procedure_of_the_owners_is_part_of_the_hash() -> None:
    own = "tests.client.training.procedure.own:draws"
    worker = LocalData(DataSpec(task="digits"), procedure=own)
    plain = LocalData(DataSpec(task="digits"))
    assert worker.sha256 == job_code(worker.task, own).sha256 != plain.sha256
    assert job_code(plain.task, "scaffold").sha256 == plain.sha256  # ships with the product
    asked = dataclasses.replace(TERMS, local={"procedure": own})
    worker.check(asked)
    with pytest.raises(PolicyRefusal, match="--procedure"):
        plain.check(asked)


class Rounds:
    """A device's part in rounds whose unit of privacy is the example."""

    def __init__(self) -> None:
        plan = make_plan(
            mechanism="example-gaussian", population=3, expected_cohort=3, rounds=5, dimension=650,
            clip=1.0, delta=1e-5, cap=3, min_survivors=2, sampling="fixed", noise_multiplier=1.0,
            unit="example", example_rate=0.2, steps=2, dropout=0.0,
        )  # fmt: skip
        self.terms = dataclasses.replace(TERMS, plan=plan)
        self.worker = LocalData(DataSpec(task="digits", shard=(0, 3)))
        self.weights = np.zeros(650, np.float32)

    def train(self, entropy: Entropy, terms: Terms | None = None) -> NDArray[np.float32]:
        terms = terms or self.terms
        work = Assignment(
            job=bytes(32), round=1, task="digits", weights=self.weights, local={}, mechanism={},
            seed=7,
        )  # fmt: skip
        return self.worker.train(terms, work, 0, entropy)


def key(number: int) -> Entropy:
    return AesCtrStream(bytes([number]) * 32)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[ExamplePrivateTrainer]:
    """Trainers that were made, in order."""
    found: list[ExamplePrivateTrainer] = []

    def make(*args: Any, **named: Any) -> ExamplePrivateTrainer:
        found.append(ExamplePrivateTrainer(*args, **named))
        return found[-1]

    monkeypatch.setattr(client.local_data, "ExamplePrivateTrainer", make)
    return found


def test_a_job_s_private_trainer_is_made_once_and_keeps_nothing_of_a_round(
    made: list[ExamplePrivateTrainer],
) -> None:
    """Batches and noise of every round come from that round's entropy alone."""
    device = Rounds()
    found = [device.train(key(number)) for number in (1, 2, 1, 3)]
    assert len(made) == 1
    for number, update in zip((1, 2, 1, 3), found, strict=True):
        assert (update == Rounds().train(key(number))).all()
    assert (found[0] != found[1]).any()
    going_on = key(1)  # one source for two rounds, as a device has it: each draws a key of its own
    assert (device.train(going_on) == found[0]).all()
    assert np.mean(device.train(going_on) == found[0]) < 0.01


def test_each_job_has_a_private_trainer_of_its_own(made: list[ExamplePrivateTrainer]) -> None:
    device = Rounds()
    larger = dataclasses.replace(device.terms, example_clip=2.0)
    ours = device.train(key(1))
    assert (device.train(key(1), larger) != ours).any()
    assert (device.train(key(1)) == ours).all()
    assert len(made) == 3  # the newest job's is kept


def test_a_private_trainer_that_was_interrupted_is_not_used_again(
    made: list[ExamplePrivateTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Rounds()
    before = device.train(key(1))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RoundedGaussian, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            device.train(key(1))
    assert (device.train(key(1)) == before).all()
    assert len(made) == 2
