"""What a coordinator needs of a job's model; who joins server and client provides it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsys.config import Config
from fedsys.preprocessing import Preprocessing
from fedsys.privacy.encoding.parts import Parts

__all__ = ["JobModel", "ModelSource"]


class JobModel(Protocol):
    """A task's model as flat weights, and the coordinator's own test data."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Sizes of the parameters, in the order of the flat vector; d in all."""
        ...

    @property
    def parts(self) -> Parts:
        """What local training returns: the update, and a procedure's blocks."""
        ...

    @property
    def task_sha256(self) -> str:
        """Of the installed task's code, as devices compute it."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """What the task declares."""
        ...

    @property
    def frozen_sha256(self) -> str | None:
        """Binds what of the model is not trained; None where no model is stored."""
        ...

    @property
    def frozen_compared(self) -> str:
        """The same for devices, which compare it with theirs; empty where nothing is frozen."""
        ...

    def initial_weights(self) -> NDArray[np.float32]:
        """(d,)."""
        ...

    def evaluate(self, weights: NDArray[np.float32]) -> dict[str, float] | None:
        """Metrics on the coordinator's test data; None where it has none."""
        ...

    def state_dict(self, weights: NDArray[np.float32]) -> dict[str, Any]:
        """For ``model.pt``."""
        ...


ModelSource = Callable[[Config], JobModel]
"""Raises FedsysError where the configuration names something that is not here."""
