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
"""Grid units per clipping norm: `client.training.example.optimizer.UNITS`."""

_MOST_STEPS = 10**6
"""A bound on the work of composing them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleEvent(SumEvent):
    """A round of Poisson-sampled, per-example clipped, noisy steps in each client.

    ``clip`` bounds a client's update only so that the sum fits into the ring. ``noise_multiplier``
    is the local optimizer's, relative to its own per-example clipping norm. What leaves a client is
    already private, so all views cost the same, and only the sampling of local batches amplifies.

    Attributes:
        example_rate: the probability that an example is in a local batch; the largest of all
            clients'.
        steps: the largest number of local steps in a round.
    """

    mechanism: ClassVar[str] = "example-gaussian"
    keys: ClassVar[tuple[str, ...]] = ("example_rate", "steps")

    example_rate: float
    steps: int

    def _check(self) -> None:
        validation.probability("example_rate", self.example_rate)
        validation.integer("steps", self.steps, most=_MOST_STEPS)
        if self.encoding.kind != "wide":
            raise MechanismError(
                f"encoding={self.encoding.kind!r} does not go with example-gaussian: use "
                "encoding='wide'"
            )

    @property
    def share_multiplier(self) -> float:
        """0: no noise is added to the sum besides the optimizers' own."""
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
        """One term per step: the optimizer rounds each noisy gradient once, on its own grid."""
        sigma = self.noise_multiplier * _GRID
        return RoundedTerms(sigma=sigma, fewest=1, most=1, draws=self.steps)
