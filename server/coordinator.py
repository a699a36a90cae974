"""The coordinator of one job: reserve, sample, release, commit; sans-IO.

The order is the point. A round's cost is durable in the ledger *before* its cohort is drawn or
anybody is invited; the commit is durable *before* the new model is handed to anybody. A crash in
between costs the round's epsilon and nothing else: a round number, a cohort, a noise draw is never
used again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import BudgetExceeded, FedsysError, ProtocolError, TrainingError
from fedsys.privacy import (
    AdaptiveClipping,
    Entropy,
    Epsilons,
    Ledger,
    Mechanism,
    PrivacyPlan,
    View,
    ViewAccountant,
    add_noise,
    ring_dtype,
)
from fedsys.wire import Assignment
from server.checkpoint import Checkpoint, sha256_of_aggregate, sha256_of_weights
from server.cohorts import CohortSampler
from server.strategies import Strategy

__all__ = ["Coordinator", "JobTerms", "OpenRound", "SumRefused"]

Weights = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class JobTerms:
    """What every round of a job has in common.

    Attributes:
        job: 32 bytes that name the job.
        task: name of the task.
        local: local training, by field name.
        plan: the privacy parameters.
        seed: from which clients derive their batch order.
        agreed: digest of the terms that agents consented to, where the host asks for consent.
    """

    job: bytes
    task: str
    local: Mapping[str, Any]
    plan: PrivacyPlan
    seed: int
    agreed: bytes = b""


@dataclass(frozen=True, kw_only=True)
class OpenRound:
    """A round whose cost is reserved.

    Attributes:
        number: 1-based, never used before in this job.
        cohort: increasing ids of those to invite, or of those whose uploads are in the buffer;
            realised cohorts are server-side secrets.
        assignment: what they are all asked.
        reservation: the ledger's line, where it is shown to them.
        proof: that it is under a head which witnesses cosigned, as text.
    """

    number: int
    cohort: tuple[int, ...]
    assignment: Assignment
    reservation: bytes = b""
    proof: bytes = b""


class SumRefused(FedsysError):
    """A sum that may not be released; its round is over, recorded as aborted."""


class Coordinator:
    """One job's rounds, one after the other.

    Args:
        terms: of the job.
        ledger: durable; this coordinator is its one writer.
        accountant: charged with every round that the ledger already holds.
        strategy: makes a new model of a mean update.
        sampler: draws the cohorts, and knows who took part when.
        weights: (d,) the current model.
        clipping: norms of the next round, where they adapt.
        noise: what a mechanism that remembers its noise remembered at the last checkpoint.
        keep: begins to make a checkpoint durable; what it returns waits until it is, which comes
            before the commit, so that a committed model is never lost.
    """

    def __init__(
        self,
        *,
        terms: JobTerms,
        ledger: Ledger,
        accountant: ViewAccountant,
        strategy: Strategy,
        sampler: CohortSampler,
        weights: Weights,
        keep: Callable[[Checkpoint], Callable[[], object]],
        clipping: AdaptiveClipping | None = None,
        noise: bytes = b"",
    ) -> None:
        self.terms = terms
        self.mechanism = terms.plan.build_mechanism()
        if noise:
            self.mechanism.restore(noise)
        self.strategy = strategy
        self.weights = weights
        self.clipping = clipping
        self._ledger = ledger
        self._accountant = accountant
        self._sampler = sampler
        self._keep = keep
        self._open: OpenRound | None = None

    @property
    def spent(self) -> Epsilons:
        """Epsilon so far, by view; rounds that were lost count."""
        return self._accountant.spent()

    def spent_in(self, view: View) -> float:
        """Epsilon so far in one view."""
        return self._accountant.spent_in(view)

    @property
    def exhausted(self) -> frozenset[int]:
        """Clients that contributed as often as the plan lets them, or may have: a round whose sum
        may have been opened counts, and one that a crash lost counts for everybody."""
        return frozenset(self._accountant.server.exhausted.tolist())

    @property
    def reserved(self) -> int:
        """Rounds paid for so far."""
        return self._ledger.next_round - 1

    def begin_round(self, sampling_entropy: Entropy) -> OpenRound:
        """Reserve the next round durably, then draw its cohort.

        A buffered round has none yet: `admit` says whose uploads came.

        Raises:
            BudgetExceeded: the round would not fit; nothing was written and nobody is asked.
        """
        if self._open is not None:
            raise ProtocolError(f"round {self._open.number} is still open")
        if self.clipping is not None:
            self.mechanism = self.terms.plan.build_mechanism(clip=self.clipping.clip)
        event, rounds = self.mechanism.event, self.terms.plan.rounds
        if self.reserved >= rounds:
            raise BudgetExceeded(f"all {rounds} rounds of this job are paid for already")
        self._accountant.require_budget(event)
        number = self._ledger.next_round
        self._ledger.reserve(number, {"event": event.to_json()})
        cohort = self._sampler.draw(number, sampling_entropy)
        self._open = OpenRound(
            number=number,
            cohort=cohort,
            assignment=Assignment(
                job=self.terms.job,
                round=number,
                task=self.terms.task,
                weights=self.weights,
                local=self.terms.local,
                mechanism=event.to_json(),
                seed=self.terms.seed,
                clipping=None if self.clipping is None else self.clipping.to_json(),
                terms=self.terms.agreed,
            ),
        )
        return self._open

    def admit(self, clients: Sequence[int]) -> OpenRound:
        """Name those whose uploads are in the open buffer, before it is finished or given up.

        Raises:
            ProtocolError: no round is open, its cohort was drawn, or a client is named twice.
        """
        open_ = self._current()
        if self.terms.plan.sampling != "arrivals":
            raise ProtocolError(f"round {open_.number} has a cohort that was drawn")
        if len(set(clients)) != len(clients):
            raise ProtocolError(f"round {open_.number}: a client's upload is there twice")
        self._open = dataclasses.replace(open_, cohort=tuple(sorted(clients)))
        return self._open

    def finish_round(
        self,
        total: NDArray[Any],
        survivors: Sequence[int],
        *,
        noise_entropy: Entropy,
        diagnostics: Mapping[str, Any],
        noise: NDArray[np.int64] | None = None,
        held: bool = False,
    ) -> Weights:
        """Top the noise up, decode, step, keep, commit; returns the model that may now be released.

        Every host's sums come through here, whatever the protocol: one that the plan does not allow
        to be released is recorded as an aborted round, its cost spent, and refused.

        Args:
            total: (length,) the survivors' sum mod 2^b.
            survivors: whose vectors are in it.
            noise_entropy: of the coordinator's own noise.
            diagnostics: for ``private.jsonl``.
            noise: (length,) what the mechanism drew for this round beforehand, and for no other.
            held: the commit goes to the disk with the next round's reservation, or when `settle`
                is called; the model may be released only then.

        Raises:
            SumRefused: too few or too many clients, or others than were asked, are in the sum.
            TrainingError: the step left the numbers that a model can hold; the round is spent.
        """
        open_, mechanism = self._current(), self.mechanism
        reason = _unfit(open_, survivors, mechanism)
        if reason is not None:
            self.abort_round(reason, before_unmask=False)
            raise SumRefused(f"round {open_.number}: {reason}")
        mechanism.skip_to(open_.number - 1, noise_entropy)
        if noise is None:
            noise = mechanism.top_up(len(survivors), noise_entropy)
        ring = total.astype(ring_dtype(mechanism.modulus_bits))  # hosts hand in wider words
        topped = add_noise(ring, noise, bits=mechanism.modulus_bits)
        seed = open_.assignment.digest if mechanism.rotates else b""
        mean = mechanism.decode(topped, seed=seed)
        strength, clipping = _strength(mean, mechanism), self.clipping
        if clipping is not None:
            mean, fractions = clipping.split(mean)
            clipping = clipping.updated(fractions)
        weights = self.strategy.apply(self.weights, mean).astype(np.float32)
        if not np.isfinite(weights).all():
            self.abort_round("the model diverged", before_unmask=False)
            raise TrainingError(
                f"round {open_.number}: the model diverged to infinity; lower "
                f"server.learning_rate or local.learning_rate"
            )
        kept = self._keep(
            Checkpoint(
                round=open_.number,
                weights=weights,
                strategy=self.strategy.state(),
                mechanism=mechanism.state_bytes(),
                clipping=None if clipping is None else clipping.to_json(),
            )
        )
        self._ledger.commit(
            open_.number,
            {
                "aggregate_sha256": sha256_of_aggregate(topped),
                "weights_sha256": sha256_of_weights(weights),
            },
            sampled=open_.cohort,
            survivors=survivors,
            private={**diagnostics, **strength},
            after=kept,
        )
        if not held:
            self._ledger.settle()
        self._accountant.charge(mechanism.event, open_.cohort, survivors)
        self._open = None
        self.weights, self.clipping = weights, clipping
        return weights

    def settle(self) -> None:
        """Make a commit that is held durable: the current model may be released."""
        self._ledger.settle()

    def abort_round(self, reason: str, *, before_unmask: bool) -> None:
        """Give the open round up. Its cost stays spent; the server's view alone may be refunded.

        Args:
            reason: what happened; up to its first colon for the ledger, which is published, and
                with the numbers and clients that it names after that for ``private.jsonl`` alone.
            before_unmask: no certificate had been sent, so that no sum ever existed.
        """
        open_ = self._current()
        self._ledger.abort(
            open_.number,
            {"reason": reason.partition(":")[0]},
            sampled=open_.cohort,
            before_unmask=before_unmask,
            private={"reason": reason},
        )
        survivors = () if before_unmask else None
        self._accountant.charge(self.mechanism.event, open_.cohort, survivors)
        self._open = None

    def _current(self) -> OpenRound:
        if self._open is None:
            raise ProtocolError("no round is open")
        return self._open


def _unfit(open_: OpenRound, survivors: Sequence[int], mechanism: Mechanism) -> str | None:
    """Why these survivors' sum may not be released: numbers come after the colon."""
    event, summed = mechanism.event, set(survivors)
    if len(summed) != len(survivors) or not summed <= set(open_.cohort):
        return "the sum holds clients that were not asked, or one of them twice"
    if len(summed) < event.min_survivors:
        return f"fewer clients than min_survivors were left: {len(summed)} of {event.min_survivors}"
    if len(summed) > event.cap:
        return f"more clients than the cap were summed: {len(summed)}, at most {event.cap}"
    return None


def _strength(mean: NDArray[np.float64], mechanism: Mechanism) -> dict[str, float]:
    """Norms of the released mean's noise, and of its signal as far as the release tells it."""
    noise = mechanism.noise_deviation * math.sqrt(len(mean))
    # Not np.linalg.norm: the threads of its dot product cost more than they save.
    released = math.sqrt(float(np.square(mean).sum()))
    return {"signal_norm": math.sqrt(max(released**2 - noise**2, 0.0)), "noise_norm": noise}
