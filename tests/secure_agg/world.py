"""A round with every party in this process, which tests stop, bend and restart where they like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from secure_agg import (
    Aggregator,
    Identity,
    Member,
    MemoryStore,
    Roster,
    RoundContext,
    SealingKeys,
    SecAggParams,
    Shared,
    checks,
    draw_committee,
)
from secure_agg.masking import Unsigned
from secure_agg.messages import Kind


def fixed_entropy(seed: str) -> Callable[[int], bytes]:
    """Bytes that depend on the seed and on how often they were asked for."""
    count = 0

    def entropy(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_128(f"{seed}/{count}".encode()).digest(size)

    return entropy


def vectors(ids: Collection[int], params: SecAggParams, seed: int = 0) -> dict[int, Unsigned]:
    """Centred vectors, modulo 2^b, whose sum fits the ring; the extremes are among them."""
    rng = np.random.default_rng(seed)
    limit = (2 ** (params.modulus_bits - 1) - 1) // len(ids)
    out = {}
    for id_ in ids:
        values = rng.integers(-limit, limit + 1, params.dimension)
        values[: params.dimension // 3 : 3] = limit
        values[1 : params.dimension // 3 : 3] = -limit
        width = np.uint32 if params.modulus_bits <= 32 else np.uint64
        out[id_] = (values % 2**params.modulus_bits).astype(width)
    return out


def exact_sum(inputs: Mapping[int, Unsigned], ids: Collection[int], bits: int) -> list[int]:
    """The sum modulo 2^bits, by Python's integers."""
    total = sum(inputs[id_].astype(object) for id_ in ids)
    found: list[int] = (total % 2**bits).tolist()
    return found


class World:
    """One round, or several of one job.

    Args:
        params: Of the round.
        ids: Of the members; 0 to n - 1 by default.
        context: Of the first round.
        seed: Of all entropy.
        corrupt: Of the roster.
        shared: Whether the members are a virtual cohort.
    """

    def __init__(
        self,
        params: SecAggParams,
        *,
        ids: Sequence[int] | None = None,
        context: RoundContext | None = None,
        seed: str = "world",
        corrupt: int | None = None,
        shared: bool = False,
    ) -> None:
        self.params = params
        self.ids = list(range(params.n)) if ids is None else list(ids)
        self.context = RoundContext(job=b"job", round=1) if context is None else context
        self.seed = seed
        self.shared = Shared() if shared else None
        self.inputs = vectors(self.ids, params)
        self.identities = {
            id_: Identity.generate(fixed_entropy(f"{seed}/identity/{id_}")) for id_ in self.ids
        }
        publics = {id_: one.public_bytes for id_, one in self.identities.items()}
        self.roster = Roster(publics, corrupt=corrupt)
        self.disks = {id_: MemoryStore() for id_ in self.ids}
        self.tmpfs = {id_: MemoryStore() for id_ in self.ids}
        self.entropy = {id_: fixed_entropy(f"{seed}/member/{id_}") for id_ in self.ids}
        self.sealing = {id_: self.keys(id_) for id_ in self.ids}
        self.uploads: dict[int, bytes] = {}
        self.members: dict[int, Member] = {}
        self.server: Aggregator
        self.open()

    def keys(self, id_: int) -> SealingKeys:
        """The sealing keys of a process of this member that starts now."""
        return SealingKeys(
            self.identities[id_],
            suite=self.params.suite,
            entropy=self.entropy[id_],
            store=self.tmpfs[id_],
        )

    def open(self, context: RoundContext | None = None) -> None:
        """Make ready the round of a context, with a fresh sealing key of each committee member."""
        self.context = self.context if context is None else context
        self.committee = draw_committee(
            self.ids, self.params.committee, self.context, self.roster.hash
        )
        self.prekeys = {id_: self.sealing[id_].issue(1)[0] for id_ in self.committee}
        self.members = {id_: self.member(id_) for id_ in self.ids}
        self.server = self.aggregator()

    def aggregator(self, **changes: Any) -> Aggregator:
        """A server of this round, with some arguments changed."""
        arguments: dict[str, Any] = {
            "roster": self.roster,
            "params": self.params,
            "context": self.context,
            "cohort": self.ids,
            "prekeys": self.prekeys,
            "shared": self.shared,
        }
        return Aggregator(**{**arguments, **changes})

    def member(self, id_: int, **changes: Any) -> Member:
        """A new machine of a member, with its stores as they are, that has its input."""
        arguments: dict[str, Any] = {
            "identity": self.identities[id_],
            "id": id_,
            "roster": self.roster,
            "params": self.params,
            "context": self.context,
            "sealing": self.sealing[id_],
            "entropy": self.entropy[id_],
            "store": self.disks[id_],
            "shared": self.shared,
        }
        member = Member(**{**arguments, **changes})
        if not member.uploaded:
            member.provide(self.inputs[id_])
        return member

    def restart(self, id_: int, *, memory: bool = True, **changes: Any) -> Member:
        """End a member's process and start another; without its memory, the tmpfs is gone too."""
        if not memory:
            self.tmpfs[id_] = MemoryStore()
        self.sealing[id_] = self.keys(id_)
        self.members[id_] = self.member(id_, **changes)
        return self.members[id_]

    def deliver(
        self, messages: Mapping[int, bytes], absent: Collection[int] = ()
    ) -> dict[int, bytes]:
        """The members' replies."""
        return {
            id_: self.members[id_].handle(message)
            for id_, message in messages.items()
            if id_ not in absent
        }

    def step(
        self, messages: Mapping[int, bytes], absent: Collection[int] = ()
    ) -> Mapping[int, bytes]:
        """Deliver, pass the replies on, close the stage; return the next messages."""
        for id_, reply in self.deliver(messages, absent).items():
            if reply[1] == Kind.UPLOAD:
                self.uploads[id_] = reply
            self.server.receive(id_, reply)
        return self.server.close_stage()

    def until(
        self, kind: Kind | None, absent: Mapping[Kind, Collection[int]] | None = None
    ) -> Mapping[int, bytes]:
        """Run honestly until the server's messages of ``kind`` are ready, or to the end.

        ``absent`` names, by the server's message, who no longer answers it or any later one.
        """
        gone: set[int] = set()
        messages: Mapping[int, bytes] = self.server.begin()
        while messages:
            now = Kind(messages[next(iter(messages))][1])
            if now is kind:
                return messages
            gone.update((absent or {}).get(now, ()))
            messages = self.step(messages, gone)
        assert kind is None
        return {}

    def finish(self, messages: Mapping[int, bytes], absent: Collection[int] = ()) -> Unsigned:
        """Go on honestly from these messages to the end; return the total."""
        while messages:
            messages = self.step(messages, absent)
        return self.server.result.total

    def exact(self, ids: Collection[int] | None = None) -> list[int]:
        """What the sum should be."""
        return exact_sum(self.inputs, self.ids if ids is None else ids, self.params.modulus_bits)


@contextmanager
def without(check: str, instead: Callable[..., Any] | None = None) -> Iterator[None]:
    """Take one check away."""
    with pytest.MonkeyPatch.context() as patch:
        assert callable(getattr(checks, check))
        patch.setattr(checks, check, instead or (lambda *args, **kwargs: None))
        yield
