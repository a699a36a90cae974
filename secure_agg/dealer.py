"""A dealer's one message: the encrypted vector, the shares of its secret, and their proof."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from secure_agg import masking, sharing
from secure_agg.messages import Dealt, Kind, Upload, frame, pack_values
from secure_agg.roster import Identity
from secure_agg.sealing import KEY_SIZE, Sealer
from secure_agg.session import Session, proof_statement, upload_digest
from secure_agg.shared import Shared
from secure_agg.streams import derive

__all__ = ["deal", "public_polynomial", "sealing_keys_of"]


def public_polynomial(session: Session, shared: Shared | None) -> masking.PublicPolynomials:
    """Return the ring elements that all of a job's ciphertexts are made with."""
    seed, params = session.public_seed, session.params
    if shared is None:
        return masking.PublicPolynomials(seed, params)
    return shared.get(
        ("public polynomial", seed, params),
        lambda: masking.PublicPolynomials(seed, params, cached=True),
    )


def deal(
    session: Session,
    *,
    identity: Identity,
    id: int,
    sequence: int,
    vector: masking.Unsigned,
    seed: bytes,
    shared: Shared | None = None,
) -> bytes:
    """Return an UPLOAD message.

    Args:
        session: The round.
        identity: Signs it.
        id: The dealer's.
        sequence: Number of this upload in the session.
        vector: Unsigned integers modulo 2^modulus_bits, shape (dimension,).
        seed: 32 bytes of fresh entropy; never used for a second upload.
        shared: Work shared with a virtual cohort in this process.
    """
    params = session.params
    secret = masking.sample_secret(derive(seed, "secret"))
    public = public_polynomial(session, shared)
    ciphertext = np.empty(params.ciphertext_bytes, np.uint8).data
    hashed = hashlib.sha256()
    masking.encrypt(vector, secret, public, derive(seed, "error"), ciphertext, hashed)
    ciphertext_hash = hashed.digest()
    shares = sharing.share(
        secret,
        committee=params.committee,
        threshold=params.threshold,
        packing=params.packing,
        seed=derive(seed, "shares"),
    )
    sealer = Sealer(derive(seed, "ephemeral"), session.hash, id, sequence)
    plain = pack_values(shares)
    size = len(plain) // params.committee
    seats = session.seats
    keys, sealed = sealer.seal(
        seats,
        [session.keys[seat] for seat in seats],
        [plain[seat * size : (seat + 1) * size] for seat in seats],
    )
    if shared is not None and params.suite == 1:
        name = _keys_name(session, id, sequence, sealer.public)
        shared.get(name, lambda: b"".join(keys))
    all_sealed = b"".join(sealed)
    sealed_hash = hashlib.sha256(all_sealed).digest()
    statement = proof_statement(session.hash, id, sequence, sealer.public, sealed_hash)
    coefficients = sharing.challenge(statement, params.columns, shared)
    proof = pack_values(sharing.prove(shares, coefficients, params.threshold))
    signed = upload_digest(
        session.hash,
        id,
        sequence,
        sealer.public,
        ciphertext_hash,
        sealed_hash,
        hashlib.sha256(proof).digest(),
    )
    upload = Upload(
        sequence=sequence,
        ephemeral=sealer.public,
        signature=identity.sign(signed),
        ciphertext=ciphertext,
        proof=proof,
        sealed=all_sealed,
    )
    return frame(Kind.UPLOAD, session.hash, *upload.parts())


def _keys_name(session: Session, id_: int, sequence: int, ephemeral: bytes) -> tuple[object, ...]:
    """Everything that determines the keys of one upload's shares, in suite 1.

    In suite 2 they also depend on the encapsulations, and are computed by each side.
    """
    return ("sealing keys", session.hash, id_, sequence, ephemeral)


def sealing_keys_of(
    session: Session, shared: Shared | None, dealt: Sequence[Dealt], seat: int
) -> Sequence[bytes | None]:
    """Return the keys of shares whose dealers live in this process too, None for the others.

    Args:
        session: The round.
        shared: Work shared with a virtual cohort in this process.
        dealt: The uploads.
        seat: The committee member's position.
    """
    if shared is None or session.params.suite != 1:
        return [None] * len(dealt)
    memo = shared
    uploads = tuple((one.id, one.sequence, one.ephemeral) for one in dealt)

    def find() -> list[bytes | None]:
        return [memo.find(_keys_name(session, *upload)) for upload in uploads]

    at = KEY_SIZE * session.seats.index(seat)
    found: list[bytes | None] = memo.get(("keys of uploads", session.hash, uploads), find)
    return [None if keys is None else keys[at : at + KEY_SIZE] for keys in found]
