"""central-gaussian and local-gaussian: rounded Gaussian noise on integers of bounded norm.

round(sigma N) added to an integer sum is a function of the Gaussian mechanism's output. Where each
client adds its own, the outsider sees a sum of rounded Gaussians. By Poisson summation that is a
Gaussian of the summed variance convolved with a sum of uniforms and read at the integers, a mixture
of shifted discrete Gaussians; quasi-convexity and Canonne, Kamath and Steinke (2020), Theorem 4,
give the Gaussian's Rényi divergence up to a factor 1 + exp(-2 pi^2 sigma^2), and sigma >= 64 z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import MechanismError
from fedsys.privacy.events import GaussianEvent
from fedsys.privacy.mechanisms.base import WideEncoding
from fedsys.privacy.randomness import AesCtrStream, Entropy
from fedsys.privacy.samplers import RoundedGaussian

__all__ = ["CentralGaussian", "LocalGaussian"]


class CentralGaussian(WideEncoding):
    """The server adds all the noise to the secure sum; see ``Mechanism``."""

    def __init__(self, event: GaussianEvent) -> None:
        super().__init__(event, event.scale)
        self._total = RoundedGaussian(math.sqrt(event.total_variance))
        self._deviation = self.deviation_of(event.total_variance)

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise in each coordinate of the decoded mean."""
        return self._deviation

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """Zeros (clients, d): clients add nothing."""
        return np.zeros((clients, self.length), dtype=np.int64)

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """All of the noise (d,), whatever the number of survivors.

        Raises:
            MechanismError: a cohort above the cap, or nobody, was summed.
        """
        self.check_survivors(survivors)
        return self._total.draw((self.length,), AesCtrStream.from_entropy(entropy))


class LocalGaussian(WideEncoding):
    """Each client adds full noise; the coordinator adds what missing clients would have."""

    def __init__(self, event: GaussianEvent) -> None:
        super().__init__(event, event.scale)
        self._share = RoundedGaussian(math.sqrt(event.share_variance))
        self._deviation = self.deviation_of(event.total_variance)

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise in each coordinate of the decoded mean."""
        return self._deviation

    def noise_shares(self, clients: int, entropy: Entropy | Sequence[Entropy]) -> NDArray[np.int64]:
        """(clients, d) independent draws of deviation z s C.

        Raises:
            MechanismError: there are neither one source nor ``clients``.
        """
        if callable(entropy):
            stream = AesCtrStream.from_entropy(entropy)
            return self._share.draw((clients, self.length), stream)
        if len(entropy) != clients:
            raise MechanismError(f"{clients} clients need as many sources, got {len(entropy)}")
        rows = [
            self._share.draw((self.length,), AesCtrStream.from_entropy(source))
            for source in entropy
        ]
        return np.stack(rows) if rows else np.zeros((0, self.length), dtype=np.int64)

    def top_up(self, survivors: int, entropy: Entropy) -> NDArray[np.int64]:
        """The sum (d,) of n_cap - survivors further draws, so that the total stays constant.

        Raises:
            MechanismError: a cohort above the cap, or nobody, was summed.
        """
        noise = np.zeros(self.length, dtype=np.int64)
        stream = AesCtrStream.from_entropy(entropy)
        for _ in range(self.check_survivors(survivors)):
            noise += self._share.draw((self.length,), stream)
        return noise
