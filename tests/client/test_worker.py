"""The owner's data: which rows a shard has, what it refuses, what its code's hash depends on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.worker import DataSpec, LocalData, code_sha256
from fedsys import tasks
from fedsys.errors import ConfigError, PolicyRefusal
from fedsys.privacy import make_plan
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
        ({"task": "mnist"}, "holds data of 'digits'"),
        ({"options": {"hidden": 8}}, "are asked for"),
        ({"dimension": 651}, "has 650 weights here"),
        ({"local": {"epochs": 0}}, "local.epochs"),
        ({"local": {"code": "x"}}, "not possible here"),
        ({"path": "warp"}, "engine.path"),
    ],
)
def test_what_cannot_be_trained_is_refused(change: dict[str, Any], reason: str) -> None:
    worker = LocalData(DataSpec(task="digits"))
    worker.check(TERMS)
    with pytest.raises(PolicyRefusal, match=reason):
        worker.check(dataclasses.replace(TERMS, **change))


def test_the_codes_hash_tells_tasks_apart() -> None:
    digits, synthetic = tasks.load("digits"), tasks.load("synthetic")
    assert code_sha256(digits) == code_sha256(tasks.load("digits", {"hidden": 8}))
    assert code_sha256(digits) != code_sha256(synthetic)
