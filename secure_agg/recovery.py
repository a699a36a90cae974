"""Secrets back from released shares, and who is to blame when that fails.

A released share that misses its dealer's commitment is the holder's fault and counts as not sent.
Shares that all fit and yet determine no secret that fits the dealer's public key or signed hash are
the dealer's fault: commitments bind, so that no holder can bring this about. Up to
floor((m - t) / 2) inconsistent shares among m are corrected, and the round goes on without trusting
that dealer again; beyond, it aborts.
"""

from __future__ import annotations

from collections.abc import Callable

from secure_agg import checks, keys
from secure_agg.errors import (
    DealerFault,
    KeyMismatch,
    ShareError,
    SignatureMismatch,
    ThresholdNotMet,
)
from secure_agg.messages import Release
from secure_agg.shamir import combine, decode
from secure_agg.transcript import Dealt, commitment_at

__all__ = ["SEED", "Recovery"]

SEED = 0
MASK_KEY = 1
_NOTHING = (-1, -1, b"", b"")


class Recovery:
    """Collects one round's releases.

    Args:
        dealt: Stage 1's set.
        commitments: Each dealer's signed commitments, 64 bytes for each of its neighbours.
        complaints: For each holder, the dealers whose shares did not reach it.
        alive: Those whose inputs are in the sum.
        threshold: t.
        verify: Raises `SignatureMismatch` when a dealer's row is not signed by it. Called before a
            dealer's shares are combined, so that whoever may be blamed for them signed them.

    Attributes:
        blamed: Why, for each dealer caught cheating while secrets were recovered.
    """

    def __init__(
        self,
        *,
        dealt: Dealt,
        commitments: dict[int, bytes],
        complaints: dict[int, frozenset[int]],
        alive: list[int],
        threshold: int,
        verify: Callable[[int], None],
    ) -> None:
        self._dealt = dealt
        self._commitments = commitments
        self._complaints = complaints
        self._alive = frozenset(alive)
        self._threshold = threshold
        self._verify = verify
        self._seeds: dict[int, bytes] = {}
        self._shares: dict[int, dict[int, bytes]] = {}
        self.blamed: dict[int, str] = {}

    def take(self, holder: int, release: Release) -> None:
        """Check a holder's release and keep it.

        Raises:
            KeyMismatch: Its own seed misses the hash it signed.
            ShareMismatch: A share misses its dealer's commitment.
            ShareError: It released other shares than it was asked for.
        """
        view = self._dealt.view
        own = view.cohort.index[holder]
        check_seed(self._dealt, holder, release.own_seed)
        complaints, ids = self._complaints[holder], view.cohort.ids
        rows = iter(release.rows)
        accepted = []
        for index, place in zip(view.graph.neighbours[own], view.graph.places[own], strict=True):
            dealer = ids[index]
            if dealer not in self._commitments or dealer in complaints:
                continue
            kind = SEED if dealer in self._alive else MASK_KEY
            found, found_kind, share, opening = next(rows, _NOTHING)
            if found != dealer or found_kind != kind:
                raise ShareError(f"member {holder} released other shares than it was asked for")
            wanted = commitment_at(self._commitments[dealer], place, kind)
            hashed = keys.commit_share(kind, dealer, holder, share + opening)
            checks.share_fits(wanted, hashed, dealer)
            accepted.append((dealer, place, share))
        if next(rows, None) is not None:
            raise ShareError(f"member {holder} released other shares than it was asked for")
        for dealer, place, share in accepted:
            self._shares.setdefault(dealer, {})[place] = share
        self._seeds[holder] = release.own_seed

    def recover(self) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Return the self-mask seeds of the alive and the mask keys of the dropped, 32 bytes each.

        Raises:
            ThresholdNotMet: Too few shares of somebody were released.
            DealerFault: Somebody's shares do not determine his secret; names all of them.
        """
        seeds = dict(self._seeds)
        mask_keys: dict[int, bytes] = {}
        faulty = []
        for member in self._dealt.ids:
            if member in seeds:
                continue
            kind = SEED if member in self._alive else MASK_KEY
            try:
                secret = self._reconstruct(member, kind)
            except DealerFault:
                faulty.append(member)
                continue
            (seeds if kind == SEED else mask_keys)[member] = secret
        if faulty:
            raise DealerFault(
                f"the committed shares of members {faulty} do not determine their secrets; "
                "exclude them from the next round",
                faulty,
            )
        return seeds, mask_keys

    def _reconstruct(self, dealer: int, kind: int) -> bytes:
        shares = self._shares.get(dealer, {})
        if len(shares) < self._threshold:
            raise ThresholdNotMet(
                f"{len(shares)} shares of member {dealer}'s secret were released: "
                f"{self._threshold} are needed"
            )
        try:
            self._verify(dealer)
        except SignatureMismatch as error:
            self.blamed[dealer] = str(error)
        secret = combine(shares, self._threshold)
        try:
            self._check(dealer, kind, secret)
        except KeyMismatch as error:
            self.blamed[dealer] = f"dealt inconsistent shares: {error}"
        else:
            return secret
        try:
            secret, _ = decode(shares, self._threshold)
            self._check(dealer, kind, secret)
        except (ShareError, KeyMismatch) as error:
            raise DealerFault(str(error), [dealer]) from None
        return secret

    def _check(self, dealer: int, kind: int, secret: bytes) -> None:
        if kind == SEED:
            check_seed(self._dealt, dealer, secret)
            return
        cohort = self._dealt.view.cohort
        expected = cohort.masks[cohort.index[dealer]]
        checks.key_matches(expected, keys.public_of(secret), dealer, "mask key")


def check_seed(dealt: Dealt, member: int, seed: bytes) -> None:
    """Compare a seed b with the hash its owner signed.

    Raises:
        KeyMismatch: When they differ.
    """
    expected = dealt.row(member)[0]
    found = keys.seed_hash(dealt.view.hash, member, seed)
    checks.key_matches(expected, found, member, "self-mask seed")
