"""example-gaussian: DP-SGD inside each client; the unit of protection is one example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsys.errors import MechanismError
from fedsys.privacy import validation
from fedsys.privacy.events.base import GaussianStep, RoundedTerms, SumEvent
from fedsys.privacy.views import View

__all__ = ["ExampleEvent"]

_GRID = float(1 << 20)
"""Integers a clipping norm of the optimizer's grid, `client.training.example.optimizer.UNITS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleEvent(SumEvent):
    """A round of Poisson-sampled, per-example clipped, noisy steps in each client.

    ``clip`` bounds a client's update for the ring alone; ``noise_multiplier`` is the local
    optimizer's, relative to its own per-example clipping norm. What leaves a client is private
    towards everybody, so all views cost the same: nothing but the steps themselves amplifies.

    Attributes:
        example_rate: probability of an example being in a local batch; the largest of any client.
        steps: local steps in one round, at most.
    """

    mechanism: ClassVar[str] = "example-gaussian"
    keys: ClassVar[tuple[str, ...]] = ("example_rate", "steps")

    example_rate: float
    steps: int

    def _check(self) -> None:
        validation.probability("example_rate", self.example_rate)
        validation.integer("steps", self.steps)
        if self.encoding.kind != "wide":
            raise MechanismError(
                f"encoding={self.encoding.kind!r} does not go with example-gaussian: use "
                "encoding='wide'"
            )

    @property
    def share_multiplier(self) -> float:
        """0: nothing is added to the sum beside what the optimizers added."""
        return 0.0

    @property
    def total_multiplier(self) -> float:
        """0, likewise."""
        return 0.0

    def _steps(self) -> GaussianStep:
        return GaussianStep(
            multiplier=self.noise_multiplier, rate=self.example_rate, count=self.steps
        )

    def outsider_step(self) -> GaussianStep:
        """The local steps of one client."""
        return self._steps()

    def together_step(self) -> GaussianStep:
        """The local steps of one client."""
        return self._steps()

    def server_step(self, survivors: int | None = None) -> GaussianStep:
        """The local steps of one client."""
        return self._steps()

    def terms(self, view: View) -> RoundedTerms | None:
        """One a step: the optimizer rounds each noisy gradient once, on its own grid."""
        sigma = self.noise_multiplier * _GRID
        return RoundedTerms(sigma=sigma, fewest=1, most=1, draws=self.steps)
