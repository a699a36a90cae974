"""A member and its neighbours: the shares it deals, those it receives, the masks they agree on."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_agg import checks, keys
from secure_agg.errors import MessageError, ShareError
from secure_agg.messages import COMMITMENTS_SIZE, take_count
from secure_agg.shamir import split
from secure_agg.shared import Shared
from secure_agg.transcript import Dealt, View, commitment_at, dealt_digest

__all__ = ["Dealing", "released"]


class Dealing:
    """What one member does with its neighbours in one round.

    Args:
        me: The member's id.
        own: Its secrets of the round.
        view: The cohort and its graph.
        threshold: t, shares that determine a secret.
        shared: Work shared with the other members of a virtual cohort.

    Attributes:
        neighbours: Increasing ids.
    """

    __slots__ = (
        "_index",
        "_mask_private",
        "_mask_secrets",
        "_me",
        "_own",
        "_seal_keys",
        "_shared",
        "_threshold",
        "_view",
        "neighbours",
    )

    def __init__(
        self,
        *,
        me: int,
        own: keys.RoundSecrets,
        view: View,
        threshold: int,
        shared: Shared | None,
    ) -> None:
        self._me = me
        self._own = own
        self._view = view
        self._threshold = threshold
        self._shared = shared
        self._index = view.cohort.index[me]
        self._mask_private = X25519PrivateKey.from_private_bytes(own.mask)
        self._seal_keys: dict[int, bytes] = {}
        self._mask_secrets: dict[int, bytes] = {}
        self.neighbours = view.neighbour_ids(self._index)

    def deal(self) -> tuple[bytes, bytes, bytes]:
        """Share both secrets among the neighbours.

        Returns:
            H(b), 32 bytes; two commitments for each neighbour, 64 bytes; a sealed pair of shares
            for each, 156 bytes.

        Raises:
            LowOrderPoint: A neighbour's public key is of low order.
        """
        own, me, view = self._own, self._me, self._view
        secret = own.self_seed + own.mask
        count = len(self.neighbours)
        polynomials = (self._threshold - 1) * len(secret)
        each = 2 * keys.OPENING_SIZE + keys.NONCE_SIZE
        randomness = own.shares_entropy(polynomials + count * each)
        shares = split(secret, count, self._threshold, lambda size: randomness[:size])
        commitments: list[bytes] = []
        plains, nonces = [], []
        at = polynomials
        for holder, share in zip(self.neighbours, shares, strict=True):
            first = share[:32] + randomness[at : at + 32]
            second = share[32:] + randomness[at + 32 : at + 64]
            nonces.append(randomness[at + 64 : at + each])
            at += each
            commitments += (
                keys.commit_share(0, me, holder, first),
                keys.commit_share(1, me, holder, second),
            )
            plains.append(first + second)
        together = b"".join(commitments)
        seed_hash = keys.seed_hash(view.hash, me, own.self_seed)
        context = dealt_digest(view.hash, me, seed_hash, hashlib.sha256(together).digest())
        sealed = [
            keys.seal(self._seal_key(holder), nonce, plain, context, me, holder)
            for holder, nonce, plain in zip(self.neighbours, nonces, plains, strict=True)
        ]
        return seed_hash, together, b"".join(sealed)

    def agree(self) -> None:
        """Agree with every neighbour now: while the others deal, so that no upload waits for it.

        Raises:
            LowOrderPoint: A neighbour's public key is of low order.
        """
        if self._shared is None:
            for other in self.neighbours:
                self._mask_secret(other)

    def open(self, dealt: Dealt, personal: bytes) -> tuple[dict[int, bytes], list[int]]:
        """Open the shares that neighbours dealt.

        Args:
            dealt: Stage 1's set.
            personal: The receiver's part of a DELIVERY message.

        Returns:
            The authentic pairs of shares and openings by dealer, and the dealers of the others.

        Raises:
            MessageError: When the message is not what stage 1's set determines.
        """
        held: dict[int, bytes] = {}
        complaints: list[int] = []
        graph = self._view.graph
        at = 0
        for dealer, index, place in zip(
            self.neighbours, graph.neighbours[self._index], graph.places[self._index], strict=True
        ):
            if dealer not in dealt:
                continue
            sealed = personal[at : at + keys.SEALED_SIZE]
            start = at + keys.SEALED_SIZE
            count, at = take_count(personal, start, 2, COMMITMENTS_SIZE, "commitments")
            if count != len(graph.neighbours[index]):
                raise MessageError(f"member {dealer} has {count} commitments: one a neighbour")
            commitments = personal[start + 2 : at]
            context = dealt.context(dealer, commitments)
            try:
                held[dealer] = self._open_one(dealer, sealed, context, commitments, place)
            except ShareError:
                complaints.append(dealer)
        if at != len(personal):
            raise MessageError("a DELIVERY message with bytes left over")
        return held, complaints

    def _open_one(
        self, dealer: int, sealed: bytes, context: bytes, commitments: bytes, place: int
    ) -> bytes:
        """Open one pair of shares and compare both with the dealer's commitments."""
        plain = keys.unseal(self._seal_key(dealer), sealed, context, dealer, self._me)
        for kind in (0, 1):
            found = keys.commit_share(kind, dealer, self._me, _half(plain, kind))
            checks.share_fits(commitment_at(commitments, place, kind), found, dealer)
        return plain

    def masks(self, dealt: Dealt) -> tuple[list[bytes], list[bytes]]:
        """Return the keys of the masks to add and of those to subtract, bound to the transcript.

        Added: the member's own, and those that it has with dealers of higher id.

        Returns:
            Keys of 32 bytes, as `secure_agg.prg.add_masks` takes them.

        Raises:
            LowOrderPoint: A neighbour's public key is of low order.
        """
        own, cohort = self._own, self._view.cohort
        plus = [keys.self_mask_key(own.self_seed, dealt.transcript)]
        minus: list[bytes] = []
        for other in self.neighbours:
            if other in dealt:
                key = keys.pair_key(
                    "mask",
                    functools.partial(self._mask_secret, other),
                    own.mask_public,
                    cohort.masks[cohort.index[other]],
                    dealt.transcript,
                    self._shared,
                )
                (plus if self._me < other else minus).append(key)
        return plus, minus

    def _seal_key(self, other: int) -> bytes:
        """Return the key under which this member and a neighbour pass each other shares."""
        key = self._seal_keys.get(other)
        if key is None:
            own, cohort = self._own, self._view.cohort
            public = cohort.ciphers[cohort.index[other]]
            key = self._seal_keys[other] = keys.pair_key(
                "seal",
                functools.partial(keys.agree, own.cipher, public),
                own.cipher_public,
                public,
                cohort.session,
                self._shared,
            )
        return key

    def _mask_secret(self, other: int) -> bytes:
        """Return the secret from which the masks with a neighbour are derived."""
        secret = self._mask_secrets.get(other)
        if secret is None:
            cohort = self._view.cohort
            public = cohort.masks[cohort.index[other]]
            secret = self._mask_secrets[other] = keys.agree(self._mask_private, public)
        return secret


def released(
    held: Mapping[int, bytes], *, alive: Collection[int], dropped: Collection[int]
) -> list[tuple[int, int, bytes, bytes]]:
    """Return the rows of a RELEASE message: of each dealer whose shares are held, one share.

    Args:
        held: Opened pairs of shares and openings by dealer.
        alive: Of these dealers b's share is released.
        dropped: Of these s's; nobody is in both, which `checks.partition` has made sure of.

    Returns:
        (dealer, kind, share, opening) by increasing dealer; kind 0 is b's, 1 is s's.
    """
    rows = []
    for dealer in sorted(held):
        for kind, members in ((0, alive), (1, dropped)):
            if dealer in members:
                opened = _half(held[dealer], kind)
                share, opening = opened[: keys.SECRET_SIZE], opened[keys.SECRET_SIZE :]
                rows.append((dealer, kind, share, opening))
    return rows


def _half(plain: bytes, kind: int) -> bytes:
    """Return share and opening of one kind from an opened pair."""
    return plain[keys.HALF_SIZE :] if kind else plain[: keys.HALF_SIZE]
