"""Sources of a simulation's secrets: the operating system or, for tests, a stated seed."""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

from fedsys.privacy import AesCtrStream, Entropy

__all__ = ["Randomness", "SeededRandomness", "SystemRandomness", "derived_key"]


class Randomness(Protocol):
    """One source of entropy for each purpose, so that no two purposes share a stream.

    Attributes:
        name: Name of the source, as the ledger states it.
        reproducible: Whether somebody could draw the same again; then nothing is private.
    """

    name: str
    reproducible: bool

    def job(self) -> Entropy:
        """Source for the job's name, from which public seeds derive, and the ledger's salts."""
        ...

    def sampling(self, round: int) -> Entropy:
        """Source for a round's seed, which gives the coordinator's noise and the next cohort."""
        ...

    def noise(self, round: int, client: int) -> Entropy:
        """Source for a client's noise share."""
        ...

    def shared_noise(self) -> Entropy | None:
        """The one source of all noise shares, of whichever round and client; None where each has
        one of its own."""
        ...

    def coin(self, round: int, client: int) -> Entropy:
        """Source for a client's secret coin, which decides whether it takes part."""
        ...

    def nonce(self, round: int, client: int) -> Entropy:
        """Source for what a client sends with its upload."""
        ...

    def keys(self, round: int, client: int) -> Entropy:
        """Source for a client's keys and shares in secure aggregation."""
        ...


class SystemRandomness:
    """The operating system's entropy for every purpose."""

    name = "os.urandom; noise by AES-256-CTR"
    reproducible = False

    def job(self) -> Entropy:
        return os.urandom

    def sampling(self, round: int) -> Entropy:
        return os.urandom

    def noise(self, round: int, client: int) -> Entropy:
        return os.urandom

    def shared_noise(self) -> Entropy | None:
        return os.urandom

    def coin(self, round: int, client: int) -> Entropy:
        return os.urandom

    def nonce(self, round: int, client: int) -> Entropy:
        return os.urandom

    def keys(self, round: int, client: int) -> Entropy:
        return os.urandom


class SeededRandomness:
    """AES-256-CTR streams derived from one seed: reproducible, so *not private*.

    Args:
        seed: At least one byte.
        everything: Whether noise, keys and the job's name are seeded too. A run without privacy
            passes False, so that only its cohorts are repeatable.
    """

    def __init__(self, seed: bytes, *, everything: bool = True) -> None:
        self._seed = seed
        self._everything = everything
        self.reproducible = everything
        self.name = (
            "seeded: reproducible, not private"
            if everything
            else "cohorts from the job's seed; keys from os.urandom"
        )

    def job(self) -> Entropy:
        return self._stream("job", 0, 0) if self._everything else os.urandom

    def sampling(self, round: int) -> Entropy:
        return self._stream("sampling", round, 0)

    def noise(self, round: int, client: int) -> Entropy:
        return self._stream("noise", round, client) if self._everything else os.urandom

    def shared_noise(self) -> Entropy | None:
        return None if self._everything else os.urandom

    def coin(self, round: int, client: int) -> Entropy:
        return self._stream("coin", round, client) if self._everything else os.urandom

    def nonce(self, round: int, client: int) -> Entropy:
        return self._stream("nonce", round, client) if self._everything else os.urandom

    def keys(self, round: int, client: int) -> Entropy:
        return self._stream("keys", round, client) if self._everything else os.urandom

    def _stream(self, purpose: str, round: int, client: int) -> Entropy:
        return AesCtrStream(derived_key(self._seed, purpose, round, client))


def derived_key(seed: bytes, purpose: str, *numbers: int) -> bytes:
    """A 32-byte key derived from all arguments."""
    text = " ".join([purpose, *map(str, numbers)]).encode()
    return hashlib.sha256(b"fedsys\x00" + len(seed).to_bytes(4, "big") + seed + text).digest()
