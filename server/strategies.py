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
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError

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

Vector = NDArray[np.floating[Any]]


@runtime_checkable
class Strategy(Protocol):
    """The outer optimizer. One instance serves one job and receives its rounds in order."""

    def apply(self, weights: Vector, update: Vector) -> Vector:
        """Take one server step.

        Args:
            weights: (d,) the global model, any floating dtype.
            update: (d,) the estimated mean of ``w_client - w_global``.

        Returns:
            (d,) the next global model, a new array with the dtype of ``weights``.
        """

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of everything that the next step depends on, for a checkpoint."""

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what ``state`` returned; ConfigError if it is not this strategy's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StrategyOptions:
    """The ``[server]`` section of a configuration, passed to a custom strategy's factory."""

    learning_rate: float = 1.0
    momentum: float = 0.0
    beta1: float | None = None
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _require("learning_rate", self.learning_rate, self.learning_rate > 0, "a number > 0")
        for name, value in (
            ("momentum", self.momentum),
            ("beta1", self.beta1),
            ("beta2", self.beta2),
        ):
            if value is not None:
                _require(name, value, 0 <= value < 1, "a number in [0, 1)")
        _require("tau", self.tau, self.tau > 0, "a number > 0")


class FedAvg:
    """The mean of the clients' models.

    ``w += η Δ``; with η = 1 this is McMahan et al. 2017, "Communication-Efficient Learning of Deep
    Networks from Decentralized Data", Algorithm 1, at equal weights.
    """

    def __init__(self, *, learning_rate: float = 1.0) -> None:
        self._rate = learning_rate

    def apply(self, weights: Vector, update: Vector) -> Vector:
        """See `Strategy.apply`."""
        _check_shapes(weights, update)
        return _advance(weights, self._rate * update.astype(np.float64))

    def state(self) -> dict[str, NDArray[Any]]:
        """Empty: a step depends on no earlier one."""
        return {}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Strategy.load`."""
        _check_state("fedavg", state, ())


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
        _check_shapes(weights, update, self._velocity)
        velocity = update.astype(np.float64)
        if self._velocity is not None:
            velocity += self._momentum * self._velocity
        self._velocity = velocity
        return _advance(weights, self._rate * velocity)

    def state(self) -> dict[str, NDArray[Any]]:
        """See `Strategy.state`: ``velocity`` (d,) float64, once a step was taken."""
        return {} if self._velocity is None else {"velocity": self._velocity.copy()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Strategy.load`."""
        loaded = _check_state("fedavgm", state, ("velocity",))
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
        _check_shapes(weights, update, self._first)
        delta = update.astype(np.float64)
        first = np.zeros_like(delta) if self._first is None else self._first
        second = np.full_like(delta, self._tau**2) if self._second is None else self._second
        self._first = self._beta1 * first + (1 - self._beta1) * delta
        self._second = self._next_second(second, delta * delta)
        return _advance(weights, self._rate * self._first / (np.sqrt(self._second) + self._tau))

    def state(self) -> dict[str, NDArray[Any]]:
        """See `Strategy.state`: ``first`` and ``second`` (d,) float64, once a step was taken."""
        if self._first is None or self._second is None:
            return {}
        return {"first": self._first.copy(), "second": self._second.copy()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Strategy.load`."""
        loaded = _check_state(self.name, state, ("first", "second"))
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


STRATEGIES: Mapping[str, Callable[[StrategyOptions], Strategy]] = {
    "fedavg": _fedavg,
    "fedavgm": _fedavgm,
    "fedprox": _fedavg,
    "fedadagrad": _fedadagrad,
    "fedadam": _adaptive(FedAdam),
    "fedyogi": _adaptive(FedYogi),
}


def build_strategy(
    name: str,
    *,
    learning_rate: float = 1.0,
    momentum: float = 0.0,
    beta1: float | None = None,
    beta2: float = 0.99,
    tau: float = 1e-3,
) -> Strategy:
    """Build the strategy that ``server.strategy`` names.

    Args:
        name: One of `STRATEGIES`, or ``"package.module:Attr"``: a callable that takes
            `StrategyOptions` and returns a `Strategy`.
        learning_rate: The server's learning rate η.
        momentum: Momentum β of FedAvgM; the others ignore it.
        beta1: Decay of the first moment; None is the paper's choice (0.9, or 0 for FedAdagrad).
        beta2: Decay of the second moment (FedAdam, FedYogi).
        tau: Adaptivity τ, the smallest scale that counts as signal (FedAdagrad, FedAdam, FedYogi).

    Raises:
        ConfigError: The name is unknown, a number is out of range, or the object built is not a
            strategy.
    """
    options = StrategyOptions(
        learning_rate=learning_rate, momentum=momentum, beta1=beta1, beta2=beta2, tau=tau
    )
    if ":" in name:
        return _build_own(name, options)
    if name not in STRATEGIES:
        nearest = difflib.get_close_matches(name.lower(), STRATEGIES, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        raise ConfigError(
            f"server.strategy = '{name}' is unknown: use one of {', '.join(STRATEGIES)}, "
            f'or "package.module:Attr" for your own{hint}'
        )
    return STRATEGIES[name](options)


def _build_own(name: str, options: StrategyOptions) -> Strategy:
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(_import(module_name), attribute)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(f"server.strategy = '{name}' cannot be loaded: {error}") from error
    if not callable(factory):
        raise ConfigError(f"server.strategy = '{name}' is no callable taking StrategyOptions")
    try:
        strategy = factory(options)
    except TypeError as error:
        raise ConfigError(
            f"server.strategy = '{name}' must be callable with one StrategyOptions: {error}"
        ) from error
    if not isinstance(strategy, Strategy):
        raise ConfigError(
            f"server.strategy = '{name}' returned {type(strategy).__name__}, "
            "which lacks apply(weights, update), state() or load(state)"
        )
    return strategy


def _import(module_name: str) -> Any:
    """Import the user's module, from the working directory too, as ``python -m`` would."""
    here = str(Path.cwd())
    if here in sys.path:
        return importlib.import_module(module_name)
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    finally:
        sys.path.remove(here)


def _require(name: str, value: float, holds: bool, expected: str) -> None:
    if not (math.isfinite(value) and holds):
        raise ConfigError(f"server.{name} = {value!r} must be {expected}")


def _check_shapes(weights: Vector, update: Vector, kept: NDArray[np.float64] | None = None) -> None:
    if weights.ndim != 1 or weights.shape != update.shape:
        raise ConfigError(
            f"weights {weights.shape} and update {update.shape} must be flat vectors of one length"
        )
    if kept is not None and kept.shape != weights.shape:
        raise ConfigError(
            f"the strategy's state has {kept.size} coordinates and the model {weights.size}: "
            "it belongs to another model"
        )


def _check_state(
    strategy: str, state: Mapping[str, NDArray[Any]], names: tuple[str, ...]
) -> dict[str, NDArray[np.float64]]:
    """Copy a checkpoint's state, which holds exactly ``names`` or, before any step, nothing."""
    if state and set(state) != set(names):
        raise ConfigError(
            f"the checkpoint's strategy state holds {', '.join(sorted(state))}, "
            f"'{strategy}' keeps {', '.join(names) or 'nothing'}: it belongs to another strategy"
        )
    loaded = {name: np.array(state[name], dtype=np.float64) for name in state}
    if any(value.ndim != 1 or not np.isfinite(value).all() for value in loaded.values()):
        raise ConfigError(f"the checkpoint's '{strategy}' state is not finite flat vectors")
    if len({value.size for value in loaded.values()}) > 1:
        raise ConfigError(f"the checkpoint's '{strategy}' vectors differ in length")
    return loaded


def _advance(weights: Vector, step: NDArray[np.float64]) -> Vector:
    """Add in float64, so that rounding to the model's dtype happens only once."""
    return (weights + step).astype(weights.dtype)
