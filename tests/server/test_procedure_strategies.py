"""The server's parts of SCAFFOLD and FedNova against the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest

from fedsys.errors import ConfigError
from server.strategies import build_strategy
from server.strategy_base import ReceivingStrategy, StrategyOptions, shared_by


def test_scaffold_moves_its_control_variate_by_the_fraction_that_it_heard() -> None:
    options = StrategyOptions(learning_rate=0.5, dimension=2, clients=20, expected=5.0)
    strategy = build_strategy("scaffold", options)
    assert isinstance(strategy, ReceivingStrategy)
    for _ in range(2):
        strategy.receive({"control": np.array([4.0, -8.0])})
        weights = strategy.apply(np.zeros(2), np.array([1.0, 2.0]))
    assert weights.tolist() == [0.5, 1.0]
    assert shared_by(strategy)["control"].tolist() == [2.0, -4.0]
    again = build_strategy("scaffold", options)
    again.load(strategy.state())
    assert shared_by(again)["control"].tolist() == [2.0, -4.0]


def test_fednova_multiplies_the_mean_step_by_the_mean_number_of_steps() -> None:
    strategy = build_strategy("fednova")
    assert isinstance(strategy, ReceivingStrategy)
    strategy.receive({"steps": np.array(6.0)})
    assert strategy.apply(np.ones(1), np.array([0.5])).tolist() == [4.0]
    strategy.receive({"steps": np.array(-3.0)})  # noise
    assert strategy.apply(np.ones(1), np.array([0.5])).tolist() == [1.5]


@pytest.mark.parametrize("name", ["scaffold", "fednova"])
def test_what_is_not_sent_is_named(name: str) -> None:
    strategy = build_strategy(name)
    assert isinstance(strategy, ReceivingStrategy)
    with pytest.raises(ConfigError, match=f"server.strategy = '{name}' needs the block"):
        strategy.receive({})
    with pytest.raises(ConfigError, match=r"server\.options = \{'a': 1\}"):
        build_strategy(name, options={"a": 1})
