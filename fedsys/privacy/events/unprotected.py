"""none: no noise and no privacy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedsys.errors import MechanismError
from fedsys.privacy.events.base import GaussianStep, RoundedTerms, SumEvent
from fedsys.privacy.views import View

__all__ = ["UnprotectedEvent"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnprotectedEvent(SumEvent):
    """A sum released without noise: every view's epsilon is infinite."""

    mechanism: ClassVar[str] = "none"

    noiseless: ClassVar[bool] = True

    noise_multiplier: float = 0.0

    def _check(self) -> None:
        if self.noise_multiplier or self.guarantee != "outsider" or self.encoding.kind == "narrow":
            raise MechanismError(
                "mechanism='none' has no noise, no guarantee and no narrow encoding, got "
                f"noise_multiplier={self.noise_multiplier:g}, guarantee={self.guarantee!r}, "
                f"encoding={self.encoding.kind!r}"
            )

    @property
    def share_multiplier(self) -> float:
        """0."""
        return 0.0

    @property
    def total_multiplier(self) -> float:
        """0."""
        return 0.0

    def server_step(self, survivors: int | None = None) -> GaussianStep:
        """No noise."""
        return GaussianStep(multiplier=0.0)

    def terms(self, view: View) -> RoundedTerms | None:
        """None, because no view is protected."""
        return None
