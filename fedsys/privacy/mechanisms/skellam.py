"""distributed-skellam: every client adds a share of the noise inside the secure sum.

Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially Private Federated Learning"
(NeurIPS 2021). Skellam variables add up to Skellam variables, so S shares of variance V* / n_cap
and a top-up of (n_cap - S) V* / n_cap are one draw of variance V*, whatever S is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.events import SkellamEvent
from fedsys.privacy.mechanisms.base import WideEncoding
from fedsys.privacy.randomness import AesCtrStream, Entropy
from fedsys.privacy.samplers import skellam_sampler

__all__ = ["DistributedSkellam", "SkellamNoise"]


class SkellamNoise:
    """Shares and top-up of a Skellam round; what both encodings have in common."""

    def __init__(self, event: SkellamEvent) -> None:
        self._share_variance = event.share_variance
        self._cap = event.cap
        self._width = event.padded_dimension

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """(clients, length) independent shares of variance V* / n_cap.

        Raises:
            MechanismError: there are neither one source nor ``clients``.
        """
        sampler = skellam_sampler(self._share_variance)
        if callable(entropy):
            stream = AesCtrStream.from_entropy(entropy)
            return sampler.draw((clients, self._width), stream)
        if len(entropy) != clients:
            raise MechanismError(f"{clients} clients need as many sources, got {len(entropy)}")
        return sampler.draw_rows([AesCtrStream.from_entropy(e) for e in entropy], self._width)

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """One draw (length,) of variance (n_cap - survivors) V* / n_cap.

        As a sum over the binary digits of the number of missing shares: one table a digit serves
        every number of survivors.

        Raises:
            MechanismError: a cohort above the cap, or nobody, was summed.
        """
        if not 0 < survivors <= self._cap:
            raise MechanismError(
                f"survivors must be from 1 to the cap {self._cap}, got {survivors}"
            )
        missing = self._cap - survivors
        noise = np.zeros(self._width, dtype=np.int64)
        stream = AesCtrStream.from_entropy(entropy)
        for digit in range(missing.bit_length()):
            if missing >> digit & 1:
                sampler = skellam_sampler(math.ldexp(self._share_variance, digit))
                noise += sampler.draw((self._width,), stream)
        return noise


class DistributedSkellam(WideEncoding):
    """The wide encoding with Skellam noise; see ``Mechanism``."""

    def __init__(self, event: SkellamEvent) -> None:
        super().__init__(event, event.scale)
        self._noise = SkellamNoise(event)
        self._deviation = self.deviation_of(event.total_variance)

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise in each coordinate of the decoded mean."""
        return self._deviation

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """(clients, d) independent shares of variance V* / n_cap.

        Raises:
            MechanismError: there are neither one source nor ``clients``.
        """
        return self._noise.noise_shares(clients, entropy)

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """One draw (d,) that completes ``survivors`` shares to variance V*.

        Raises:
            MechanismError: a cohort above the cap, or nobody, was summed.
        """
        return self._noise.top_up(survivors, entropy)
