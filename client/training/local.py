"""Local training: the part of a job's configuration that says what a client does with its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fedsys.errors import ConfigError

__all__ = ["LocalConfig"]

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "linear", "cosine", "exponential")


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """Local training.

    Attributes:
        epochs: Passes over the client's examples.
        batch_size: Examples per step; an epoch's last batch may be smaller.
        optimizer: ``"sgd"``, ``"adam"`` (beta1 .9, beta2 .999, epsilon 1e-8), or the name of any
            other optimizer in ``torch.optim``, which trains on the loop path.
        optimizer_options: Further arguments of such an optimizer.
        learning_rate: Step size.
        momentum: Momentum of SGD, in torch's form: v = momentum v + g.
        weight_decay: L2 penalty: adds weight_decay w to the gradient.
        proximal_mu: FedProx (Li et al. 2020, equation 2): adds proximal_mu (w - w_global).
        gradient_clip: L2 norm to which a batch's gradient is scaled down; 0 for none.
        schedule: How the step size changes from the first round to the last.
        final_factor: The last round's step size over the first's.
        step_schedule: How the step size changes over the steps of one round.
        step_final_factor: The last step's step size over the first's.
        warmup_steps: Steps of a round over which the step size rises to its value.
        procedure: A local procedure: a built-in one's name, or ``"package.module:Attr"``.
        options: The procedure's own options.
    """

    epochs: int = 1
    batch_size: int = 10
    optimizer: str = "sgd"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    gradient_clip: float = 0.0
    schedule: str = "constant"
    final_factor: float = 0.1
    step_schedule: str = "constant"
    step_final_factor: float = 0.1
    warmup_steps: int = 0
    procedure: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("warmup_steps", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"local.{name} = {getattr(self, name)}: at least {least} is needed"
                )
        for name in ("schedule", "step_schedule"):
            if getattr(self, name) not in SCHEDULES:
                raise ConfigError(
                    f"local.{name} = {getattr(self, name)!r}: allowed are {', '.join(SCHEDULES)}"
                )
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"local.{item.name} = {value}: must be finite and not negative")
        for name in ("final_factor", "step_final_factor"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"local.{name} = {getattr(self, name):g}: a number above 0 and at most 1"
                )
        if self.optimizer == "adam" and self.momentum:
            raise ConfigError(
                f"local.momentum = {self.momentum} is SGD's; leave it out with optimizer 'adam'"
            )

    @property
    def plain(self) -> bool:
        """Whether every path can train so: SGD or Adam at one step size, without a procedure."""
        return (
            self.optimizer in OPTIMIZERS
            and not self.optimizer_options
            and not self.procedure
            and not self.gradient_clip
            and self.schedule == "constant"
            and self.step_schedule == "constant"
            and not self.warmup_steps
        )

    def steps(self, examples: int) -> int:
        """The number of steps of a client with `examples` examples."""
        return self.epochs * math.ceil(examples / self.batch_size)

    def rate(self, *, round: int, rounds: int, step: int, steps: int) -> float:
        """The step size of one step.

        >>> local = LocalConfig(learning_rate=0.5, schedule="linear", final_factor=0.2)
        >>> [round(local.rate(round=r, rounds=3, step=1, steps=4), 3) for r in (1, 2, 3)]
        [0.5, 0.3, 0.1]

        Args:
            round: The round, from 1.
            rounds: Number of rounds of the job.
            step: The step within the round, from 1.
            steps: Number of steps of this client in this round.
        """
        factor = _factor(self.schedule, round, rounds, self.final_factor)
        factor *= _factor(self.step_schedule, step, steps, self.step_final_factor)
        if step <= self.warmup_steps:
            factor *= step / (self.warmup_steps + 1)
        return self.learning_rate * factor


def _factor(schedule: str, at: int, of: int, last: float) -> float:
    """A schedule's factor: 1 at the first of `of` places, `last` at the last."""
    done = min(max((at - 1) / (of - 1), 0.0), 1.0) if of > 1 else 0.0
    if schedule == "linear":
        return 1 - done * (1 - last)
    if schedule == "cosine":
        return float(last + (1 - last) * (1 + math.cos(math.pi * done)) / 2)
    if schedule == "exponential":
        return float(last**done)
    return 1.0
