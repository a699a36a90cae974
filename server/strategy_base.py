"""What a strategy is, what it is made from, and the checks that all of them share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError

__all__ = [
    "ReceivingStrategy",
    "SharingStrategy",
    "Strategy",
    "StrategyOptions",
    "Vector",
    "advance",
    "check_shapes",
    "check_state",
    "shared_by",
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


@runtime_checkable
class SharingStrategy(Strategy, Protocol):
    """A strategy that also sends tensors to all clients, with each round's model."""

    def shared(self) -> Mapping[str, NDArray[np.float32]]:
        """What the next round's clients find in ``local.shared``: the same names and shapes in
        every round, known before the first."""


@runtime_checkable
class ReceivingStrategy(Strategy, Protocol):
    """A strategy that takes the blocks that a local procedure sends besides the update."""

    def receive(self, sent: Mapping[str, NDArray[np.float64]]) -> None:
        """Called before ``apply`` in each round, with the estimated mean of each block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StrategyOptions:
    """The ``[server]`` section of a configuration, passed to a custom strategy's factory.

    Attributes:
        learning_rate: The server's learning rate.
        momentum: As configured.
        beta1: As configured.
        beta2: As configured.
        tau: As configured.
        options: ``[server.options]``, the strategy's own.
        dimension: d, the length of the flat model.
        clients: N, the size of the population.
        expected: Expected size of a cohort, by which every sum is divided.
        rounds: Number of rounds of the job.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0
    beta1: float | None = None
    beta2: float = 0.99
    tau: float = 1e-3
    options: Mapping[str, Any] = field(default_factory=dict)
    dimension: int = 0
    clients: int = 0
    expected: float = 0.0
    rounds: int = 0

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


def shared_by(strategy: Strategy) -> dict[str, NDArray[np.float32]]:
    """What a strategy sends to all clients with the next model, checked.

    Raises:
        ConfigError: it is no dict of finite arrays.
    """
    shared = getattr(strategy, "shared", None)  # quicker than to ask for `SharingStrategy`
    found: dict[str, NDArray[np.float32]] = {}
    for name, value in dict(shared() if callable(shared) else {}).items():
        array = np.asarray(value)
        if not isinstance(name, str) or array.dtype.kind not in "fiub":
            raise ConfigError(
                f"server.strategy: shared() returned {name!r}: {array.dtype}; give names to arrays "
                f"of numbers"
            )
        found[name] = array.astype(np.float32)
    return found


def _require(name: str, value: float, holds: bool, expected: str) -> None:
    if not (math.isfinite(value) and holds):
        raise ConfigError(f"server.{name} = {value!r} must be {expected}")


def check_shapes(weights: Vector, update: Vector, kept: NDArray[np.float64] | None = None) -> None:
    """Raise ConfigError unless all are flat vectors of one length."""
    if weights.ndim != 1 or weights.shape != update.shape:
        raise ConfigError(
            f"weights {weights.shape} and update {update.shape} must be flat vectors of one length"
        )
    if kept is not None and kept.shape != weights.shape:
        raise ConfigError(
            f"the strategy's state has {kept.size} coordinates and the model {weights.size}: "
            "it belongs to another model"
        )


def check_state(
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


def advance(weights: Vector, step: NDArray[np.float64]) -> Vector:
    """Add in float64, so that rounding to the model's dtype happens only once. What overflows is
    infinite, for the caller to refuse."""
    found = np.empty_like(weights)
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(weights, step, out=found, dtype=np.float64, casting="same_kind")
    return found
