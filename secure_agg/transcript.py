"""What everybody in a round must see alike: the session, the cohort, the graph, the dealt shares.

Each object here is a pure function of bytes that the server sends to everybody and that the
members' signatures cover; both machines build them with the same code.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from secure_agg import checks, keys
from secure_agg.digests import SUITE, digest
from secure_agg.errors import MessageError, ParameterError
from secure_agg.graph import Graph
from secure_agg.messages import (
    ADVERT_ROW,
    COMMITMENTS_SIZE,
    DEALT_ROW,
    MAX_NAME,
    Begin,
    pack_ids,
    rows,
)
from secure_agg.params import SecAggParams
from secure_agg.roster import Roster
from secure_agg.shared import Shared

__all__ = ["Cohort", "Dealt", "RoundContext", "View", "session_hash"]


@dataclass(frozen=True, kw_only=True)
class RoundContext:
    """What a round is about; hashed into every signature and every key.

    Attributes:
        job: Names the training job, at most 255 bytes.
        round: The round's number, from 0; a participant's rounds increase.
        model_hash: Of what the participants compute their inputs from, so that a server that gives
            them different models gets garbage.
        policy: Anything else they must agree upon (a clipping norm's encoding, say), opaque here.

    Raises:
        ParameterError: On a name of more than 255 bytes, or a round outside 0 to 2^64 - 1.
    """

    job: bytes
    round: int
    model_hash: bytes = b""
    policy: bytes = b""

    def __post_init__(self) -> None:
        for name in ("job", "model_hash", "policy"):
            value = getattr(self, name)
            if not isinstance(value, bytes) or len(value) > MAX_NAME:
                raise ParameterError(f"{name}: at most {MAX_NAME} bytes are needed")
        if not 0 <= self.round < 2**64:
            raise ParameterError(f"round is {self.round}: from 0 to 2^64 - 1")

    @staticmethod
    def of(begin: Begin) -> RoundContext:
        """Return the context that an opening message announces."""
        return RoundContext(
            job=begin.job,
            round=begin.round,
            model_hash=begin.model_hash,
            policy=begin.policy,
        )

    def begin(self, params: SecAggParams, roster: Roster, length: int, attempt: int) -> Begin:
        """Return the opening message's content."""
        return Begin(
            job=self.job,
            round=self.round,
            attempt=attempt,
            model_hash=self.model_hash,
            policy=self.policy,
            roster_hash=roster.hash,
            params=params,
            length=length,
        )


def session_hash(begin: Begin) -> bytes:
    """Return the 32 bytes that stand for everything agreed upon before the first message."""
    return digest("session", SUITE, begin.body())


def advert_digest(session: bytes, member: int, fields: bytes) -> bytes:
    """Return what a member signs at stage 0, 32 bytes.

    Args:
        session: 32 bytes.
        member: Id.
        fields: Its two public keys and its commitment, 96 bytes.
    """
    return digest("advert", session, member.to_bytes(4, "little"), fields)


def nonce_commitment(session: bytes, member: int, nonce: bytes) -> bytes:
    """Return the commitment to a graph nonce of 32 bytes, 32 bytes."""
    return digest("graph nonce", session, member.to_bytes(4, "little"), nonce)


def dealt_digest(view: bytes, member: int, seed_hash: bytes, commitments_hash: bytes) -> bytes:
    """Return what a member signs at stage 1, 32 bytes: H(b) and the SHA-256 of its commitments."""
    return digest("dealt", view, member.to_bytes(4, "little"), seed_hash, commitments_hash)


def alive_digest(transcript: bytes, alive: list[int]) -> bytes:
    """Return what a member signs at stage 3, 32 bytes: the transcript and one alive set."""
    return digest("alive", transcript, pack_ids(alive))


class Cohort:
    """The adverts of stage 0, every one signed by a member of the roster for this session.

    Args:
        roster: The pinned list of members.
        params: Of the round.
        session: 32 bytes.
        body: Of the COHORT message.
        shared: Work shared with a virtual cohort in this process.

    Raises:
        MessageError: On a wrong form.
        ThresholdNotMet: Fewer than ``min_alive`` advertised.
        AliveSetError: More than n did.
        DuplicateMember: An id or a public key occurs twice.
        RosterError: A member is not in the roster.
        SignatureMismatch: A signature does not verify.

    Attributes:
        body: As given.
        session: As given.
        ids: Increasing ids; what follows is in their order.
        ciphers: X25519 public keys under which shares are sealed, 32 bytes each.
        masks: X25519 public keys of the masks, 32 bytes each.
        commitments: To the graph nonces, 32 bytes each.
        index: Place of each id in these lists.
    """

    __slots__ = ("body", "ciphers", "commitments", "ids", "index", "masks", "session")

    def __init__(
        self, roster: Roster, params: SecAggParams, session: bytes, body: bytes,
        shared: Shared | None,
    ) -> None:  # fmt: skip
        found = rows(body, ADVERT_ROW, "cohort")
        checks.enough_members(len(found), params, "advertised")
        self.body = body
        self.session = session
        self.ids = [row[0] for row in found]
        checks.distinct(self.ids, len(found), "id")
        self.ciphers = [row[1] for row in found]
        self.masks = [row[2] for row in found]
        checks.distinct((*self.ciphers, *self.masks), 2 * len(found), "public key")
        self.commitments = [row[3] for row in found]
        for id_, cipher, mask, commitment, signature in found:
            message = advert_digest(session, id_, cipher + mask + commitment)
            public = checks.enrolled(roster, id_)
            checks.signature(keys.verifies(public, signature, message, shared), id_, "advert")
        self.index = {id_: i for i, id_ in enumerate(self.ids)}

    def fields(self, index: int) -> bytes:
        """Return a member's two public keys and its commitment, 96 bytes."""
        return b"".join((self.ciphers[index], self.masks[index], self.commitments[index]))

    @staticmethod
    def read(
        roster: Roster, params: SecAggParams, session: bytes, body: bytes, shared: Shared | None
    ) -> Cohort:
        """Build and check, once for each complete input where ``shared`` is given."""
        if shared is None:
            return Cohort(roster, params, session, body, None)
        key = ("cohort", roster.hash, session, body)
        return shared.get(key, lambda: Cohort(roster, params, session, body, shared))


class View:
    """The cohort and its graph, after all nonces are revealed.

    Args:
        cohort: Of the round.
        params: Of the round.
        nonces: 32 bytes for each member, by increasing id.

    Raises:
        NonceWithheld: There are fewer or more.
        NonceMismatch: One differs from its commitment.

    Attributes:
        cohort: As given.
        nonces: As given.
        hash: 32 bytes that pin session, cohort and nonces.
        graph: Over the members' places in ``cohort.ids``.
    """

    __slots__ = ("cohort", "graph", "hash", "nonces")

    def __init__(self, cohort: Cohort, params: SecAggParams, nonces: bytes) -> None:
        checks.nonces_revealed(len(nonces) // 32, len(cohort.ids))
        for i, id_ in enumerate(cohort.ids):
            found = nonce_commitment(cohort.session, id_, nonces[32 * i : 32 * i + 32])
            checks.nonce(cohort.commitments[i], found, id_)
        self.cohort = cohort
        self.nonces = nonces
        self.hash = digest("view", cohort.session, cohort.body, nonces)
        self.graph = Graph(
            slots=params.n,
            degree=params.degree,
            members=len(cohort.ids),
            seed=digest("graph seed", self.hash),
        )

    @staticmethod
    def read(cohort: Cohort, params: SecAggParams, nonces: bytes, shared: Shared | None) -> View:
        """Build and check, once for each complete input where ``shared`` is given."""
        if shared is None:
            return View(cohort, params, nonces)
        key = ("view", cohort.session, cohort.body, nonces)
        return shared.get(key, lambda: View(cohort, params, nonces))

    def neighbour_ids(self, index: int) -> list[int]:
        """Return the increasing ids of the neighbours of the member in place ``index``."""
        ids = self.cohort.ids
        return [ids[j] for j in self.graph.neighbours[index]]


class Dealt:
    """Stage 1's set: who dealt shares, with everybody's signed H(b) and commitments.

    Args:
        view: The cohort and its graph.
        params: Of the round.
        body: Rows of the DELIVERY message, one for each dealer.

    Raises:
        MessageError: On a wrong form, or a dealer outside the cohort.
        ThresholdNotMet: Fewer than ``min_alive`` dealt.
        AliveSetError: More than n did.
        DuplicateMember: An id occurs twice.

    Attributes:
        view: As given.
        body: As given.
        ids: Increasing ids of those who dealt.
        transcript: Hash of everything so far; mask keys and the stage-3 signature contain it.
    """

    __slots__ = ("_contexts", "_rows", "body", "ids", "transcript", "view")

    def __init__(self, view: View, params: SecAggParams, body: bytes) -> None:
        found = rows(body, DEALT_ROW, "dealt shares")
        checks.enough_members(len(found), params, "dealt shares")
        self.ids = [row[0] for row in found]
        checks.distinct(self.ids, len(found), "id")
        if not all(id_ in view.cohort.index for id_ in self.ids):
            raise MessageError("dealt shares: a member outside the cohort")
        self.view = view
        self.body = body
        self._rows = {row[0]: (row[1], row[2], row[3]) for row in found}
        self._contexts: dict[int, tuple[bytes, bytes]] = {}
        self.transcript = digest("transcript", view.hash, body)

    @staticmethod
    def read(view: View, params: SecAggParams, body: bytes, shared: Shared | None) -> Dealt:
        """Build and check, once for each complete input where ``shared`` is given."""
        if shared is None:
            return Dealt(view, params, body)
        return shared.get(("dealt", view.hash, body), lambda: Dealt(view, params, body))

    def __contains__(self, id_: int) -> bool:
        return id_ in self._rows

    def row(self, id_: int) -> tuple[bytes, bytes, bytes]:
        """Return a dealer's H(b), hash of commitments, and signature: 32, 32 and 64 bytes."""
        return self._rows[id_]

    def context(self, id_: int, commitments: bytes) -> bytes:
        """Return what a dealer signed, and sealed its shares to: its H(b) and these commitments.

        Whoever opens a share under it knows the dealer's row to be the dealer's, so that members
        need not verify each other's stage-1 signatures; those are evidence, which the server
        verifies before it combines a dealer's shares.

        Raises:
            MessageError: When the commitments are not those of the dealer's row.
        """
        known = self._contexts.get(id_)
        if known is not None and known[0] == commitments:
            return known[1]
        seed_hash, commitments_hash, _ = self._rows[id_]
        if hashlib.sha256(commitments).digest() != commitments_hash:
            raise MessageError(f"the commitments of member {id_} are not those that it signed")
        context = dealt_digest(self.view.hash, id_, seed_hash, commitments_hash)
        self._contexts[id_] = commitments, context
        return context


def commitment_at(commitments: bytes, place: int, kind: int) -> bytes:
    """Return the commitment to one share, 32 bytes.

    Args:
        commitments: All of a dealer, 64 bytes for each neighbour.
        place: The holder's, among the dealer's neighbours.
        kind: 0 for b's share, 1 for s's.
    """
    at = place * COMMITMENTS_SIZE + 32 * kind
    return commitments[at : at + 32]
