"""What the server does with the mean client update: the outer optimizer of a federated job.

A strategy sees one flat vector a round, the decoded private estimate of the cohort's mean update
``Δ = mean(w_client - w_global)``, never a single client's. Everything here is therefore
post-processing: it costs no privacy and may keep state over rounds.

The mean is *unweighted*, also in FedAvg, where McMahan et al. 2017 weight clients by their number
of examples. A weight would be client data outside the clipped, noised vector, and the largest
weight would multiply the sensitivity to one client.

>>> import numpy as np
>>> step = build_strategy("fedavgm", learning_rate=1.0, momentum=0.5)
>>> weights = step.apply(np.zeros(2), np.array([1.0, -2.0]))
>>> step.apply(weights, np.array([1.0, -2.0]))
array([ 2.5, -5. ])

FedProx (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", Algorithm 2) changes
only the clients' objective (``local.proximal_mu``); its server step is FedAvg's, and ``fedprox``
selects that step.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.current_folder import importable_here
from fedsys.errors import ConfigError, FedsysError
from server.procedure_strategies import FedNova, Scaffold
from server.strategy_base import (
    Strategy,
    StrategyOptions,
    Vector,
    advance,
    check_shapes,
    check_state,
)

__all__ = [
    "STRATEGIES",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "Strategy",
    "StrategyOptions",
    "build_strategy",
]


class FedAvg:
    """The mean of the clients' models.

    ``w += η Δ``; with η = 1 this is McMahan et al. 2017, "Communication-Efficient Learning of Deep
    Networks from Decentralized Data", Algorithm 1, at equal weights.
    """

    def __init__(self, *, learning_rate: float = 1.0) -> None:
        self._rate = learning_rate

    def apply(self, weights: Vector, update: Vector) -> Vector:
        """See `Strategy.apply`."""
        check_shapes(weights, update)
        step = update if self._rate == 1 else self._rate * update
        return advance(weights, step.astype(np.float64, copy=False))

    def state(self) -> dict[str, NDArray[Any]]:
        """Empty: a step depends on no earlier one."""
        return {}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Strategy.load`."""
        check_state("fedavg", state, ())


class FedAvgM:
    """FedAvg with server momentum.

    ``v = β v + Δ``, ``w += η v`` (Hsu, Qi, Brown 2019, "Measuring the Effects of Non-Identical
    Data Distribution for Federated Visual Classification", section 3).
    """

    def __init__(self, *, learning_rate: float = 1.0, momentum: float = 0.9) -> None:
        self._rate = learning_rate
        self._momentum = momentum
        self._velocity: NDArray[np.float64] | None = None

    def apply(self, weights: Vector, update: Vector) -> Vector:
        """See `Strategy.apply`."""
        check_shapes(weights, update, self._velocity)
        velocity = update.astype(np.float64)
        if self._velocity is not None:
            velocity += self._momentum * self._velocity
        self._velocity = velocity
        return advance(weights, self._rate * velocity)

    def state(self) -> dict[str, NDArray[Any]]:
        """See `Strategy.state`: ``velocity`` (d,) float64, once a step was taken."""
        return {} if self._velocity is None else {"velocity": self._velocity.copy()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Strategy.load`."""
        loaded = check_state("fedavgm", state, ("velocity",))
        self._velocity = loaded.get("velocity")


class _Adaptive:
    """The common part of Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 2.

    ``m = β1 m + (1 - β1) Δ``, v by the subclass, ``w += η m / (sqrt(v) + τ)``. m starts at 0 and v
    at τ², as the paper requires (``v_{-1} >= τ²``), and there is no bias correction.
    """

    name: str

    def __init__(
        self,
        *,
        learning_rate: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
    ) -> None:
        self._rate = learning_rate
        self._beta1 = beta1
        self._beta2 = beta2
        self._tau = tau
        self._first: NDArray[np.float64] | None = None
        self._second: NDArray[np.float64] | None = None

    def _next_second(
        self, second: NDArray[np.float64], square: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        raise NotImplementedError

    def apply(self, weights: Vector, update: Vector) -> Vector:
        """See `Strategy.apply`."""
        check_shapes(weights, update, self._first)
        delta = update.astype(np.float64)
        first = np.zeros_like(delta) if self._first is None else self._first
        second = np.full_like(delta, self._tau**2) if self._second is None else self._second
        self._first = self._beta1 * first + (1 - self._beta1) * delta
        self._second = self._next_second(second, delta * delta)
        return advance(weights, self._rate * self._first / (np.sqrt(self._second) + self._tau))

    def state(self) -> dict[str, NDArray[Any]]:
        """See `Strategy.state`: ``first`` and ``second`` (d,) float64, once a step was taken."""
        if self._first is None or self._second is None:
            return {}
        return {"first": self._first.copy(), "second": self._second.copy()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Strategy.load`."""
        loaded = check_state(self.name, state, ("first", "second"))
        self._first = loaded.get("first")
        self._second = loaded.get("second")


class FedAdagrad(_Adaptive):
    """``v = v + Δ²``. Its usual form has no first moment (``beta1=0``, the default)."""

    name = "fedadagrad"

    def __init__(
        self, *, learning_rate: float = 1.0, beta1: float = 0.0, tau: float = 1e-3
    ) -> None:
        super().__init__(learning_rate=learning_rate, beta1=beta1, tau=tau)

    def _next_second(
        self, second: NDArray[np.float64], square: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return second + square


class FedAdam(_Adaptive):
    """``v = β2 v + (1 - β2) Δ²``."""

    name = "fedadam"

    def _next_second(
        self, second: NDArray[np.float64], square: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return self._beta2 * second + (1 - self._beta2) * square


class FedYogi(_Adaptive):
    """``v = v - (1 - β2) Δ² sign(v - Δ²)``."""

    name = "fedyogi"

    def _next_second(
        self, second: NDArray[np.float64], square: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return second - (1 - self._beta2) * square * np.sign(second - square)


def _fedavg(options: StrategyOptions) -> Strategy:
    return FedAvg(learning_rate=options.learning_rate)


def _fedavgm(options: StrategyOptions) -> Strategy:
    return FedAvgM(learning_rate=options.learning_rate, momentum=options.momentum)


def _fedadagrad(options: StrategyOptions) -> Strategy:
    return FedAdagrad(
        learning_rate=options.learning_rate, beta1=options.beta1 or 0.0, tau=options.tau
    )


def _adaptive(kind: type[FedAdam] | type[FedYogi]) -> Callable[[StrategyOptions], Strategy]:
    def build(options: StrategyOptions) -> Strategy:
        return kind(
            learning_rate=options.learning_rate,
            beta1=0.9 if options.beta1 is None else options.beta1,
            beta2=options.beta2,
            tau=options.tau,
        )

    return build


def _scaffold(options: StrategyOptions) -> Strategy:
    return Scaffold(
        learning_rate=options.learning_rate,
        fraction=options.expected / options.clients if options.clients else 1.0,
        dimension=options.dimension,
    )


def _fednova(options: StrategyOptions) -> Strategy:
    return FedNova(learning_rate=options.learning_rate)


STRATEGIES: Mapping[str, Callable[[StrategyOptions], Strategy]] = {
    "fedavg": _fedavg,
    "fedavgm": _fedavgm,
    "fedprox": _fedavg,
    "fedadagrad": _fedadagrad,
    "fedadam": _adaptive(FedAdam),
    "fedyogi": _adaptive(FedYogi),
    "scaffold": _scaffold,
    "fednova": _fednova,
}


def build_strategy(
    name: str, options: StrategyOptions | None = None, /, **numbers: Any
) -> Strategy:
    """Build the strategy that ``server.strategy`` names.

    Args:
        name: One of `STRATEGIES`, or ``"package.module:Attr"``: a callable that takes
            `StrategyOptions` and returns a `Strategy`.
        options: What it takes.
        numbers: Fields of `StrategyOptions` that replace those of `options`.

    Raises:
        ConfigError: The name is unknown, a number is out of range, or the object built is not a
            strategy.
    """
    options = replace(options or StrategyOptions(), **numbers)
    if ":" in name:
        return _build_own(name, options)
    if name not in STRATEGIES:
        nearest = difflib.get_close_matches(name.lower(), STRATEGIES, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        raise ConfigError(
            f"server.strategy = '{name}' is unknown: use one of {', '.join(STRATEGIES)}, "
            f'or "package.module:Attr" for your own{hint}'
        )
    if options.options:
        raise ConfigError(
            f"server.options = {dict(options.options)}: '{name}' takes none; they are for a "
            f"strategy of your own"
        )
    return STRATEGIES[name](options)


def _build_own(name: str, options: StrategyOptions) -> Strategy:
    module_name, _, attribute = name.partition(":")
    try:
        with importable_here():
            module = importlib.import_module(module_name)
        factory = getattr(module, attribute)
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        words = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"server.strategy = '{name}' cannot be loaded: {type(error).__name__}: {words}"
        ) from error
    if not callable(factory):
        raise ConfigError(f"server.strategy = '{name}' is no callable taking StrategyOptions")
    try:
        strategy = factory(options)
    except FedsysError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        words = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"server.strategy = '{name}' must be callable with one StrategyOptions: "
            f"{type(error).__name__}: {words}"
        ) from error
    if not isinstance(strategy, Strategy):
        raise ConfigError(
            f"server.strategy = '{name}' returned {type(strategy).__name__}, "
            "which lacks apply(weights, update), state() or load(state)"
        )
    return strategy
