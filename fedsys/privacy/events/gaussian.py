"""Independent rounded Gaussian noise, by who adds it: clients together, the server, each client.

`SharedEvent`: every client adds a noise share and the coordinator adds the missing ones, so that
every release holds exactly n_cap rounded terms of variance V* / n_cap. `OnceEvent`: a simulation,
which has the whole sum anyway, draws one rounded term of variance V* for it. `CentralEvent`: the
server does the same to the secure sum. `LocalEvent`: each client adds the full noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fedsys.errors import MechanismError
from fedsys.privacy.events.base import GaussianStep, RoundedTerms, SumEvent
from fedsys.privacy.views import View

__all__ = ["CentralEvent", "LocalEvent", "OnceEvent", "SharedEvent"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedEvent(SumEvent):
    """distributed-gaussian: every client adds a share of the noise inside the secure sum.

    A share has variance (z D2)^2 / n_cap, so V* = (z D2)^2. Where the guarantee is the server's, a
    share has variance (z D2)^2 / (m - c), so that the m - c honest survivors of the smallest sum
    together add multiplier z; V* is then n_cap times the variance of a share.
    """

    mechanism: ClassVar[str] = "distributed-gaussian"
    keys: ClassVar[tuple[str, ...]] = ("noise",)
    noise: ClassVar[str] = "per-client"

    @property
    def share_multiplier(self) -> float:
        """z / sqrt(n_cap), or z / sqrt(m - c) where the guarantee is the server's."""
        sharers = self.worst_honest_shares if self.guarantee == "server" else self.cap
        return self.noise_multiplier / math.sqrt(sharers)

    @property
    def total_multiplier(self) -> float:
        """z, or z sqrt(n_cap / (m - c)) where the guarantee is the server's."""
        if self.guarantee == "server":
            return self.noise_multiplier * math.sqrt(self.cap / self.worst_honest_shares)
        return self.noise_multiplier

    def server_step(self, survivors: int | None = None) -> GaussianStep:
        """The honest survivors' shares; the fewest possible if the number is not known."""
        participation = self.sampling.participation
        honest = self.worst_honest_shares
        if survivors is not None and participation == 1:
            honest = max(survivors - self.colluders, 1)
        multiplier = self.share_multiplier * math.sqrt(honest)
        return GaussianStep(multiplier=multiplier, rate=participation)

    def terms(self, view: View) -> RoundedTerms:
        """All shares, all but the curious clients', or the honest survivors', by view."""
        fewest = {
            "outsider": self.cap,
            "participant": max(self.cap - max(self.colluders, 1), 1),
            "server": self.worst_honest_shares,
        }[view]
        sigma = math.sqrt(self.share_variance)
        return RoundedTerms(sigma=sigma, fewest=fewest, most=self.cap, draws=self.cap)


@dataclass(frozen=True, kw_only=True, slots=True)
class OnceEvent(SharedEvent):
    """distributed-gaussian, simulated: one draw for the whole sum.

    The release holds one rounded term rather than n_cap of them, so its distribution is a different
    one and is accounted as such. No client adds a share here, so the participant's and the server's
    views are accounted for the deployment that is simulated.
    """

    noise: ClassVar[str] = "once"

    @property
    def own_noise(self) -> float:
        """0: clients add none."""
        return 0.0

    def terms(self, view: View) -> RoundedTerms:
        """One term for the outsider; the deployment's terms for the other views."""
        if view != "outsider":
            return SharedEvent.terms(self, view)
        sigma = math.sqrt(self.total_variance)
        return RoundedTerms(sigma=sigma, fewest=1, most=1, draws=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class CentralEvent(SumEvent):
    """central-gaussian: the server adds all of the noise to the secure sum."""

    mechanism: ClassVar[str] = "central-gaussian"

    def _check(self) -> None:
        refuse_server_guarantee(self)

    @property
    def share_multiplier(self) -> float:
        """0: clients add nothing."""
        return 0.0

    @property
    def total_multiplier(self) -> float:
        """z."""
        return self.noise_multiplier

    def server_step(self, survivors: int | None = None) -> GaussianStep:
        """No noise: the server sees the sum before it adds any."""
        return GaussianStep(multiplier=0.0)

    def terms(self, view: View) -> RoundedTerms | None:
        """One term, added by the coordinator; none for the server."""
        if view == "server":
            return None
        sigma = math.sqrt(self.total_variance)
        return RoundedTerms(sigma=sigma, fewest=1, most=1, draws=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalEvent(SumEvent):
    """local-gaussian: each client adds noise of deviation z D2 itself, and need trust nobody."""

    mechanism: ClassVar[str] = "local-gaussian"

    @property
    def share_multiplier(self) -> float:
        """z."""
        return self.noise_multiplier

    @property
    def total_multiplier(self) -> float:
        """z sqrt(n_cap): the coordinator adds the noise that missing clients would have added."""
        return self.noise_multiplier * math.sqrt(self.cap)

    def server_step(self, survivors: int | None = None) -> GaussianStep:
        """The client's own noise, which it adds before anybody else sees the update."""
        return GaussianStep(multiplier=self.noise_multiplier, rate=self.sampling.participation)

    def terms(self, view: View) -> RoundedTerms:
        """All clients' terms, all but the curious clients', or the client's own, by view."""
        sigma = math.sqrt(self.share_variance)
        if view == "server":
            return RoundedTerms(sigma=sigma, fewest=1, most=1, draws=1)
        curious = 0 if view == "outsider" else max(self.colluders, 1)
        fewest = max(self.cap - curious, 1)
        return RoundedTerms(sigma=sigma, fewest=fewest, most=self.cap, draws=self.cap)


def refuse_server_guarantee(event: SumEvent) -> None:
    """Refuses a server guarantee for an event whose noise the server adds.

    Raises:
        MechanismError: the guarantee is the server's.
    """
    if event.guarantee == "server":
        raise MechanismError(
            f"guarantee='server' cannot hold under {event.mechanism}: the server sees the sum "
            "before the noise; use distributed-gaussian or local-gaussian"
        )
