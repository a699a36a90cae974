"""How a committee member checks the shares that were dealt to it, many dealers at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from secure_agg import checks, sharing
from secure_agg.errors import LowOrderPoint, ShareError
from secure_agg.field import PRIME, centred
from secure_agg.messages import Complaint, Dealt, read_rows, unpack_values
from secure_agg.sealing import ENCAPSULATION_SIZE, TAG_SIZE, Opener, unseal
from secure_agg.session import SET_ROW, Session, proof_statement, upload_digest
from secure_agg.shared import Large, Shared
from secure_agg.signatures import verifies

__all__ = ["Dealers", "Held", "fails", "open_shares", "read_dealers", "rows_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dealers:
    """The uploads of one buffer, verified: what is the same for every committee member.

    Attributes:
        dealt: By increasing id.
        rows: A `SET_ROW` for each dealer, one after the other.
        proofs: Shape (dealers, CHECKS, t), taken modulo the prime.
        coefficients: The challenges, shape (dealers, CHECKS, K).
    """

    dealt: tuple[Dealt, ...]
    rows: bytes
    proofs: npt.NDArray[np.uint16]
    coefficients: npt.NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """Shares of one buffer that passed every check.

    Attributes:
        dealers: Increasing ids.
        sequences: Of their uploads.
        rows: A `SET_ROW` for each of them, one after the other.
        shares: Shape (dealers, K), residues; secret.
    """

    dealers: tuple[int, ...]
    sequences: tuple[int, ...]
    rows: bytes
    shares: npt.NDArray[np.uint16] = field(repr=False)


def read_dealers(session: Session, rows: bytes, shared: Shared | None) -> Dealers:
    """Decode a delivery's common rows and verify what the dealers signed.

    Raises:
        MessageError: The rows are malformed.
        RosterError: A dealer is not in the cohort.
        DuplicateMember: A dealer occurs twice.
        SignatureMismatch: A dealer did not sign what is delivered in its name.
    """
    if shared is None:
        return _read_dealers(session, rows, None)
    name = ("dealers", session.hash, Large(rows))
    return shared.get(name, lambda: _read_dealers(session, rows, shared))


def _read_dealers(session: Session, rows: bytes, shared: Shared | None) -> Dealers:
    params = session.params
    dealt = read_rows(rows, params)
    checks.distinct((one.id for one in dealt), len(dealt), "dealer")
    packed = []
    count = len(dealt)
    coefficients = np.empty((count, sharing.CHECKS, params.columns), np.uint16)
    for i, one in enumerate(dealt):
        checks.invited(session.places, one.id)
        signed = upload_digest(
            session.hash,
            one.id,
            one.sequence,
            one.ephemeral,
            one.ciphertext_hash,
            one.sealed_hash,
            hashlib.sha256(one.proof).digest(),
        )
        public = checks.enrolled(session.roster, one.id)
        checks.signature(verifies(public, one.signature, signed, shared), one.id, "upload")
        packed.append(SET_ROW.pack(one.id, one.sequence, signed))
        statement = proof_statement(
            session.hash, one.id, one.sequence, one.ephemeral, one.sealed_hash
        )
        coefficients[i] = sharing.challenge(statement, params.columns, shared)
    proofs = unpack_values(b"".join(one.proof for one in dealt))
    return Dealers(
        dealt=tuple(dealt),
        rows=b"".join(packed),
        proofs=proofs.reshape(count, sharing.CHECKS, params.threshold),
        coefficients=coefficients,
    )


def open_shares(
    session: Session,
    dealers: Dealers,
    sealed: bytes,
    opener: Opener,
    seat: int,
    known: Sequence[bytes | None],
) -> tuple[Held, list[Complaint]]:
    """Open one member's shares and test them.

    Args:
        session: The round.
        dealers: Whose uploads these are.
        sealed: The member's sealed shares, one after the other.
        opener: The member's private sealing key.
        seat: The member's position.
        known: For each dealer its share's key, where the dealer lives in this process.

    Returns:
        The shares that passed, and a complaint for each that did not.
    """
    params = session.params
    head, size = ENCAPSULATION_SIZE[params.suite], params.share_bytes
    complaints: list[Complaint] = []
    opened: list[int] = []
    keys: list[bytes] = []
    for i, (one, key) in enumerate(zip(dealers.dealt, known, strict=True)):
        try:
            if key is None:
                encapsulation = sealed[i * size : i * size + head]
                key = opener.key(one.id, one.sequence, one.ephemeral, encapsulation)
        except LowOrderPoint:
            complaints.append(Complaint(dealer=one.id))
            continue
        opened.append(i)
        keys.append(key)
    # Apart from the agreements: a core keeps the code that it runs.
    boxes = [sealed[i * size + head : (i + 1) * size] for i in opened]
    found = [unseal(key, box, session.hash) for key, box in zip(keys, boxes, strict=True)]
    plains = [bytes(size - head - TAG_SIZE) if plain is None else plain for plain in found]
    for place in reversed([place for place, plain in enumerate(found) if plain is None]):
        dealer = dealers.dealt[opened[place]].id
        try:
            checks.share_opens(None, dealer)
        except ShareError:
            complaints.append(Complaint(dealer=dealer))
            del opened[place], keys[place], plains[place]
    width = params.columns + sharing.CHECKS  # stated: of none, nothing could be inferred
    values = unpack_values(b"".join(plains)).reshape(len(opened), width)
    good = passes(session, values, dealers, np.array(opened, np.int64), seat)
    largest = values.max(axis=1, initial=0)
    failed: set[int] = set()
    for place in np.flatnonzero(~good | (largest >= PRIME)).tolist():
        dealer = dealers.dealt[opened[place]].id
        try:
            checks.share_in_field(int(largest[place]), PRIME, dealer)
            checks.low_degree(bool(good[place]), dealer)
        except ShareError:
            complaints.append(Complaint(dealer=dealer, key=keys[place]))
            failed.add(place)
    kept = [place for place in range(len(opened)) if place not in failed]
    complaints.sort(key=lambda one: one.dealer)
    chosen = [opened[place] for place in kept]
    held = Held(
        dealers=tuple(dealers.dealt[i].id for i in chosen),
        sequences=tuple(dealers.dealt[i].sequence for i in chosen),
        rows=rows_of(dealers.rows, chosen, len(dealers.dealt)),
        shares=np.ascontiguousarray(values[kept, : params.columns]),
    )
    return held, complaints


def rows_of(rows: bytes, chosen: Sequence[int], count: int) -> bytes:
    """Return the rows of `SET_ROW`, of ``count``, whose numbers are in ``chosen``: increasing."""
    if len(chosen) == count:
        return rows
    size = SET_ROW.size
    return b"".join(rows[i * size : (i + 1) * size] for i in chosen)


def passes(
    session: Session,
    values: npt.NDArray[np.uint16],
    dealers: Dealers,
    chosen: npt.NDArray[np.int64],
    seat: int,
) -> npt.NDArray[np.bool_]:
    """Run the low-degree test on opened shares, shape (chosen, K + CHECKS)."""
    params = session.params
    row = centred(sharing.evaluation(params.committee, params.threshold)[seat])
    whole = len(chosen) == len(dealers.dealt)
    coefficients = dealers.coefficients if whole else dealers.coefficients[chosen]
    proofs = dealers.proofs if whole else dealers.proofs[chosen]
    return sharing.consistent(values, coefficients, proofs, row)


def fails(session: Session, dealt: Dealt, sealed: bytes, key: bytes, seat: int) -> bool:
    """Whether the key that a complaint reveals opens a share, and that share fails.

    Anybody can judge it: the dealer signed the sealed share and the proof. An honest dealer cannot
    be framed, because another key opens its sealed share with chance 2^-128 a try.

    Args:
        session: The round.
        dealt: The accused dealer's upload.
        sealed: The share that it sealed to this position.
        key: What the complaint reveals.
        seat: The position.
    """
    params = session.params
    plain = unseal(key, sealed[ENCAPSULATION_SIZE[params.suite] :], session.hash)
    if plain is None:
        return False
    values = unpack_values(plain)[None, :]
    if int(values.max()) >= PRIME:
        return True
    statement = proof_statement(
        session.hash, dealt.id, dealt.sequence, dealt.ephemeral, dealt.sealed_hash
    )
    dealers = Dealers(
        dealt=(dealt,),
        rows=b"",
        proofs=unpack_values(dealt.proof).reshape(1, sharing.CHECKS, params.threshold),
        coefficients=sharing.challenge(statement, params.columns).astype(np.uint16)[None],
    )
    return not bool(passes(session, values, dealers, np.zeros(1, np.int64), seat)[0])
