"""The messages, to the byte: canonical, bounded before parsed, strictly decoded.

Every message is ``version (1) | kind (1) | session (32) | body``; all integers are little endian,
all lists of members are by increasing id. The session is a hash over everything agreed upon, so
that a message of another round, committee or parameter set is recognised at once. PROTOCOL.md holds
the tables.
"""

from __future__ import annotations

import enum
import itertools
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from secure_agg import checks
from secure_agg.errors import MessageError
from secure_agg.opening import MAX_NAME, OPENING, SEAT, Opening, increasing
from secure_agg.params import (
    MAX_COMMITTEE,
    PROOF_COLUMNS,
    RING_DEGREE,
    SEAL_OVERHEAD,
    SecAggParams,
)
from secure_agg.prekeys import PREKEY_SIZE
from secure_agg.session import Session
from secure_agg.signatures import SIGNATURE_SIZE

__all__ = [
    "HEADER_SIZE",
    "Certificate",
    "Complaint",
    "Delivery",
    "Kind",
    "Limits",
    "Opening",
    "Upload",
    "check_frame",
    "frame",
    "kind_of",
    "largest_from_server",
    "unframe",
]

VERSION: Final = 2
HEADER_SIZE: Final = 34
U32: Final = struct.Struct("<I")
_COMPLAINT: Final = struct.Struct("<I32s")
_DELIVERY: Final = struct.Struct("<II")
_UPLOAD: Final = struct.Struct("<I32s64sH")
_ROW: Final = struct.Struct("<II32s32s32s64s")


class Kind(enum.IntEnum):
    """What a message is; odd from the server, even from a member."""

    OPENING = 1
    UPLOAD = 2
    DELIVERY = 3
    CHECKED = 4
    PROPOSAL = 5
    ENDORSEMENT = 6
    CERTIFICATE = 7
    ANSWER = 8
    NEXT = 9


_KINDS: Final = {int(kind): kind for kind in Kind}
NAMES: Final = {kind: kind.name for kind in Kind}
"""Found faster than an attribute of an enumeration."""


def largest_from_server(n: int) -> int:
    """Bytes that no message of the server exceeds in a cohort of up to ``n``, of any parameters.

    A delivery is the largest: a row, a proof and a share of each member. The committee, and with it
    the threshold, is never larger than the cohort, and a secret takes at most a column a value.
    """
    proof = 2 * PROOF_COLUMNS * min(n, MAX_COMMITTEE)
    share = 2 * (RING_DEGREE + PROOF_COLUMNS) + max(SEAL_OVERHEAD.values())
    delivery = _DELIVERY.size + n * (_ROW.size + proof + share)
    return HEADER_SIZE + OPENING.size + 3 * MAX_NAME + delivery


class Limits:
    """Least and most bytes of each kind of body, known before a byte is parsed.

    Args:
        params: Of the round.
    """

    __slots__ = ("_bounds",)

    def __init__(self, params: SecAggParams) -> None:
        n, committee = params.n, params.committee
        proof, sealed = params.proof_bytes, params.share_bytes
        opening = OPENING.size + 4 * n + committee * SEAT.size
        upload = _UPLOAD.size + proof + params.ciphertext_bytes
        answer = 4 + 2 * params.columns + SIGNATURE_SIZE
        certificate = 4 + -(-committee // 8)
        self._bounds = {
            Kind.OPENING: (opening, opening + 3 * MAX_NAME + committee * PREKEY_SIZE[params.suite]),
            Kind.UPLOAD: (upload, upload + committee * sealed),
            Kind.DELIVERY: (_DELIVERY.size, _DELIVERY.size + n * (_ROW.size + proof + sealed)),
            Kind.CHECKED: (4, 4 + n * _COMPLAINT.size),
            Kind.PROPOSAL: (4 + -(-n // 8), 4 + -(-n // 8)),
            Kind.ENDORSEMENT: (4 + SIGNATURE_SIZE, 4 + SIGNATURE_SIZE),
            Kind.CERTIFICATE: (certificate, certificate + committee * SIGNATURE_SIZE),
            Kind.ANSWER: (answer, answer),
            Kind.NEXT: (4, 4),
        }

    def check(self, kind: Kind, size: int) -> None:
        """Refuse a body of a size that no honest sender makes.

        Raises:
            MessageError: Naming the kind and the bounds.
        """
        least, most = self._bounds[kind]
        checks.size(size, least, most, NAMES[kind])

    @property
    def largest_upload(self) -> int:
        """Bytes of the largest message that a member sends."""
        return HEADER_SIZE + max(most for kind, (_, most) in self._bounds.items() if not kind % 2)

    @property
    def largest_message(self) -> int:
        """Bytes of the largest message of all."""
        return HEADER_SIZE + max(most for _, most in self._bounds.values())


def frame(kind: Kind, session: bytes, *parts: bytes | bytearray | memoryview) -> bytes:
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
    checks.this_session(message[2:HEADER_SIZE], session, kind.name)


def unframe(message: bytes, kind: Kind, session: bytes, limits: Limits) -> memoryview:
    """Return a view of the body of a message that `check_frame` accepts.

    Raises:
        MessageError: As there.
    """
    check_frame(message, kind, session, limits)
    return memoryview(message)[HEADER_SIZE:]


def pack_bits(chosen: Collection[int], size: int) -> bytes:
    """Encode a subset of ``range(size)``, one bit each, the first in the lowest bit."""
    bits = np.zeros(size, np.uint8)
    bits[list(chosen)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_bits(body: bytes | memoryview, size: int, what: str) -> list[int]:
    """Decode what `pack_bits` wrote; increasing.

    Raises:
        MessageError: On another size, or a bit beyond it.
    """
    if len(body) != -(-size // 8):
        raise MessageError(f"{what}: {len(body)} bytes for {size} bits")
    bits = np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little")
    chosen: list[int] = np.flatnonzero(bits).tolist()
    if chosen and chosen[-1] >= size:
        raise MessageError(f"{what}: bit {chosen[-1]} of {size}")
    return chosen


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A dealer's one message.

    Attributes:
        sequence: Number of this upload in the session, from 0.
        ephemeral: Its X25519 key, 32 bytes.
        signature: Over everything, 64 bytes.
        ciphertext: The masked vector. In the message it begins at a multiple of eight bytes, as
            numpy takes twice as long for numbers that lie anywhere.
        proof: The combined polynomials by their values at the first t members.
        sealed: The shares of the positions that have a key, one after the other.
    """

    sequence: int
    ephemeral: bytes
    signature: bytes
    ciphertext: bytes | bytearray | memoryview
    proof: bytes
    sealed: bytes

    def parts(self) -> tuple[bytes | bytearray | memoryview, ...]:
        """Encode, as parts to be joined once."""
        head = _UPLOAD.pack(self.sequence, self.ephemeral, self.signature, 0)
        return head, self.ciphertext, self.proof, self.sealed

    @staticmethod
    def parse(message: bytes, session: Session) -> Upload:
        """Decode a whole message strictly; the ciphertext is not copied.

        Raises:
            MessageError: On a size that does not fit the session's committee, or padding.
        """
        params = session.params
        proof, sealed = params.proof_bytes, len(session.seats) * params.share_bytes
        size = _UPLOAD.size + params.ciphertext_bytes + proof + sealed
        checks.size(len(message) - HEADER_SIZE, size, size, Kind.UPLOAD.name)
        sequence, ephemeral, signature, padding = _UPLOAD.unpack_from(message, HEADER_SIZE)
        if padding:
            raise MessageError(f"an UPLOAD message whose padding is {padding}: it must be 0")
        first = HEADER_SIZE + _UPLOAD.size
        second = first + params.ciphertext_bytes
        third = second + proof
        return Upload(
            sequence=sequence,
            ephemeral=ephemeral,
            signature=signature,
            ciphertext=memoryview(message)[first:second],
            proof=message[second:third],
            sealed=message[third:],
        )


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """What a committee member learns of one upload, besides its own share.

    Attributes:
        id: The dealer's.
        sequence: Of its upload.
        ephemeral: Its X25519 key.
        ciphertext_hash: SHA-256 of the masked vector.
        sealed_hash: SHA-256 of all sealed shares.
        signature: The dealer's.
        proof: As uploaded.
    """

    id: int
    sequence: int
    ephemeral: bytes
    ciphertext_hash: bytes
    sealed_hash: bytes
    signature: bytes
    proof: bytes

    def row(self) -> bytes:
        """Encode."""
        head = _ROW.pack(
            self.id,
            self.sequence,
            self.ephemeral,
            self.ciphertext_hash,
            self.sealed_hash,
            self.signature,
        )
        return head + self.proof


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """The uploads of one buffer, for one committee member.

    Attributes:
        buffer: Number of the sum.
        rows: The same bytes for every member: see `Dealt`.
        sealed: This member's sealed shares, in the order of the rows.
        count: Number of dealers.
    """

    buffer: int
    rows: bytes
    sealed: bytes
    count: int

    def parts(self) -> tuple[bytes, ...]:
        """Encode, as parts to be joined once."""
        return _DELIVERY.pack(self.buffer, self.count), self.rows, self.sealed

    @staticmethod
    def parse(body: bytes | memoryview, params: SecAggParams) -> Delivery:
        """Decode strictly; nothing is copied but the parts.

        Raises:
            MessageError: On a count that does not fill the body.
        """
        buffer, count = _DELIVERY.unpack_from(body)
        row, sealed = _ROW.size + params.proof_bytes, params.share_bytes
        if len(body) != _DELIVERY.size + count * (row + sealed):
            raise MessageError(f"a DELIVERY message whose {count} dealers do not fill it")
        split = _DELIVERY.size + count * row
        return Delivery(
            buffer=buffer,
            rows=bytes(body[_DELIVERY.size : split]),
            sealed=bytes(body[split:]),
            count=count,
        )


def read_rows(rows: bytes, params: SecAggParams) -> list[Dealt]:
    """Decode a delivery's common rows.

    Raises:
        MessageError: The dealers' ids decrease.
    """
    size = _ROW.size + params.proof_bytes
    out = []
    for at in range(0, len(rows), size):
        proof = rows[at + _ROW.size : at + size]
        id_, sequence, ephemeral, ciphertext, sealed, signature = _ROW.unpack_from(rows, at)
        out.append(
            Dealt(
                id=id_,
                sequence=sequence,
                ephemeral=ephemeral,
                ciphertext_hash=ciphertext,
                sealed_hash=sealed,
                signature=signature,
                proof=proof,
            )
        )
    increasing([dealt.id for dealt in out], "a DELIVERY message's dealers")
    return out


@dataclass(frozen=True, kw_only=True)
class Complaint:
    """A committee member cannot use its share of one dealer.

    Attributes:
        dealer: The dealer's id.
        key: The key that sealed the share: it opens it for anybody, who then sees that it fails;
            all zero where the share does not open at all.
    """

    dealer: int
    key: bytes = bytes(32)

    @property
    def proven(self) -> bool:
        """Whether the complaint says what it rests on."""
        return any(self.key)


def pack_complaints(buffer: int, complaints: Sequence[Complaint]) -> bytes:
    """Encode a CHECKED body; the dealers increase."""
    rows = (_COMPLAINT.pack(one.dealer, one.key) for one in complaints)
    return b"".join((U32.pack(buffer), *rows))


def unpack_complaints(body: bytes) -> tuple[int, list[Complaint]]:
    """Decode what `pack_complaints` wrote.

    Raises:
        MessageError: A row is not whole, or the dealers do not increase strictly.
    """
    if len(body) < 4 or (len(body) - 4) % _COMPLAINT.size:
        raise MessageError(f"a CHECKED message of {len(body)} bytes: its rows are not whole")
    found = [Complaint(dealer=dealer, key=key) for dealer, key in _COMPLAINT.iter_unpack(body[4:])]
    if any(a.dealer >= b.dealer for a, b in itertools.pairwise(found)):
        raise MessageError("a CHECKED message: the dealers do not increase")
    return U32.unpack_from(body)[0], found


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Endorsements of one set.

    Attributes:
        buffer: Number of the sum.
        positions: Increasing positions of the endorsers.
        signatures: Theirs, in the same order.
    """

    buffer: int
    positions: tuple[int, ...]
    signatures: tuple[bytes, ...]

    def body(self, committee: int) -> bytes:
        """Encode for a committee of this size."""
        bits = pack_bits(self.positions, committee)
        return b"".join((U32.pack(self.buffer), bits, *self.signatures))

    @staticmethod
    def parse(body: bytes | memoryview, committee: int) -> Certificate:
        """Decode strictly.

        Raises:
            MessageError: On signatures that do not fill the body.
        """
        start = 4 + -(-committee // 8)
        if len(body) < start:
            raise MessageError(f"a CERTIFICATE message of {len(body)} bytes")
        positions = unpack_bits(body[4:start], committee, "a CERTIFICATE message's endorsers")
        if len(body) != start + SIGNATURE_SIZE * len(positions):
            raise MessageError("a CERTIFICATE message whose signatures do not fill it")
        starts = range(start, len(body), SIGNATURE_SIZE)
        return Certificate(
            buffer=U32.unpack_from(body)[0],
            positions=tuple(positions),
            signatures=tuple(bytes(body[at : at + SIGNATURE_SIZE]) for at in starts),
        )


def pack_values(values: np.typing.NDArray[np.generic]) -> bytes:
    """Encode elements of the field, two bytes each."""
    return values.astype("<u2").tobytes()


def unpack_values(body: bytes) -> np.typing.NDArray[np.uint16]:
    """View a body as elements of the field, two bytes each; they are not range-checked."""
    return np.frombuffer(body, "<u2")
