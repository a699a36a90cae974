"""How a run's coordinator drew: cohorts and its own noise, drawn again from what it committed to.

A round's ``reserve`` line commits to a seed. The private line opens it, with the nonces that
members sent. Both give the noise that the coordinator added and the next cohort, so an auditor who
holds ``private.jsonl`` computes them again. What is left to a word is named by the claims.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.audit.wording import claim
from fedsys.errors import ConfigError, LedgerError, MechanismError
from fedsys.privacy import (
    AesCtrStream,
    Event,
    LedgerView,
    Mechanism,
    PrivacyPlan,
    event_from_json,
    mechanism_for,
)
from fedsys.privacy.ledger import openings
from fedsys.privacy.ledger.openings import Opening
from fedsys.privacy.ledger.private import OPENING
from fedsys.privacy.ledger.reader import RoundRecord
from fedsys.privacy.noise import MAX_SIGMA, noise_sampler
from fedsys.privacy.sampling.drawing import CohortSampler
from fedsys.records import Claim

__all__ = ["Openings", "opening_claims", "reuse_claim"]

_MOST_DRAWS = 400_000_000
"""Noise terms that are drawn again, some ten seconds' worth; further rounds are not examined."""

Ids = NDArray[np.int64]

_UNDRAWN = {
    "arrivals": "a buffer takes the uploads that come first",
    "chosen": "code of the job's own chooses them, and no claim rests on how",
}


class Openings:
    """What the openings of a run show; concluded rounds are given in order.

    Attributes:
        stated: whether the ledger commits to seeds at all.
        cohorts: number of cohorts that were drawn again.
        fresh: of them, those whose key the coordinator chose afresh.
        unmixed: of them, those that follow a round to which no member added a nonce.
        topped: number of releases whose noise was drawn again.
        releases: number of releases.
        problem: the first contradiction about seeds and cohorts; None if there is none.
        noise_problem: the first one about noise.
    """

    def __init__(self, view: LedgerView, plan: PrivacyPlan) -> None:
        self.stated = any("seed_sha256" in record.reserve for record in view.rounds)
        self.cohorts = self.fresh = self.unmixed = self.topped = self.releases = 0
        self.problem: str | None = None
        self.noise_problem: str | None = None
        self.plan = plan
        self._job = _job_of(view)
        self._sampler: CohortSampler | None = None
        self._mixes: dict[int, tuple[bytes, bool]] = {}
        self._mechanisms: dict[Event, Mechanism] = {}
        self._lost = iter([r.round for r in view.rounds if r.outcome is None])
        self._next_lost = next(self._lost, None)
        self._examined = _examined(view, plan)
        try:
            self._sampler = CohortSampler(plan)
        except ConfigError as error:
            self.problem = str(error)

    def take(
        self, record: RoundRecord, body: Mapping[str, Any], sampled: Ids, survivors: Ids
    ) -> Opening | None:
        """Examines one concluded round.

        Args:
            record: the round in the ledger.
            body: its private line, whose lists agree with the ledger's commitments.
            sampled: the cohort, increasing.
            survivors: whose updates were summed, increasing.
        """
        if not self.stated or self.problem is not None:
            return None
        number = record.round
        try:
            opening = Opening.parse(body.get(OPENING), survivors.tolist(), f"round {number}")
            committed = openings.seed_commitment(self._job, number, opening.seed)
            if record.reserve.get("seed_sha256") != committed:
                raise LedgerError(f"round {number}: the seed is not the one committed to")
            self._draw_cohort(number, opening, sampled)
            mix = openings.mixed(number, opening.seed, opening.nonces)
            self._mixes = {number: (mix, bool(opening.nonces))}
        except (LedgerError, MechanismError) as error:
            self.problem = str(error)
            return None
        if record.outcome == "commit" and self.noise_problem is None:
            self.releases += 1
            try:
                self._draw_noise(record, opening, mix, len(survivors))
            except (LedgerError, MechanismError) as error:
                self.noise_problem = f"round {number}: {error}"
        return opening

    def _draw_cohort(self, number: int, opening: Opening, sampled: Ids) -> None:
        """Draws a round's cohort again.

        Raises:
            LedgerError: another cohort was invited.
        """
        before = self._mixes.get(number - 1)
        if (opening.cohort is None) != (before is not None):
            raise LedgerError(
                f"round {number}: its cohort is "
                + ("drawn from no key" if before is None else "not drawn from the round before")
            )
        sampler = self._sampler
        if sampler is None or self.plan.sampling in _UNDRAWN:
            return
        while self._next_lost is not None and self._next_lost < number:
            sampler.note(self._next_lost, None)
            self._next_lost = next(self._lost, None)
        key = opening.cohort if before is None else openings.cohort_key(before[0])
        drawn = sampler.draw(number, AesCtrStream(key or b""))
        if not np.array_equal(np.array(drawn, dtype=np.int64), sampled):
            raise LedgerError(
                f"round {number}: {len(sampled)} clients were invited, and its key draws "
                f"{len(drawn)} others: a biased cohort"
            )
        self.cohorts += 1
        self.fresh += before is None
        self.unmixed += before is not None and not before[1]

    def _mechanism_of(self, record: RoundRecord) -> Mechanism | None:
        """What added a round's noise; None if what it reserves is no event of the plan."""
        stated = record.reserve.get("event")
        try:
            event = event_from_json(stated if isinstance(stated, dict) else {})
            found = self._mechanisms.get(event)
            if found is None and self.plan.covers(event):
                found = self._mechanisms[event] = mechanism_for(event)
        except (MechanismError, TypeError, ValueError, OverflowError):
            return None
        return found

    def _draw_noise(
        self, record: RoundRecord, opening: Opening, mix: bytes, survivors: int
    ) -> None:
        """Draws a release's noise again.

        Raises:
            LedgerError: other noise was added.
        """
        number = record.round
        if number not in self._examined:
            return
        mechanism = self._mechanism_of(record)
        if mechanism is None:
            return  # which is a failed claim of its own
        stream = AesCtrStream(openings.noise_key(mix))
        mechanism.skip_to(number - 1, stream)
        noise = mechanism.top_up(survivors, stream)
        bits, body = mechanism.modulus_bits, record.body
        aggregate, released = body.get("aggregate_sha256"), body.get("aggregate_sketch")
        try:
            key = openings.sketch_key(self._job, number, aggregate)  # type: ignore[arg-type]
            added = openings.difference(released, opening.sum_sketch or "", bits)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise LedgerError("the sketches of the sum and of its release are malformed") from None
        if added != openings.sketch(noise, key, bits):
            raise LedgerError(
                "the release is not its sum with the noise that the coordinator committed to"
            )
        self.topped += 1


def _job_of(view: LedgerView) -> bytes:
    try:
        return bytes.fromhex(str(view.header.get("job")))
    except ValueError:
        return b""


def _examined(view: LedgerView, plan: PrivacyPlan) -> frozenset[int]:
    """Committed rounds whose noise is drawn again: as many as `_MOST_DRAWS` allows, and none where
    one takes more, in an order that follows from the ledger's head. Correlated noise needs all of
    them or none."""
    event = plan.event()
    sigma, terms = math.sqrt(event.share_variance), max(plan.cap - plan.min_survivors, 1)
    each = terms * event.length
    if 0 < sigma <= MAX_SIGMA:
        each = noise_sampler(sigma).draws(terms, event.length)
    rounds = [record.round for record in view.rounds if record.outcome == "commit"]
    most = _MOST_DRAWS // each
    if len(rounds) <= most:
        return frozenset(rounds)
    if plan.mechanism == "banded-mf":
        return frozenset()
    place = {r: hashlib.sha256(f"{view.head} {r}".encode()).digest() for r in rounds}
    return frozenset(sorted(rounds, key=place.__getitem__)[:most])


def opening_claims(found: Openings | None) -> Iterator[Claim]:
    """Whether cohorts and noise are those that were committed to, and what rests on a word."""
    if found is None:
        return
    if not found.stated:
        yield claim(
            "Cohorts drawn as committed to",
            None,
            claimed="nothing: the ledger commits to no seeds",
            rederived="nothing to draw again",
            by="the openings in private.jsonl",
            rests_on="the coordinator's word: that cohorts are random and that noise was topped up",
        )
        return
    own = found.cohorts - found.fresh - found.unmixed
    words = f"{found.cohorts} cohorts drawn again: {own} from a seed and nonces of the round before"
    if found.unmixed:
        words += f", {found.unmixed} after a round without nonces"
    if found.fresh:
        words += f", {found.fresh} from a fresh key"
    sampling = found.plan.sampling
    drawn = sampling not in _UNDRAWN
    yield claim(
        "Cohorts drawn as committed to",
        found.problem is None,
        claimed="each cohort follows from the seed and the nonces of the round before"
        if drawn
        else f"no cohorts are drawn: {_UNDRAWN[sampling]}",
        rederived=found.problem or (words if drawn else "every seed is the one committed to"),
        by="the openings in private.jsonl, SHA-256 and AES-256-CTR",
        rests_on="the coordinator's word for cohorts from fresh keys or without nonces; for the "
        "others, that it left no member out, and gave no round up, to draw again",
    )
    if found.problem is not None:
        return
    left = found.releases - found.topped
    words = f"the coordinator's noise drawn again in {found.topped} of {found.releases} releases"
    if left:
        words += f"; {left} would take too long"
    yield claim(
        "Noise added as committed to",
        False if found.noise_problem else True if found.topped else None,
        claimed="each release is its sum with noise from the seed and the nonces of its round",
        rederived=found.noise_problem or words,
        by="the openings in private.jsonl; random linear forms of sum and release",
        rests_on="the coordinator's word for the sum before its noise, and that clients added "
        "theirs",
    )


def reuse_claim(view: LedgerView, plan: PrivacyPlan) -> Claim:
    """Whether each commit releases a sum of its own, and not one that an earlier round paid for."""
    seen: dict[str, int] = {}
    twice: tuple[int, int] | None = None
    for record in view.rounds:
        if record.outcome == "commit":
            stated = str(record.body.get("aggregate_sha256"))
            earlier = seen.setdefault(stated, record.round)
            twice = twice or ((earlier, record.round) if earlier != record.round else None)
    # Sums that equal each other by chance: never, if the noise has 64 bits of entropy or more.
    deviation = math.sqrt(plan.event().total_variance) if plan.protected else 0.0
    certain = plan.dimension * math.log2(max(2.5 * deviation, 1.0)) >= 64
    return claim(
        "Each release is of its own round",
        True if twice is None else False if certain else None,
        claimed=f"{len(seen)} different sums" if twice is None else "different sums",
        rederived="no two are equal"
        if twice is None
        else f"round {twice[1]} releases the sum of round {twice[0]} once more",
        by="aggregate_sha256 of every commit",
    )
