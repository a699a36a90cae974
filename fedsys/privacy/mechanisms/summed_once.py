"""The noise of a whole sum at a stroke, as a simulation may draw it.

Skellam shares of S clients and the coordinator's top-up add up to one Skellam variable of variance
V*. A simulation that holds the whole sum anyway draws that variable once: the same distribution
at a cost that does not grow with the cohort. The accountants see the event of the deployment that
is simulated; the job's plan says ``noise = "once"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.events import Event, GaussianEvent, SkellamEvent, UnprotectedEvent
from fedsys.privacy.mechanisms.base import Mechanism
from fedsys.privacy.mechanisms.gaussian import CentralGaussian
from fedsys.privacy.mechanisms.narrow_skellam import NarrowSkellam
from fedsys.privacy.mechanisms.skellam import DistributedSkellam
from fedsys.privacy.mechanisms.unprotected import Unprotected
from fedsys.privacy.randomness import AesCtrStream, Entropy
from fedsys.privacy.samplers import skellam_sampler

__all__ = ["SUMMED_ONCE", "Noise", "summed_once"]

Noise = Literal["per-client", "once"]

SUMMED_ONCE = ("distributed-skellam", "central-gaussian", "none")
"""Mechanisms whose noise can be drawn for the sum alone."""


class _OneDraw:
    """Skellam noise of variance V* in one draw."""

    _total_variance: float

    def _set(self, event: SkellamEvent) -> None:
        self._total_variance, self._most = event.total_variance, event.cap
        self._width = event.padded_dimension

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """Zeros (clients, length): the top-up holds all of the noise."""
        return np.zeros((clients, self._width), dtype=np.int64)

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """One draw (length,) of variance V*, whatever the number of survivors."""
        if not 0 < survivors <= self._most:
            raise MechanismError(
                f"survivors must be from 1 to the cap {self._most}, got {survivors}"
            )
        sampler = skellam_sampler(self._total_variance)
        return sampler.draw((self._width,), AesCtrStream.from_entropy(entropy))


class _WideOnce(_OneDraw, DistributedSkellam):
    def __init__(self, event: SkellamEvent) -> None:
        super().__init__(event)
        self._set(event)


class _NarrowOnce(_OneDraw, NarrowSkellam):
    def __init__(self, event: SkellamEvent) -> None:
        super().__init__(event)
        self._set(event)


def summed_once(event: Event) -> Mechanism:
    """The mechanism of an event, its noise drawn once for the sum.

    Raises:
        MechanismError: its noise belongs to single clients.
    """
    if isinstance(event, SkellamEvent):
        return _NarrowOnce(event) if event.encoding == "narrow" else _WideOnce(event)
    if isinstance(event, GaussianEvent) and not event.local:
        return CentralGaussian(event)
    if isinstance(event, UnprotectedEvent):
        return Unprotected(event)
    raise MechanismError(
        f"noise='once' is for {', '.join(SUMMED_ONCE)}; {event.mechanism} draws its noise in a way "
        "of its own: use noise='per-client'"
    )
