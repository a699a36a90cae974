"""A round whose server is in the test's hands: drive it honestly, stop anywhere, tamper."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_agg import (
    Aggregator,
    Entropy,
    Floor,
    Identity,
    MemoryStore,
    Participant,
    Roster,
    RoundContext,
    SecAggParams,
    Shared,
    checks,
    keys,
)
from secure_agg.messages import HEADER_SIZE, RELEASE_ROW, Kind, Release
from secure_agg.prg import add_masks, stream
from secure_agg.ring import Vector, ring
from secure_agg.store import present
from secure_agg.transcript import Dealt


def fixed_entropy(seed: str) -> Entropy:
    """A source that repeats itself: one AES-CTR stream, cut as it is asked for."""
    key = hashlib.sha256(seed.encode()).digest()
    state = {"at": 0}

    def draw(size: int) -> bytes:
        start = state["at"]
        state["at"] += size
        return stream(key, state["at"])[start:]

    return draw


def vectors(
    ids: Collection[int], length: int, bits: int, seed: str = "inputs"
) -> dict[int, Vector]:
    """Uniform vectors of the ring for each id."""
    draw, of = fixed_entropy(seed), ring(bits)
    out = {}
    for id_ in sorted(ids):
        vector: npt.NDArray[Any] = np.frombuffer(draw(length * of.dtype.itemsize), of.dtype).copy()
        of.reduce(vector)
        out[id_] = vector
    return out


def exact_sum(inputs: Mapping[int, Vector], included: Collection[int], bits: int) -> list[int]:
    """The sum in Python's integers."""
    columns = zip(*(inputs[i].tolist() for i in included), strict=True)
    return [sum(column) % 2**bits for column in columns]


class World:
    """One round with honest participants and an honest aggregator, until the test interferes.

    Ids are 0..n-1 unless given. Nothing is shared between participants, so that every check runs
    in every one of them.
    """

    def __init__(
        self,
        params: SecAggParams,
        *,
        ids: Collection[int] | None = None,
        length: int = 8,
        floor: Floor | None = None,
        context: RoundContext | None = None,
        stores: bool = False,
        shared: bool = False,
        seed: str = "world",
    ) -> None:
        self.params = params
        self.ids = sorted(range(params.n) if ids is None else ids)
        self.length = length
        self.floor = floor
        self.entropy = fixed_entropy(seed)
        self.identities = {i: Identity.generate(self.entropy) for i in self.ids}
        self.roster = Roster({i: k.public_bytes for i, k in self.identities.items()})
        self.context = RoundContext(job=b"job", round=1) if context is None else context
        self.inputs = vectors(self.ids, length, params.modulus_bits, seed + "inputs")
        self.stores = {i: MemoryStore() for i in self.ids} if stores else {}
        self.shared = Shared() if shared else None
        self.members = {i: self.member(i) for i in self.ids}
        self.server = Aggregator(
            roster=self.roster,
            params=params,
            context=self.context,
            length=length,
            cohort=self.ids,
            shared=self.shared,
        )
        self.uploads: dict[int, bytes] = {}

    def member(self, id_: int, context: RoundContext | None = None) -> Participant:
        participant = Participant(
            identity=self.identities[id_],
            id=id_,
            roster=self.roster,
            params=self.params,
            context=self.context if context is None else context,
            length=self.length,
            floor=self.floor,
            entropy=self.entropy,
            store=self.stores.get(id_),
            shared=self.shared,
        )
        participant.provide(self.inputs[id_])
        return participant

    def restart(self, id_: int, data: bytes | None = None) -> Participant:
        """Kill a participant and restore it from its store, or from older bytes."""
        blob = self.stores[id_].data if data is None else data
        assert blob is not None
        self.members[id_] = Participant.from_bytes(
            blob,
            identity=self.identities[id_],
            roster=self.roster,
            floor=self.floor,
            entropy=self.entropy,
            store=self.stores.get(id_),
        )
        return self.members[id_]

    def deliver(
        self, messages: Mapping[int, bytes], absent: Collection[int] = ()
    ) -> dict[int, bytes]:
        """Hand messages to the participants; return their replies without passing them on."""
        replies = {i: self.members[i].handle(m) for i, m in messages.items() if i not in absent}
        for i, reply in replies.items():
            if reply[1] == Kind.MASKED:
                self.uploads[i] = reply
        return replies

    def step(self, messages: Mapping[int, bytes], absent: Collection[int] = ()) -> dict[int, bytes]:
        """Deliver, pass the replies on, close the stage; return the next messages."""
        for i, reply in self.deliver(messages, absent).items():
            self.server.receive(i, reply)
        return self.server.close_stage()

    def until(
        self, kind: Kind | None, absent: Mapping[Kind, Collection[int]] | None = None
    ) -> dict[int, bytes]:
        """Run honestly until the server's messages of ``kind`` are ready, or to the end.

        ``absent`` names, by the server's message, who no longer answers it or any later one.
        """
        gone: set[int] = set()
        messages = self.server.begin()
        while messages:
            now = Kind(next(iter(messages.values()))[1])
            if now is kind:
                return messages
            gone.update((absent or {}).get(now, ()))
            messages = self.step(messages, gone)
        assert kind is None
        return {}

    @property
    def dealt(self) -> Dealt:
        """What the server knows after stage 1."""
        return present(self.server._dealt)

    def secrets(self, id_: int) -> keys.RoundSecrets:
        """A participant's secrets, as its colluders would share them."""
        return present(self.members[id_]._now.secrets)

    def place(self, dealer: int, holder: int) -> int:
        """The holder's place among the dealer's neighbours."""
        view = present(self.server._view)
        return view.neighbour_ids(view.cohort.index[dealer]).index(holder)

    def strip(self, victim: int, seed: bytes, mask_key: bytes) -> list[int]:
        """What a server that knows both of a member's secrets reads from its upload."""
        dealt, of = self.dealt, ring(self.params.modulus_bits)
        body = self.uploads[victim][HEADER_SIZE:]
        vector = of.unpack(body[-of.packed_size(self.length) :], self.length).copy()
        cohort = dealt.view.cohort
        index = cohort.index[victim]
        plus: list[bytes] = []
        minus = [keys.self_mask_key(seed, dealt.transcript)]
        for other in dealt.view.neighbour_ids(index):
            if other in dealt:
                public = cohort.masks[cohort.index[other]]
                secret = keys.agree(X25519PrivateKey.from_private_bytes(mask_key), public)
                pair = sorted((cohort.masks[index], public))
                key = keys.derive_key(secret, "mask", dealt.transcript, *pair)
                (minus if victim < other else plus).append(key)
        add_masks(vector, plus, minus)
        of.reduce(vector)
        found: list[int] = vector.tolist()
        return found


def released(reply: bytes) -> Release:
    """Parse a participant's last answer."""
    return Release.parse(reply[HEADER_SIZE:])


def share_of(reply: bytes, dealer: int, kind: int) -> bytes | None:
    """The share of one kind that a release contains, if any."""
    for found, of, share, _ in RELEASE_ROW.iter_unpack(reply[HEADER_SIZE + 34 :]):
        if (found, of) == (dealer, kind):
            return bytes(share)
    return None


@contextmanager
def without(check: str, instead: Callable[..., Any] | None = None) -> Iterator[None]:
    """Take one check away."""
    with pytest.MonkeyPatch.context() as patch:
        assert callable(getattr(checks, check))
        patch.setattr(checks, check, instead or (lambda *args, **kwargs: None))
        yield
