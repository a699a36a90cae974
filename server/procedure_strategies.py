"""The server's part of methods whose clients send more than their update.

Each goes with the local procedure of its name; see `client.training.procedure`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ConfigError
from server.strategy_base import Vector, advance, check_shapes, check_state

__all__ = ["FedNova", "Scaffold"]


class Scaffold:
    """The server's part of SCAFFOLD: ``w += η Δ`` and ``c += (S / N) mean(c_i+ - c_i)``.

    Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
    Algorithm 1, lines 16 and 17. It sends c to the clients as ``control``.

    Args:
        learning_rate: η.
        fraction: S / N, the expected fraction of the population that a round hears.
        dimension: d.
    """

    def __init__(self, *, learning_rate: float = 1.0, fraction: float, dimension: int) -> None:
        self._rate, self._fraction = learning_rate, fraction
        self._control = np.zeros(dimension, dtype=np.float64)

    def receive(self, sent: Mapping[str, NDArray[np.float64]]) -> None:
        """See `ReceivingStrategy.receive`."""
        self._control = self._control + self._fraction * _block("scaffold", sent, "control")

    def apply(self, weights: Vector, update: Vector) -> Vector:
        """See `Strategy.apply`."""
        check_shapes(weights, update)
        return advance(weights, self._rate * update.astype(np.float64))

    def shared(self) -> Mapping[str, NDArray[np.float32]]:
        """See `SharingStrategy.shared`: c as ``control``."""
        return {"control": self._control.astype(np.float32)}

    def state(self) -> dict[str, NDArray[Any]]:
        """See `Strategy.state`."""
        return {"control": self._control.copy()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Strategy.load`."""
        self._control = check_state("scaffold", state, ("control",)).get("control", self._control)


class FedNova:
    """The server's part of FedNova: ``w += η mean(t) mean(d)``.

    Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
    Optimization", equation 8, at equal weights: d is a client's update over its number of steps t.
    """

    def __init__(self, *, learning_rate: float = 1.0) -> None:
        self._rate, self._steps = learning_rate, 1.0

    def receive(self, sent: Mapping[str, NDArray[np.float64]]) -> None:
        """See `ReceivingStrategy.receive`; a mean below one step is noise, and counts as one."""
        self._steps = max(float(_block("fednova", sent, "steps")), 1.0)

    def apply(self, weights: Vector, update: Vector) -> Vector:
        """See `Strategy.apply`."""
        check_shapes(weights, update)
        return advance(weights, self._rate * self._steps * update.astype(np.float64))

    def state(self) -> dict[str, NDArray[Any]]:
        """Empty: a step depends on no earlier one."""
        return {}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Strategy.load`."""
        check_state("fednova", state, ())


def _block(
    strategy: str, sent: Mapping[str, NDArray[np.float64]], name: str
) -> NDArray[np.float64]:
    if name not in sent:
        raise ConfigError(
            f"server.strategy = '{strategy}' needs the block '{name}', which local.procedure = "
            f"'{strategy}' sends"
        )
    return sent[name]
