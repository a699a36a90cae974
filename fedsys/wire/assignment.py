"""What one round asks of a client; the same value for every client of the cohort."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import ProtocolError
from fedsys.privacy import Event, event_from_json
from fedsys.wire.canonical import decode_object, encode_object
from secure_agg import RoundContext

__all__ = ["Assignment", "batch_seed"]

_KEYS = frozenset(
    {"job", "round", "task", "local", "mechanism", "seed", "terms", "clipping", "shared"}
)
_MOST_SHARED = 1024


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One round's work.

    Attributes:
        job: 32 bytes that name the job.
        round: 1-based number; never used twice for a job.
        task: the task's name, which the client must have installed.
        weights: (d,) float32, the current model.
        local: local training (see `client.training.LocalConfig`), by field name.
        mechanism: the round's event, as `fedsys.privacy.event_from_json` reads it.
        seed: seed from which each client derives its batch order.
        clipping: state of `fedsys.privacy.AdaptiveClipping`; None where the norm is fixed.
        terms: digest of the job's `Terms`; empty where the host does not ask agents for consent.
        shared: further tensors that the server sends to everybody, by name, for a local procedure.
    """

    job: bytes
    round: int
    task: str
    weights: NDArray[np.float32]
    local: Mapping[str, Any]
    mechanism: Mapping[str, Any]
    seed: int
    clipping: Mapping[str, Any] | None = None
    terms: bytes = b""
    shared: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @cached_property
    def head(self) -> bytes:
        """Everything but the numbers of weights and shared tensors, as canonical bytes."""
        return encode_object(
            {
                "job": self.job.hex(),
                "round": self.round,
                "task": self.task,
                "local": dict(self.local),
                "mechanism": dict(self.mechanism),
                "seed": self.seed,
                "clipping": None if self.clipping is None else dict(self.clipping),
                "terms": self.terms.hex(),
                "shared": [[name, list(each.shape)] for name, each in self.shared.items()],
            }
        )

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all of it: every client of the cohort must have received the same.

        It is bound into the session of secure aggregation (its model hash), so a coordinator that
        hands out different models or parameters has two sessions, whose shares do not add up.
        """
        head = self.head
        digest = hashlib.sha256(b"fedsys assignment v1\x00")
        digest.update(len(head).to_bytes(8, "big"))
        digest.update(head)
        for each in (self.weights, *self.shared.values()):
            digest.update(np.ascontiguousarray(each, dtype="<f4").reshape(-1).data)
        return digest.digest()

    @cached_property
    def weights_bytes(self) -> bytes:
        """The weights, then the shared tensors, as little-endian float32."""
        numbers = (self.weights, *self.shared.values())
        return b"".join(np.ascontiguousarray(each, dtype="<f4").tobytes() for each in numbers)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights alone, as hex: what the ledger states of a round's model. The
        shared tensors, of which a strategy is the source, are not in it."""
        return hashlib.sha256(np.ascontiguousarray(self.weights, dtype="<f4").data).hexdigest()

    @cached_property
    def event(self) -> Event:
        """The round's event, with types and ranges checked.

        Raises:
            MechanismError: a value is invalid.
        """
        return event_from_json(self.mechanism)

    def batch_seed(self, client: int) -> int:
        """Seed of one client's batch order in this round."""
        return batch_seed(self.seed, self.round, client)

    @classmethod
    def decode(cls, head: bytes, weights: bytes) -> Assignment:
        """The assignment encoded by another party's `head` and `weights_bytes`; its weights are a
        read-only view of those bytes.

        Raises:
            ProtocolError: they are not an assignment.
        """
        body = decode_object(head, "an assignment", _KEYS)
        try:
            job, terms = bytes.fromhex(body["job"]), bytes.fromhex(body["terms"])
        except (TypeError, ValueError):
            raise ProtocolError("an assignment whose job or terms are not hexadecimal") from None
        number, seed = body["round"], body["seed"]
        if (
            len(job) != 32
            or len(terms) not in (0, 32)
            or type(number) is not int
            or not 1 <= number < 2**31
            or type(seed) is not int
            or not 0 <= seed < 2**63
            or type(body["task"]) is not str
            or type(body["local"]) is not dict
            or type(body["mechanism"]) is not dict
            or not (body["clipping"] is None or type(body["clipping"]) is dict)
        ):
            raise ProtocolError("an assignment with a value of the wrong type")
        if len(weights) % 4:
            raise ProtocolError(f"weights of {len(weights)} bytes are not a float32 vector")
        numbers = np.frombuffer(weights, dtype="<f4").astype(np.float32, copy=False)
        shared = _shared(body["shared"], numbers)
        own = len(numbers) - sum(each.size for each in shared.values())
        return cls(
            job=job,
            round=number,
            task=body["task"],
            weights=numbers[:own],
            shared=shared,
            local=body["local"],
            mechanism=body["mechanism"],
            seed=seed,
            clipping=body["clipping"],
            terms=terms,
        )

    @property
    def context(self) -> RoundContext:
        """What secure aggregation binds into every signature and every share of this round."""
        return self.epoch_context(1)

    def epoch_context(self, buffers: int) -> RoundContext:
        """The same for an epoch of `buffers` buffers, of which this is the first's assignment."""
        return RoundContext(job=self.job, round=self.round, model_hash=self.digest, buffers=buffers)


def _shared(stated: Any, numbers: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The shared tensors at the end of an assignment's numbers, by their stated names and shapes.

    Raises:
        ProtocolError: no such tensors are there.
    """
    if type(stated) is not list or len(stated) > _MOST_SHARED:
        raise ProtocolError("an assignment whose shared tensors are no short list")
    sizes: list[tuple[str, tuple[int, ...], int]] = []
    for each in stated:
        if type(each) is not list or len(each) != 2 or type(each[0]) is not str:
            raise ProtocolError("an assignment whose shared tensors have no names and shapes")
        name, shape = each
        if type(shape) is not list or len(shape) > 32 or not name.isprintable():
            raise ProtocolError("an assignment whose shared tensors have no names and shapes")
        if not all(type(size) is int and 0 <= size < 2**40 for size in shape):
            raise ProtocolError("an assignment with a shared tensor of an impossible shape")
        sizes.append((name, tuple(shape), math.prod(shape)))
    start = len(numbers) - sum(size for _, _, size in sizes)
    if start < 0 or len({name for name, _, _ in sizes}) != len(sizes):
        raise ProtocolError("an assignment that lacks numbers of its shared tensors")
    found: dict[str, NDArray[np.float32]] = {}
    for name, shape, size in sizes:
        found[name] = numbers[start : start + size].reshape(shape)
        start += size
    return found


def batch_seed(seed: int, round: int, client: int) -> int:
    """Seed of one client's batch order, from the job's seed, the round and the client.

    Simulated and deployed clients call this one function, so that they train on the same batches.
    """
    key = seed.to_bytes(8, "big")
    text = f"batches {round} {client}".encode()
    digest = hashlib.sha256(b"fedsys\x00" + len(key).to_bytes(4, "big") + key + text)
    return int.from_bytes(digest.digest()[:8], "big")
