"""Each strategy against its paper's update, written out coordinate by coordinate."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsys.errors import ConfigError
from server.strategies import STRATEGIES, Strategy, build_strategy

Array = NDArray[np.float64]
D, ROUNDS, RATE = 7, 6, 0.3


def _deltas() -> list[list[float]]:
    generator = np.random.default_rng(7)
    rounds = generator.normal(size=(ROUNDS, D))
    rounds[2] = 0.0  # a round without news: Yogi's sign(v - 0) and Adam's decay differ here
    rounds[4] *= 1e-3
    return [[float(value) for value in row] for row in rounds]


def _start() -> list[float]:
    return [float(value) for value in np.random.default_rng(8).normal(size=D)]


def _run(strategy: Strategy) -> Array:
    weights = np.array(_start())
    for delta in _deltas():
        weights = np.asarray(strategy.apply(weights, np.array(delta)))
    return weights


def test_fedavg_is_the_mean_of_the_clients_models() -> None:
    """McMahan et al. 2017, Algorithm 1: w_{t+1} = sum_k n_k/n w^k, here with equal n_k."""
    generator = np.random.default_rng(1)
    weights = generator.normal(size=D)
    clients = generator.normal(size=(5, D))
    mean_update = sum(client - weights for client in clients) / 5
    expected = [sum(clients[k][i] for k in range(5)) / 5 for i in range(D)]
    actual = build_strategy("fedavg", learning_rate=1.0).apply(weights, mean_update)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_fedprox_has_fedavgs_server_step() -> None:
    """Li et al. 2020, Algorithm 2, line 6: the server averages."""
    np.testing.assert_array_equal(
        _run(build_strategy("fedprox", learning_rate=RATE)),
        _run(build_strategy("fedavg", learning_rate=RATE)),
    )


def test_fedavgm_follows_hsu_et_al() -> None:
    """Hsu et al. 2019, section 3: v <- beta v + dw, w <- w - v, where dw = w_global - w_local."""
    beta = 0.9
    expected = _start()
    for i in range(D):
        v = 0.0
        for delta in _deltas():
            v = beta * v - delta[i]
            expected[i] = expected[i] - RATE * v
    actual = _run(build_strategy("fedavgm", learning_rate=RATE, momentum=beta))
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def _adagrad(v: float, delta: float, beta2: float) -> float:
    return v + delta**2


def _adam(v: float, delta: float, beta2: float) -> float:
    return beta2 * v + (1 - beta2) * delta**2


def _yogi(v: float, delta: float, beta2: float) -> float:
    sign = (v > delta**2) - (v < delta**2)
    return v - (1 - beta2) * delta**2 * sign


@pytest.mark.parametrize(
    ("name", "second_moment", "beta1"),
    [
        ("fedadagrad", _adagrad, 0.0),
        ("fedadagrad", _adagrad, 0.5),
        ("fedadam", _adam, 0.9),
        ("fedyogi", _yogi, 0.9),
    ],
)
def test_adaptive_strategies_follow_reddi_et_al(
    name: str, second_moment: Callable[[float, float, float], float], beta1: float
) -> None:
    """Reddi et al. 2021, Algorithm 2, with v_{-1} = tau^2 and m_{-1} = 0."""
    beta2, tau = 0.95, 1e-2
    expected = _start()
    for i in range(D):
        m, v = 0.0, tau**2
        for delta in _deltas():
            m = beta1 * m + (1 - beta1) * delta[i]
            v = second_moment(v, delta[i], beta2)
            expected[i] = expected[i] + RATE * m / (math.sqrt(v) + tau)
    strategy = build_strategy(name, learning_rate=RATE, beta1=beta1, beta2=beta2, tau=tau)
    np.testing.assert_allclose(_run(strategy), expected, rtol=1e-12)


@pytest.mark.parametrize(("name", "beta1"), [("fedadam", 0.9), ("fedyogi", 0.9), ("fedadagrad", 0)])
def test_an_unstated_beta1_is_the_papers(name: str, beta1: float) -> None:
    np.testing.assert_array_equal(
        _run(build_strategy(name)), _run(build_strategy(name, beta1=beta1))
    )


def _build(name: str) -> Strategy:
    return build_strategy(name, momentum=0.5 if name == "fedavgm" else 0.0)


@pytest.mark.parametrize("name", STRATEGIES)
class TestEveryStrategy:
    """What the coordinator relies on, for each implementation."""

    def test_keeps_dtype_and_leaves_its_arguments_alone(self, name: str) -> None:
        strategy = _build(name)
        weights = np.linspace(-1, 1, D, dtype=np.float32)
        update = np.ones(D)
        before = weights.copy()
        for _ in range(2):
            after = strategy.apply(weights, update)
            assert after.dtype == np.float32
            assert not np.shares_memory(after, weights)
        np.testing.assert_array_equal(weights, before)
        np.testing.assert_array_equal(update, np.ones(D))

    def test_continues_from_a_checkpoint_to_the_bit(self, name: str) -> None:
        straight, interrupted = _build(name), _build(name)
        resumed = _build(name)
        weights = np.array(_start())
        other = weights.copy()
        resumed.load(interrupted.state())  # before any step there is nothing to keep
        for t, delta in enumerate(_deltas()):
            weights = np.asarray(straight.apply(weights, np.array(delta)))
            if t < 3:
                other = np.asarray(interrupted.apply(other, np.array(delta)))
                continue
            if t == 3:
                resumed.load(interrupted.state())
            other = np.asarray(resumed.apply(other, np.array(delta)))
        np.testing.assert_array_equal(weights, other)

    def test_state_is_a_copy(self, name: str) -> None:
        strategy, twin = _build(name), _build(name)
        weights, update = np.zeros(D), np.ones(D)
        strategy.apply(weights, update)
        twin.apply(weights, update)
        for value in strategy.state().values():
            value[:] = 1e9
        np.testing.assert_array_equal(strategy.apply(weights, update), twin.apply(weights, update))

    def test_refuses_vectors_that_do_not_fit(self, name: str) -> None:
        with pytest.raises(ConfigError, match="one length"):
            _build(name).apply(np.zeros(3), np.zeros(4))
        with pytest.raises(ConfigError, match="one length"):
            _build(name).apply(np.zeros((2, 2)), np.zeros((2, 2)))

    def test_refuses_anothers_state(self, name: str) -> None:
        with pytest.raises(ConfigError, match="another strategy"):
            _build(name).load({"moment": np.zeros(D)})


def test_a_state_of_another_model_or_with_nan_is_refused() -> None:
    strategy = build_strategy("fedadam")
    with pytest.raises(ConfigError, match="finite"):
        strategy.load({"first": np.full(D, np.nan), "second": np.ones(D)})
    with pytest.raises(ConfigError, match="differ in length"):
        strategy.load({"first": np.zeros(D), "second": np.ones(D + 1)})
    strategy.load({"first": np.zeros(D), "second": np.ones(D)})
    with pytest.raises(ConfigError, match="another model"):
        strategy.apply(np.zeros(D + 1), np.zeros(D + 1))


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'fedadam'") as caught:
        build_strategy("FedAdm")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        build_strategy("zzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"learning_rate": math.nan},
        {"momentum": 1.0},
        {"beta1": -0.1},
        {"beta2": 1.0},
        {"tau": 0.0},
    ],
)
def test_numbers_out_of_range_are_named(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"server.{name} = "):
        build_strategy("fedavgm", None, **options)


OWN = """
class Own:
    def __init__(self, options):
        self.rate = options.learning_rate / 2
    def apply(self, weights, update):
        return weights + self.rate * update
    def state(self):
        return {}
    def load(self, state):
        pass

class Bare:
    def __init__(self, options):
        pass

def no_arguments():
    pass

def raises(options):
    raise KeyError("a")

constant = 3
"""


def test_a_users_own_strategy_is_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_server_step.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    strategy = build_strategy("my_server_step:Own", learning_rate=3.0)
    np.testing.assert_array_equal(strategy.apply(np.zeros(2), np.ones(2)), [1.5, 1.5])
    for attribute, complaint in (
        ("Bare", "lacks apply"),
        ("no_arguments", "one StrategyOptions"),
        ("raises", "one StrategyOptions: KeyError: 'a'"),
        ("constant", "no callable"),
        ("Absent", "cannot be loaded"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            build_strategy(f"my_server_step:{attribute}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build_strategy("no_such_module_anywhere:Own")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build_strategy(":Own")


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam"])
def test_a_step_that_overflows_is_infinite_without_a_warning(
    name: str, recwarn: pytest.WarningsRecorder
) -> None:
    step = build_strategy(name, learning_rate=1e300)
    weights = step.apply(np.zeros(D, np.float32), np.full(D, 1e-3))
    assert not np.isfinite(weights).all()
    assert not recwarn.list
