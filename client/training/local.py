"""Local training: the part of a job's configuration that says what a client does with its data."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from fedsys.errors import ConfigError

__all__ = ["LocalConfig"]

OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """Local training.

    Attributes:
        epochs: Passes over the client's examples.
        batch_size: Examples per step; an epoch's last batch may be smaller.
        optimizer: ``"sgd"`` or ``"adam"`` (beta1 .9, beta2 .999, epsilon 1e-8).
        learning_rate: Step size.
        momentum: Momentum of SGD, in torch's form: v = momentum v + g.
        weight_decay: L2 penalty: adds weight_decay w to the gradient.
        proximal_mu: FedProx (Li et al. 2020, equation 2): adds proximal_mu (w - w_global).
    """

    epochs: int = 1
    batch_size: int = 10
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"local.{name} = {getattr(self, name)}: at least 1 is needed")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(
                f"local.optimizer = {self.optimizer!r}: allowed are {', '.join(OPTIMIZERS)}"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"local.{field.name} = {value}: must be finite and not negative")
        if self.optimizer == "adam" and self.momentum:
            raise ConfigError(
                f"local.momentum = {self.momentum} is SGD's; leave it out with optimizer 'adam'"
            )

    def steps(self, examples: int) -> int:
        """The number of steps of a client with `examples` examples."""
        return self.epochs * math.ceil(examples / self.batch_size)
