"""The twelve messages, to the byte: canonical, bounded before parsed, strictly decoded.

Every message is ``version (1) | kind (1) | session (32) | body``; all integers are little endian,
all lists of members are by increasing id. The session is a hash over everything agreed upon, so
that a message of another round, model or parameter set is recognised at once. PROTOCOL.md holds
the tables.
"""

from __future__ import annotations

import enum
import itertools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from secure_agg import checks
from secure_agg.errors import MessageError, ParameterError
from secure_agg.keys import SEALED_SIZE
from secure_agg.params import PARAMS_SIZE, SecAggParams
from secure_agg.ring import ring

__all__ = [
    "HEADER_SIZE",
    "Begin",
    "Kind",
    "Limits",
    "Release",
    "Unmask",
    "check_frame",
    "frame",
    "kind_of",
    "unframe",
]

VERSION: Final = 1
HEADER_SIZE: Final = 34
MAX_NAME: Final = 255
COMMITMENTS_SIZE: Final = 64
RELEASE_ROW: Final = struct.Struct("<IB32s32s")
ADVERT_ROW: Final = struct.Struct("<I32s32s32s64s")
DEALT_ROW: Final = struct.Struct("<I32s32s64s")
SIGNER_ROW: Final = struct.Struct("<I64s")
_U32: Final = struct.Struct("<I")
_BEGIN: Final = struct.Struct(f"<QBQ32s{PARAMS_SIZE}sBBB")


class Kind(enum.IntEnum):
    """What a message is; odd from the server, even from a client."""

    BEGIN = 1
    ADVERT = 2
    COHORT = 3
    REVEAL = 4
    NONCES = 5
    SHARES = 6
    DELIVERY = 7
    MASKED = 8
    ALIVE = 9
    CONSISTENCY = 10
    UNMASK = 11
    RELEASE = 12


_KINDS: Final = {int(kind): kind for kind in Kind}


class Limits:
    """Least and most bytes of each kind of body in a round, known before a byte is parsed.

    Args:
        params: Of the round.
        length: Elements of a vector, d.
    """

    __slots__ = ("_bounds",)

    def __init__(self, params: SecAggParams, length: int) -> None:
        n, k = params.n, params.degree
        vector = ring(params.modulus_bits).packed_size(length)
        self._bounds = {
            Kind.BEGIN: (_BEGIN.size, _BEGIN.size + 3 * MAX_NAME),
            Kind.ADVERT: (160, 160),
            Kind.COHORT: (0, n * ADVERT_ROW.size),
            Kind.REVEAL: (32, 32),
            Kind.NONCES: (4, 4 + 32 * n + 4 * k),
            Kind.SHARES: (96, 96 + k * (COMMITMENTS_SIZE + SEALED_SIZE)),
            Kind.DELIVERY: (
                4,
                4 + n * DEALT_ROW.size + k * (SEALED_SIZE + 2 + k * COMMITMENTS_SIZE),
            ),
            Kind.MASKED: (2 + vector, 2 + 4 * k + vector),
            Kind.ALIVE: (0, 4 * n),
            Kind.CONSISTENCY: (64, 64),
            Kind.UNMASK: (8, 8 + n * (SIGNER_ROW.size + 4)),
            Kind.RELEASE: (34, 34 + k * RELEASE_ROW.size),
        }

    def check(self, kind: Kind, size: int) -> None:
        """Refuse a body of a size that no honest sender makes.

        Raises:
            MessageError: Naming the kind and the bounds.
        """
        least, most = self._bounds[kind]
        checks.size(size, least, most, kind.name)

    @property
    def largest_answer(self) -> int:
        """Bytes of the largest body that a member sends."""
        return max(most for kind, (_, most) in self._bounds.items() if kind % 2 == 0)


def frame(kind: Kind, session: bytes, *parts: bytes) -> bytes:
    """Put a message together: header, then the parts of its body; ``session`` is 32 bytes."""
    return b"".join((bytes((VERSION, kind)), session, *parts))


def kind_of(message: bytes) -> Kind:
    """Return a message's kind.

    Raises:
        MessageError: On another version, an unknown kind or fewer bytes than a header.
    """
    if len(message) < HEADER_SIZE:
        raise MessageError(f"a message of {len(message)} bytes: the header takes {HEADER_SIZE}")
    if message[0] != VERSION:
        raise MessageError(f"a message of version {message[0]}: this is version {VERSION}")
    kind = _KINDS.get(message[1])
    if kind is None:
        raise MessageError(f"a message of unknown kind {message[1]}")
    return kind


def check_frame(message: bytes, kind: Kind, session: bytes, limits: Limits) -> None:
    """Check that a message is of this kind, session and an allowed size.

    Raises:
        MessageError: On another kind, session or size.
    """
    found = kind_of(message)
    if found is not kind:
        raise MessageError(f"a {found.name} message where {kind.name} was expected")
    limits.check(kind, len(message) - HEADER_SIZE)
    if message[2:HEADER_SIZE] != session:
        raise MessageError(f"a {kind.name} message of another session")


def unframe(message: bytes, kind: Kind, session: bytes, limits: Limits) -> bytes:
    """Return the body of a message that `check_frame` accepts.

    Raises:
        MessageError: As there.
    """
    check_frame(message, kind, session, limits)
    return message[HEADER_SIZE:]


def rows(body: bytes, layout: struct.Struct, what: str) -> list[tuple[Any, ...]]:
    """Split a body into rows that start with an id; ids must not decrease.

    Raises:
        MessageError: They do, or a row is not whole; names ``what``.
    """
    if len(body) % layout.size:
        raise MessageError(f"{what}: {len(body)} bytes are not a whole number of rows")
    out = list(layout.iter_unpack(body))
    ids = [row[0] for row in out]
    if ids != sorted(ids):
        raise MessageError(f"{what}: the ids do not increase")
    return out


def pack_ids(ids: Iterable[int]) -> bytes:
    """Encode ids, four bytes each, little endian."""
    ids = list(ids)
    return struct.pack(f"<{len(ids)}I", *ids)


def unpack_ids(body: bytes | memoryview, what: str) -> list[int]:
    """Decode what `pack_ids` wrote; ids must increase strictly.

    Raises:
        MessageError: They do not, or an id is not whole; names ``what``.
    """
    if len(body) % 4:
        raise MessageError(f"{what}: {len(body)} bytes are not a whole number of ids")
    ids = list(struct.unpack(f"<{len(body) // 4}I", body))
    if any(a >= b for a, b in itertools.pairwise(ids)):
        raise MessageError(f"{what}: the ids do not increase")
    return ids


def take_count(
    body: bytes | memoryview, at: int, width: int, size: int, what: str
) -> tuple[int, int]:
    """Read a count of ``width`` bytes at ``at``; return it and where its ``size``-byte rows end.

    Raises:
        MessageError: The body ends before; names ``what``.
    """
    start = at + width
    if start > len(body):
        raise MessageError(f"{what}: the message ends inside a count")
    count = int.from_bytes(body[at:start], "little")
    end = start + count * size
    if end > len(body):
        raise MessageError(f"{what}: the message ends before its {count} rows")
    return count, end


@dataclass(frozen=True, kw_only=True)
class Begin:
    """The server's opening: the whole context, to be compared with one's own.

    Attributes:
        job: Names the training job, at most 255 bytes.
        round: The round's number.
        attempt: Draws of the graph before this one.
        model_hash: At most 255 bytes.
        policy: At most 255 bytes.
        roster_hash: 32 bytes.
        params: Of the round.
        length: Elements of a vector, d.
    """

    job: bytes
    round: int
    attempt: int
    model_hash: bytes
    policy: bytes
    roster_hash: bytes
    params: SecAggParams
    length: int

    def body(self) -> bytes:
        """Encode."""
        head = _BEGIN.pack(
            self.round,
            self.attempt,
            self.length,
            self.roster_hash,
            self.params.encode(),
            len(self.job),
            len(self.model_hash),
            len(self.policy),
        )
        return head + self.job + self.model_hash + self.policy

    @staticmethod
    def parse(body: bytes) -> Begin:
        """Decode strictly.

        Raises:
            MessageError: On a wrong size or parameters that cannot work.
        """
        checks.size(len(body), _BEGIN.size, _BEGIN.size + 3 * MAX_NAME, "BEGIN")
        round_, attempt, length, roster_hash, raw, *sizes = _BEGIN.unpack_from(body)
        if len(body) != _BEGIN.size + sum(sizes):
            raise MessageError("a BEGIN message whose names do not fill it")
        names = []
        at = _BEGIN.size
        for size in sizes:
            names.append(body[at : at + size])
            at += size
        try:
            params = SecAggParams.decode(raw)
        except ParameterError as error:
            raise MessageError(f"a BEGIN message with impossible parameters: {error}") from None
        return Begin(
            job=names[0],
            round=round_,
            attempt=attempt,
            model_hash=names[1],
            policy=names[2],
            roster_hash=roster_hash,
            params=params,
            length=length,
        )


@dataclass(frozen=True, kw_only=True)
class Unmask:
    """The server's last request: who signed, and whom it takes for dropped.

    Attributes:
        signers: Increasing ids.
        signatures: Theirs over the alive set, 64 bytes each, in the same order.
        dropped: Increasing ids of those that dealt shares and are not alive.
    """

    signers: list[int]
    signatures: list[bytes]
    dropped: list[int]

    def body(self) -> bytes:
        """Encode."""
        signed = [SIGNER_ROW.pack(*row) for row in zip(self.signers, self.signatures, strict=True)]
        return b"".join(
            (
                _U32.pack(len(signed)),
                *signed,
                _U32.pack(len(self.dropped)),
                pack_ids(self.dropped),
            )
        )

    @staticmethod
    def parse(body: bytes) -> Unmask:
        """Decode strictly.

        Raises:
            MessageError: On counts that do not fill the body, or ids out of order.
        """
        _, end = take_count(body, 0, 4, SIGNER_ROW.size, "signers")
        signed = rows(body[4:end], SIGNER_ROW, "signers")
        _, last = take_count(body, end, 4, 4, "dropped")
        if last != len(body):
            raise MessageError("an UNMASK message with bytes left over")
        return Unmask(
            signers=[row[0] for row in signed],
            signatures=[row[1] for row in signed],
            dropped=unpack_ids(body[end + 4 : last], "dropped"),
        )


@dataclass(frozen=True, kw_only=True)
class Release:
    """A client's last answer: its own seed, and one share of each neighbour.

    Attributes:
        own_seed: b, 32 bytes.
        rows: (dealer, kind, share, opening), share and opening 32 bytes each; kind 0 for the
            self-mask seed of one that is alive, 1 for the mask key of one that is not.
    """

    own_seed: bytes
    rows: Sequence[tuple[int, int, bytes, bytes]]

    def body(self) -> bytes:
        """Encode."""
        count = len(self.rows).to_bytes(2, "little")
        return b"".join((self.own_seed, count, *(RELEASE_ROW.pack(*row) for row in self.rows)))

    @staticmethod
    def parse(body: bytes) -> Release:
        """Decode strictly.

        Raises:
            MessageError: On a count that does not fill the body, or dealers out of order.
        """
        _, end = take_count(body, 32, 2, RELEASE_ROW.size, "released shares")
        if end != len(body):
            raise MessageError("a RELEASE message with bytes left over")
        found = [
            (dealer, kind, share, opening)
            for dealer, kind, share, opening in RELEASE_ROW.iter_unpack(body[34:])
        ]
        ids = [row[0] for row in found]
        if any(a >= b for a, b in itertools.pairwise(ids)):
            raise MessageError("released shares: the ids do not increase")
        return Release(own_seed=body[:32], rows=found)
