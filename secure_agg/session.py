"""What a round is about, who sits on its committee, and the hashes that bind every message to both.

The committee of a large cohort is the C members with the least H(seed, id), where the seed is a
hash of the job, the round, the roster and the whole cohort: a server that looks for a committee it
likes has nothing to vary but the cohort, and the parameters absorb 2^64 tries.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from secure_agg import checks
from secure_agg.digests import SUITES, digest
from secure_agg.errors import ParameterError
from secure_agg.params import SecAggParams
from secure_agg.prekeys import check_prekey, public_key
from secure_agg.roster import Roster
from secure_agg.shared import Shared

__all__ = [
    "SET_ROW",
    "RoundContext",
    "Session",
    "answer_digest",
    "draw_committee",
    "endorsement_digest",
    "set_digest",
    "upload_digest",
]

MAX_NAME = 255
MAX_BUFFERS = 2**20
_NUMBERS = struct.Struct("<QI")
_ROW = struct.Struct("<II")
SET_ROW = struct.Struct("<II32s")
"""One upload of a set: the dealer's id, its sequence number, the digest of the upload."""


@dataclass(frozen=True, kw_only=True)
class RoundContext:
    """What a round is about; hashed into every signature and every key.

    Attributes:
        job: Names the training job, at most 255 bytes.
        round: The round's number, or the epoch's where ``buffers`` is more than one; from 0, and a
            member's rounds increase.
        model_hash: Of what the members compute their inputs from, so that a server that gives them
            different models gets garbage.
        policy: Anything else they must agree upon, opaque here.
        buffers: How many sums are taken under one committee, 1 to 2^20: one in a synchronous round,
            more in an epoch of buffered rounds.

    Raises:
        ParameterError: On a name of more than 255 bytes, or a number out of its range.
    """

    job: bytes
    round: int
    model_hash: bytes = b""
    policy: bytes = b""
    buffers: int = 1

    def __post_init__(self) -> None:
        for name in ("job", "model_hash", "policy"):
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) > MAX_NAME:
                raise ParameterError(f"{name}: at most {MAX_NAME} bytes are needed")
        if not 0 <= self.round < 2**64:
            raise ParameterError(f"round is {self.round}: from 0 to 2^64 - 1")
        if not 1 <= self.buffers <= MAX_BUFFERS:
            raise ParameterError(f"buffers is {self.buffers}: from 1 to {MAX_BUFFERS}")

    @property
    def job_hash(self) -> bytes:
        """32 bytes under which a member keeps its marks of this job."""
        return hashlib.sha256(self.job).digest()


def draw_committee(
    cohort: Sequence[int], size: int, context: RoundContext, roster_hash: bytes
) -> tuple[int, ...]:
    """Return the committee's ids in increasing order.

    Args:
        cohort: Increasing ids.
        size: Of the committee; the whole cohort where they are equal.
        context: Job and round are hashed.
        roster_hash: 32 bytes.
    """
    if size >= len(cohort):
        return tuple(cohort)
    seed = digest(
        "committee",
        context.job,
        context.round.to_bytes(8, "little"),
        roster_hash,
        struct.pack(f"<{len(cohort)}I", *cohort),
    )
    ranked = sorted(
        (hashlib.sha256(seed + id_.to_bytes(4, "little")).digest(), id_) for id_ in cohort
    )
    return tuple(sorted(id_ for _, id_ in ranked[:size]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """A round with its committee and its sealing keys: what all parties must see alike.

    Attributes:
        params: Of the round.
        context: Of the round.
        roster: The pinned list.
        cohort: Increasing ids of those invited.
        committee: Increasing ids; the place in this list is a member's position.
        prekeys: A signed sealing key for each position, empty for one without.
        hash: 32 bytes that bind all of it.
        keys: The public sealing key for each position, empty for one without.
        seats: Positions with a key, increasing.
        positions: Position of each committee member.
        places: Index of each member in the cohort.
    """

    params: SecAggParams
    context: RoundContext
    roster: Roster
    cohort: tuple[int, ...]
    committee: tuple[int, ...]
    prekeys: tuple[bytes, ...]
    hash: bytes
    keys: tuple[bytes, ...]
    seats: tuple[int, ...]
    positions: Mapping[int, int] = field(repr=False)
    places: Mapping[int, int] = field(repr=False)

    def __repr__(self) -> str:
        return f"Session({self.hash.hex()[:16]}..., {len(self.cohort)} members)"

    @functools.cached_property
    def public_seed(self) -> bytes:
        """The 32 bytes that the ring element a of all the job's rounds is expanded from."""
        return digest("public polynomial", self.context.job, self.params.encode())

    @staticmethod
    def build(
        *,
        params: SecAggParams,
        context: RoundContext,
        roster: Roster,
        cohort: Sequence[int],
        committee: Sequence[int],
        prekeys: Sequence[bytes],
        shared: Shared | None = None,
    ) -> Session:
        """Check what a session consists of, and hash it.

        Args:
            params: Of the round.
            context: Of the round.
            roster: The pinned list.
            cohort: Increasing ids.
            committee: Ids by position.
            prekeys: Signed sealing keys by position, or empty.
            shared: Work shared with the other members of a virtual cohort.

        Raises:
            RosterError: An invited member is not in the roster.
            DuplicateMember: Somebody is invited twice, or two positions have one sealing key.
            CommitteeMismatch: The committee is not the one that the cohort determines.
            SignatureMismatch: A sealing key is not signed by its owner.
            LowOrderPoint: A sealing key is of low order.
            MessageError: A sealing key is malformed or of another suite.
        """
        checks.distinct(cohort, len(cohort), "id")
        for member in cohort:
            checks.enrolled(roster, member)
        drawn = draw_committee(cohort, params.committee, context, roster.hash)
        checks.committee(drawn, tuple(committee))
        keys = []
        for member, prekey in zip(committee, prekeys, strict=True):
            if prekey:
                checks.suite(prekey[0], params.suite, member)
                check_prekey(checks.enrolled(roster, member), prekey, shared)
            keys.append(public_key(prekey) if prekey else b"")
        seats = tuple(position for position, key in enumerate(keys) if key)
        checks.distinct((keys[seat] for seat in seats), len(seats), "sealing key")
        hashed = digest(
            "session",
            SUITES[params.suite],
            context.job,
            _NUMBERS.pack(context.round, context.buffers),
            context.model_hash,
            context.policy,
            params.encode(),
            roster.hash,
            struct.pack(f"<{len(cohort)}I", *cohort),
            struct.pack(f"<{len(committee)}I", *committee),
            *prekeys,
        )
        return Session(
            params=params,
            context=context,
            roster=roster,
            cohort=tuple(cohort),
            committee=tuple(committee),
            prekeys=tuple(prekeys),
            hash=hashed,
            keys=tuple(keys),
            seats=seats,
            positions={member: position for position, member in enumerate(committee)},
            places={member: place for place, member in enumerate(cohort)},
        )


def upload_digest(
    session: bytes,
    id_: int,
    sequence: int,
    ephemeral: bytes,
    ciphertext_hash: bytes,
    sealed_hash: bytes,
    proof_hash: bytes,
) -> bytes:
    """Return what a dealer signs: everything that its upload contains; 32 bytes."""
    head = _ROW.pack(id_, sequence)
    return digest("upload", session, head, ephemeral, ciphertext_hash, sealed_hash, proof_hash)


def proof_statement(
    session: bytes, id_: int, sequence: int, ephemeral: bytes, sealed_hash: bytes
) -> bytes:
    """Return what a dealer's challenge is drawn from; 32 bytes."""
    return digest("proof", session, _ROW.pack(id_, sequence), ephemeral, sealed_hash)


def set_digest(session: bytes, buffer: int, rows: bytes) -> bytes:
    """Return what stands for a set of uploads; 32 bytes.

    Args:
        session: 32 bytes.
        buffer: Number of the sum in the session.
        rows: A `SET_ROW` for each upload, by increasing id of the dealer.
    """
    return digest("set", session, buffer.to_bytes(4, "little"), rows)


def endorsement_digest(set_hash: bytes) -> bytes:
    """Return what a committee member signs to endorse a set; 32 bytes."""
    return digest("endorsement", set_hash)


def answer_digest(set_hash: bytes, position: int, values: bytes) -> bytes:
    """Return what a committee member signs with the sum of its shares; 32 bytes."""
    return digest("answer", set_hash, position.to_bytes(4, "little"), values)
