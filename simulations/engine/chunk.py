"""Trains one chunk of virtual clients and adds it up: what every process of the engine does.

There are three ways, one for each protocol. ``float``: clipped updates are summed in floating
point. ``ideal``: updates are clipped in the integers, encoded, noised and summed in place.
``secure``: the same vectors one by one, for agents to encrypt. The first two add into a flat sum of
int64, so neither the order of chunks nor the number of processes changes a bit of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from client.privatize import privatize
from client.privatize.contribution import contribution
from client.privatize.integers import add_clipped_integers
from client.training.procedure.visit import Visit
from fedsys.privacy import (
    AesCtrStream,
    Encoded,
    Entropy,
    Mechanism,
    event_from_json,
    mechanism_for,
)
from fedsys.privacy.encoding.clipping import wide_scale
from fedsys.privacy.encoding.float_sums import FixedPoint
from fedsys.privacy.encoding.parts import Parts
from fedsys.privacy.encoding.rings import to_ring
from secure_agg import SecAggParams
from secure_agg.committee import MAX_COHORT
from secure_agg.errors import ParameterError
from secure_agg.packing import PackedSum
from secure_agg.params import MAX_MODULUS_BITS
from simulations.client_states import ClientStates
from simulations.population import Population
from simulations.randomness import Randomness

__all__ = ["ChunkTrainer", "Protocol", "RoundWork", "Tally", "in_ring", "signed_sum", "top_up_once"]

Protocol = Literal["secure", "ideal", "float"]
Total = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RoundWork:
    """What the chunks of one round have in common.

    Attributes:
        number: The round's number.
        weights: (d,) float32, the model that clients start from.
        seed: Public seed, equal for all clients of the round; empty where the mechanism uses none.
        mechanism: The mechanism's event, as JSON.
        protocol: How updates become a sum.
        clipping: State of adaptive clipping, or None.
        exhausted: Clients that contribute zeros and do not train.
        factor: Factor above 0 by which clients scale their updates before clipping them.
        rounds: Number of rounds of the job, for schedules.
        shared: What the server sends to local procedures with the model.
        states: File in which clients' own tensors are kept; empty keeps none.
        weight_cap: Number of examples at which a client's weight is 1; 0 where clients count alike.
        shares: Whether chunks add their clients' noise shares to a sum; if not, the caller does.
    """

    number: int
    weights: NDArray[np.float32]
    seed: bytes
    mechanism: dict[str, Any]
    protocol: Protocol
    clipping: Mapping[str, Any] | None = None
    exhausted: frozenset[int] = frozenset()
    factor: float = 1.0
    rounds: int = 1
    shared: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    states: str = ""
    weight_cap: int = 0
    shares: bool = True


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Counts of the clients in a sum.

    Attributes:
        trained: Clients that trained.
        clipped: Those of them whose update exceeded the clipping norm.
        unusable: Those of them whose update was not finite and counted as zero.
    """

    trained: int = 0
    clipped: int = 0
    unusable: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            trained=self.trained + other.trained,
            clipped=self.clipped + other.clipped,
            unusable=self.unusable + other.unusable,
        )


class ChunkTrainer:
    """Trains and adds chunks of one population.

    Args:
        population: The virtual clients.
        randomness: Source of their noise.
    """

    def __init__(self, population: Population, randomness: Randomness) -> None:
        self._population, self._randomness = population, randomness
        self._work: RoundWork
        self._mechanism: Mechanism
        self._made_of: dict[str, Any] | None = None
        self._floating: torch.Tensor | None = None
        self._states: ClientStates | None = None
        self._parts: Parts

    def begin(self, work: RoundWork) -> None:
        """Start a round: the chunks that follow belong to it."""
        self._work = work
        if self._made_of != work.mechanism:
            self._mechanism = mechanism_for(event_from_json(work.mechanism))
            self._made_of = work.mechanism
        if work.states and self._states is None:
            self._states = ClientStates(Path(work.states))
        self._parts = replace(self._population.trainer.parts, weight_cap=work.weight_cap)

    def expect(self, clients: Sequence[int]) -> None:
        """Say which chunk follows the next one."""
        self._population.expect([id for id in clients if id not in self._work.exhausted])

    @property
    def length(self) -> int:
        """Coordinates of the round's sum."""
        return self._mechanism.length

    def add(self, clients: Sequence[int], total: Total) -> Tally:
        """Train clients and add what they contribute to `total` (length,).

        Under ``float``, `total` is in the fixed point of
        `fedsys.privacy.encoding.float_sums.FixedPoint`.

        Raises:
            TrainingError: A client could not train; names the client, the cause and the remedy.
        """
        if self._work.protocol == "float":
            return self._add_floating(clients, total)
        event = self._mechanism.event
        if not self._mechanism.sums_integers:
            privatized = self.vectors(clients)
            total += signed_sum(privatized.values, self._mechanism.modulus_bits)
            return Tally(
                trained=self._training(clients),
                clipped=int(privatized.clipped.sum()),
                unusable=int(privatized.unusable.sum()),
            )
        updates = torch.from_numpy(self._updates(clients))
        if self._floating is None or len(self._floating) != self.length:
            self._floating = torch.empty(self.length, dtype=torch.float64)
        # The float64 buffer holds a chunk's integers exactly, so the cast back loses nothing.
        found = add_clipped_integers(self._floating.zero_(), updates, clip=event.clip)
        total += self._floating.numpy().astype(np.int64)
        self.add_shares(clients, total)
        return Tally(
            trained=self._training(clients),
            clipped=int(found.clipped.sum()),
            unusable=int(found.unusable.sum()),
        )

    def top_up(self, key: bytes) -> Total:
        """`top_up_once` with the mechanism of the latest round."""
        return top_up_once(self._mechanism, key)

    def vectors(self, clients: Sequence[int]) -> Encoded:
        """Train clients and privatize each one's update."""
        return privatize(
            self._mechanism,
            self._updates(clients),
            seed=self._work.seed,
            entropy=self._noise(clients),
        )

    def _updates(self, clients: Sequence[int]) -> NDArray[np.float32]:
        work = self._work
        updates = self._trained(clients)
        if work.factor != 1:
            updates = updates * np.float32(work.factor)
        return contribution(
            updates,
            participation=self._mechanism.event.sampling.participation,
            clipping=work.clipping,
            entropy=[self._randomness.coin(work.number, client) for client in clients],
            parts=self._parts,
            clip=self._mechanism.event.clip,
            examples=self._population.examples(clients).tolist() if work.weight_cap else (),
            taking_part=[client not in work.exhausted for client in clients],
        )

    @property
    def _visit(self) -> Visit:
        work = self._work
        return Visit(round=work.number, rounds=work.rounds, shared=work.shared, states=self._states)

    def _training(self, clients: Sequence[int]) -> int:
        """Number of these clients that train."""
        return sum(client not in self._work.exhausted for client in clients)

    def _trained(self, clients: Sequence[int]) -> NDArray[np.float32]:
        """(K, d) updates; zeros for clients that have contributed as often as they may."""
        work = self._work
        training = [client for client in clients if client not in work.exhausted]
        if len(training) == len(clients):
            return self._population.train(
                work.weights, clients, round=work.number, visit=self._visit
            )
        updates = np.zeros((len(clients), self._parts.width), dtype=np.float32)
        if training:
            rows = [row for row, client in enumerate(clients) if client not in work.exhausted]
            updates[rows] = self._population.train(
                work.weights, training, round=work.number, visit=self._visit
            )
        return updates

    def _add_floating(self, clients: Sequence[int], total: Total) -> Tally:
        event, work = self._mechanism.event, self._work
        clients = [client for client in clients if client not in work.exhausted]
        if not clients:
            return Tally()
        clip = event.clip / work.factor  # clip(f u, C) = f clip(u, C / f)
        summed = self._population.clipped_sum(
            work.weights, clients, round=work.number, clip=clip, visit=self._visit
        )
        added = summed.total * work.factor
        FixedPoint(wide_scale(event.dimension, event.clip)).add(total, added)
        return Tally(
            trained=len(clients),
            clipped=int((summed.norms > clip).sum()),
            unusable=int((~np.isfinite(summed.norms)).sum()),
        )

    def add_shares(self, clients: Sequence[int], total: Total) -> None:
        """Add the clients' noise shares, where clients add noise and chunks are to add it."""
        if self._mechanism.adds_shares and self._work.shares:
            self._mechanism.add_share_sum(total, len(clients), self._noise(clients))

    def _noise(self, clients: Sequence[int]) -> Entropy | list[Entropy]:
        if (shared := self._randomness.shared_noise()) is not None:
            return shared
        number = self._work.number
        return [self._randomness.noise(number, client) for client in clients]


def top_up_once(mechanism: Mechanism, key: bytes) -> Total:
    """(length,) the coordinator's noise for a round in which one draw serves the whole sum. It does
    not depend on the number of survivors; the cap is passed because it is always a valid one."""
    return mechanism.top_up(mechanism.event.cap, AesCtrStream(key))


def in_ring(
    total: Total, mechanism: Mechanism, protocol: Protocol, *, invited: int
) -> NDArray[Any]:
    """A round's flat sum as integers mod 2^b (length,).

    Args:
        total: (length,) sum of the clients' signed integers; under ``float``, in fixed point.
        mechanism: The round's mechanism.
        protocol: How the updates became a sum.
        invited: Size of the round's cohort. It decides how many values secure aggregation packs
            into one, and so where a sum that exceeds its modulus carries to.
    """
    bits, event = mechanism.modulus_bits, mechanism.event
    if protocol == "float":
        return FixedPoint(wide_scale(event.dimension, event.clip)).round(total, bits=bits)
    packing = _packing(invited, bits, len(total))
    if packing is not None:
        packed = PackedSum(packing)
        packed.sums = total
        total = packed.total()
    return to_ring(total, bits=bits)


def _packing(invited: int, bits: int, length: int) -> SecAggParams | None:
    """Parameters with the packing of any round of such a cohort. Packing depends on nothing else,
    so the smallest committee will do. None where secure aggregation has no parameters: then no
    encrypted sum carries anywhere, and each value wraps by itself."""
    if not (2 <= invited <= MAX_COHORT and bits <= MAX_MODULUS_BITS):
        return None
    try:
        return SecAggParams.derive(
            n=invited, corrupt=0.0, dropout=0.0, modulus_bits=bits, dimension=length, committee=2
        )
    except ParameterError:
        return None


def signed_sum(vectors: NDArray[Any], bits: int) -> Total:
    """(length,) sum of ring elements (K, length), each read as in [-2^(bits-1), 2^(bits-1)).

    An element with its top bit set stands for itself minus 2^bits, so that is subtracted once for
    each of them.
    """
    negative = (vectors >> vectors.dtype.type(bits - 1)).sum(axis=0, dtype=np.int64)
    found: Total = vectors.sum(axis=0, dtype=np.int64) - (negative << bits)
    return found
