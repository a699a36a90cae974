"""Code that a folder names is used only where its user named the same."""

from __future__ import annotations

import pytest

from fedsys.config import load
from fedsys.config.named_code import NamedCode
from fedsys.errors import ConfigError

OWN = load(
    "quickstart",
    ["task.name=mine:Task", "server.strategy=mine:Step", "engine.backend=ray"],
    {"engine.address": "ray://cluster:10001"},
)
NAMED = NamedCode(task="mine:Task", strategy="mine:Step", cluster="ray://cluster:10001")


def test_all_that_is_not_built_in_has_to_be_named() -> None:
    assert NamedCode.of(OWN) == NAMED
    NAMED.require(OWN, "run")
    with pytest.raises(ConfigError) as refusal:
        NamedCode().require(OWN, "run")
    assert str(refusal.value) == (
        "run: its config.toml names custom code; if you trust it, add --task mine:Task --strategy "
        "mine:Step --backend ray://cluster:10001"
    )


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (NamedCode(task="mine:Task"), "add --strategy mine:Step --backend ray://cluster:10001"),
        (NamedCode(task="other:Task"), "--task other:Task: run was made with mine:Task"),
        (NamedCode(strategy="fedavg"), "--strategy fedavg: run was made with mine:Step"),
    ],
)
def test_one_name_does_not_stand_for_another(named: NamedCode, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        named.require(OWN, "run")
    assert said in str(refusal.value)


def test_procedures_partitions_and_metrics_are_code_too() -> None:
    own = load(
        "quickstart",
        ["local.procedure=mine:Step", "population.partition=mine:deal"],
        {"evaluation.metrics": ["auc", "mine:f1"]},
    )
    assert NamedCode.of(own).options == "--code mine:Step --code mine:deal --code mine:f1"
    NamedCode(code=("mine:deal", "mine:f1", "mine:Step")).require(own, "run")
    with pytest.raises(ConfigError, match=r"if you trust it, add --code mine:deal$"):
        NamedCode(code=("mine:Step", "mine:f1")).require(own, "run")
    with pytest.raises(ConfigError, match="--code mine:other: run was made with mine:Step, "):
        NamedCode(code=("mine:other",)).require(own, "run")


def test_what_is_built_in_needs_no_name() -> None:
    plain = load("quickstart")
    assert NamedCode.of(plain).options == ""
    NamedCode().require(plain, "run")
    NamedCode(task="digits").require(plain, "run")
    with pytest.raises(ConfigError, match="run was made with digits"):
        NamedCode(task="mine:Task").require(plain, "run")


def test_whatever_else_is_code_has_to_be_named_too() -> None:
    own = load(
        "quickstart",
        values={
            "population.partition": "mine:split",
            "cohort.sampling": "mine:choose",
            "privacy.max_participations": 3,
            "local.procedure": "mine:train",
            "evaluation.metrics": ["auc", "mine:figure", "mine:split"],
        },
    )
    named = NamedCode(code=("mine:figure", "mine:split", "mine:choose", "mine:train"))
    named.require(own, "run")
    with pytest.raises(ConfigError, match=r"if you trust it, add --code mine:train$"):
        NamedCode(code=named.code[:3]).require(own, "run")
    with pytest.raises(ConfigError, match="--code mine:other: run was made with mine:train, "):
        NamedCode(code=(*named.code, "mine:other")).require(own, "run")


def test_names_are_quoted_for_a_shell() -> None:
    evil = load("quickstart", values={"task.name": "a:b; rm -rf ~"})
    assert NamedCode.of(evil).options == "--task 'a:b; rm -rf ~'"
