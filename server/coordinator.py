"""The coordinator of one job: reserve, sample, release, commit; sans-IO.

The order is the point. A round's cost is durable in the ledger *before* its cohort is drawn or
anybody is invited; the commit is durable *before* the new model is handed to anybody. A crash in
between costs the round's epsilon and nothing else: no round number, cohort or noise draw is ever
used twice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.errors import (
    BudgetExceeded,
    ConfigError,
    FedsysError,
    ProtocolError,
    TrainingError,
)
from fedsys.privacy import (
    VIEWS,
    AdaptiveClipping,
    AesCtrStream,
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
from fedsys.privacy.accounting.accountant import LateCharges
from fedsys.privacy.accounting.adding import Standing
from fedsys.privacy.encoding.parts import Parts
from fedsys.privacy.ledger.openings import (
    SEED_BYTES,
    Opening,
    cohort_key,
    mixed,
    noise_key,
    seed_commitment,
    sketch_key,
    sketches,
)
from fedsys.privacy.sampling.drawing import CohortSampler
from fedsys.wire import Assignment
from fedsys.wire.turns import Turns
from server.checkpoint import Checkpoint, sha256_of_aggregate, sha256_of_weights
from server.strategy_base import ReceivingStrategy, Strategy, shared_by

__all__ = ["Coordinator", "JobTerms", "OpenRound", "SumRefused"]

Weights = NDArray[np.float32]
_NO_NONCES: Mapping[int, bytes] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class JobTerms:
    """What every round of a job has in common.

    Attributes:
        job: 32 bytes that name the job.
        task: Name of the task.
        local: Parameters of local training, by field name.
        plan: The privacy parameters.
        seed: Seed from which clients derive their batch order.
        agreed: Digest of the terms that agents consented to, where the host asks for consent.
        parts: What lies where in a client's vector; None where it is the update alone.
        kind: What rounds ask for: ``train``, ``query`` or ``evaluate``.
        turns: Which rounds of a training job ask devices how good its model is.
        asked: d, the coordinates of what these ask for.
    """

    job: bytes
    task: str
    local: Mapping[str, Any]
    plan: PrivacyPlan
    seed: int
    agreed: bytes = b""
    parts: Parts | None = None
    kind: str = "train"
    turns: Turns | None = None
    asked: int = 0

    @property
    def released(self) -> str:
        """The key under which a commit states the hash of what it releases."""
        return "weights_sha256" if self.kind == "train" else "answer_sha256"

    def kind_of(self, number: int) -> str:
        """What a round asks for."""
        between = self.turns is not None and self.turns.evaluates(number)
        return "evaluate" if between else self.kind


@dataclass(frozen=True, kw_only=True)
class OpenRound:
    """A round whose cost is reserved.

    Attributes:
        number: 1-based, never used before in this job.
        cohort: Increasing ids of the clients to invite, or of those whose uploads are in the
            buffer; realised cohorts are server-side secrets.
        assignment: What every one of them is asked to do.
        reservation: The ledger's line for this round, where devices are shown it.
        proof: Proof, as text, that this line is under a head that witnesses cosigned.
    """

    number: int
    cohort: tuple[int, ...]
    assignment: Assignment
    reservation: bytes = b""
    proof: bytes = b""


class SumRefused(FedsysError):
    """The sum may not be released; its round has been recorded as aborted."""


class Coordinator:
    """One job's rounds, one after the other.

    Args:
        terms: What every round of the job has in common.
        ledger: The job's durable ledger; this coordinator is its only writer.
        accountant: Already charged with every round that the ledger holds.
        strategy: Turns a mean update into the next model.
        sampler: Draws the cohorts, and knows who took part when.
        weights: (d,) float32, the current model.
        clipping: Clipping norms of the next round, where they adapt.
        noise: State, at the last checkpoint, of a mechanism that remembers its noise.
        keep: Starts writing a checkpoint, with its answer if it has one, and returns a function
            that waits until it is durable. The commit waits for it, so that a committed model is
            never lost.
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
        self._charges = LateCharges(accountant)
        self._sampler = sampler
        self._keep = keep
        self._aside: Executor | None = None
        self._open: OpenRound | None = None
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._mix: bytes | None = None
        self._seeds: dict[int, bytes] = {}
        """Of the open round, and of the next one where its noise is drawn ahead."""
        self._cohort_key: bytes | None = None

    def in_background(self, threads: Executor) -> None:
        """Have sums hashed and sketched, and private lines written, by `threads`, while the calling
        thread makes models."""
        self._aside = threads
        self._ledger.in_background(threads)

    @property
    def _accountant(self) -> ViewAccountant:
        return self._charges.accountant

    @property
    def spent(self) -> Epsilons:
        """Epsilon so far, by view, including rounds that were aborted or lost in a crash."""
        return self._accountant.spent()

    @property
    def standings(self) -> dict[View, Standing]:
        """The rounds so far by view, for a total with other jobs."""
        return {view: self._accountant.standing(view) for view in VIEWS}

    def spent_in(self, view: View) -> float:
        """Epsilon so far in one view."""
        return self._accountant.spent_in(view)

    @property
    def exhausted(self) -> frozenset[int]:
        """Clients that have, or may have, contributed as often as the plan allows: a round whose
        sum may have been opened counts, and one lost in a crash counts for everybody."""
        if self.terms.plan.max_participations is None:
            return frozenset()
        return frozenset(self._accountant.server.exhausted.tolist())

    @property
    def reserved(self) -> int:
        """Rounds paid for so far."""
        return self._ledger.next_round - 1

    def go_on_from(self, mix: bytes) -> None:
        """After a restart: draw the next cohort from what the last round's seed and nonces gave."""
        self._mix = mix

    def noise_ahead(self, entropy: Entropy) -> bytes:
        """Key of the stream of the next round's noise, if that mixes in no nonces.

        Args:
            entropy: Source of that round's seed.
        """
        number = self._ledger.next_round
        seed = self._seeds.setdefault(number, entropy(SEED_BYTES))
        return noise_key(mixed(number, seed, {}))

    def noise_for(self, survivors: int, nonces: Mapping[int, bytes]) -> NDArray[np.int64]:
        """(length,) the open round's noise for a sum of so many clients, who send these nonces.
        Another thread may draw it while they train, where noise has no memory."""
        return self._noise(self._mixed(self._opening(nonces)), survivors)

    def begin_round(self, entropy: Entropy) -> OpenRound:
        """Reserve the next round durably and commit to its seed, then draw its cohort: from the
        mix of the round before, or where there is none from a fresh key.

        A buffered round has no cohort yet: `admit` states whose uploads came.

        Args:
            entropy: Source of the round's seed, and of a fresh key.

        Raises:
            BudgetExceeded: The round does not fit; nothing was written and nobody is invited.
        """
        if self._open is not None:
            raise ProtocolError(f"round {self._open.number} is still open")
        if self.clipping is not None:
            self.mechanism = self.terms.plan.build_mechanism(clip=self.clipping.clip)
        event, rounds = self.mechanism.event, self.terms.plan.rounds
        if self.reserved >= rounds:
            raise BudgetExceeded(f"all {rounds} rounds of this job are paid for already")
        self._charges.require_budget(event)
        number = self._ledger.next_round
        seed = self._seeds.get(number) or entropy(SEED_BYTES)
        committed = seed_commitment(self.terms.job, number, seed)
        kind = self.terms.kind_of(number)
        stated = event.to_json()
        reserved = {"event": stated, "kind": kind, "seed_sha256": committed}
        self._ledger.reserve(number, reserved)
        self._seeds, mix, self._mix = {number: seed}, self._mix, None
        self._cohort_key = entropy(SEED_BYTES) if mix is None else None
        key = self._cohort_key if mix is None else cohort_key(mix)
        cohort = self._sampler.draw(number, AesCtrStream(key or b""))
        self._open = OpenRound(
            number=number,
            cohort=cohort,
            assignment=Assignment(
                job=self.terms.job,
                round=number,
                task=self.terms.task,
                weights=self.weights,
                local=self.terms.local,
                mechanism=stated,
                seed=self.terms.seed,
                clipping=None if self.clipping is None else self.clipping.to_json(),
                terms=self.terms.agreed,
                shared=self._shared(),
            ),
        )
        return self._open

    def admit(self, clients: Sequence[int]) -> OpenRound:
        """State whose uploads are in the open buffer, before it is finished or aborted.

        Raises:
            ProtocolError: No round is open, its cohort was drawn, or a client is named twice.
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
        diagnostics: Mapping[str, Any],
        nonces: Mapping[int, bytes] = _NO_NONCES,
        noise: NDArray[np.int64] | None = None,
        held: bool = False,
    ) -> Weights:
        """Top up the noise, decode, step, save and commit.

        Every host's sums come through here, whatever the protocol. A sum that the plan does not
        allow to be released is refused, and its round recorded as aborted with its cost spent.

        Args:
            total: (length,) the survivors' sum mod 2^b.
            survivors: Clients whose vectors are in the sum.
            diagnostics: Figures for ``private.jsonl``.
            nonces: What every survivor sent with its upload; empty where nobody sent any.
            noise: (length,) this round's noise, drawn ahead with the key that `noise_ahead`
                returned for it, or by `noise_for`.
            held: Write the commit to disk together with the next round's reservation, or when
                `settle` is called; the model may be released only then.

        Returns:
            (d,) float32, the model that may now be released (see `held`).

        Raises:
            SumRefused: The sum holds too few or too many clients, or others than were invited.
            TrainingError: The new model is not finite; the round's cost is spent.
        """
        open_, mechanism = self._current(), self.mechanism
        reason = _unfit(open_, survivors, mechanism)
        if reason is not None:
            self.abort_round(reason, before_unmask=False)
            raise SumRefused(f"round {open_.number}: {reason}")
        opening = self._opening({client: nonces[client] for client in survivors if nonces})
        mix = self._mixed(opening)
        if noise is None:
            noise = self._noise(mix, len(survivors))
        # Hosts may pass wider words.
        ring = total.astype(ring_dtype(mechanism.modulus_bits), copy=False)
        topped = add_noise(ring.copy(), noise, bits=mechanism.modulus_bits)
        seen = self._seen(ring, topped)
        seed = open_.assignment.digest if mechanism.rotates else b""
        mean = mechanism.decode(topped, seed=seed)
        strength, clipping = _strength(mean, mechanism), self.clipping
        answer = self._answer(open_.number, mean)
        if clipping is not None:
            mean, fractions = clipping.split(mean)
            clipping = clipping.updated(fractions)
        parts = self.terms.parts
        if parts is not None and not parts.plain:
            mean, sent = parts.split(
                mean, clip=mechanism.event.clip, deviation=mechanism.noise_deviation
            )
            if sent and isinstance(self.strategy, ReceivingStrategy):
                self.strategy.receive(sent)
        weights = self.weights if answer is not None else self._step(mean)
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
                answer=answer,
            )
        )
        released = self._released(weights, answer)
        aggregate, of_sum, of_topped = seen()
        opening = dataclasses.replace(opening, sum_sketch=of_sum)
        self._ledger.commit(
            open_.number,
            {
                "aggregate_sha256": aggregate,
                "aggregate_sketch": of_topped,
                **released,
            },
            sampled=open_.cohort,
            survivors=survivors,
            private={**diagnostics, **strength, "opening": opening.to_json()},
            after=kept,
        )
        if not held:
            self._ledger.settle()
        self._charges.add(mechanism.event, open_.cohort, survivors)
        self._open, self._mix = None, mix
        self.weights, self.clipping = weights, clipping
        return weights

    def settle(self) -> None:
        """Make a held commit durable, so that the current model may be released."""
        self._ledger.settle()

    def abort_round(self, reason: str, *, before_unmask: bool) -> None:
        """Abort the open round. Its cost stays spent; only the server's view may be refunded.

        Args:
            reason: What happened. The ledger, which is published, holds it up to its first colon;
                the numbers and clients named after that go to ``private.jsonl`` alone.
            before_unmask: Whether no certificate had been sent, so that no sum ever existed.
        """
        open_, opening = self._current(), self._opening({})
        self._ledger.abort(
            open_.number,
            {"reason": reason.partition(":")[0]},
            sampled=open_.cohort,
            before_unmask=before_unmask,
            private={"reason": reason, "opening": opening.to_json()},
        )
        survivors = () if before_unmask else None
        self._charges.add(self.mechanism.event, open_.cohort, survivors)
        self._mix = self._mixed(opening)
        self._open = None

    def _seen(self, ring: NDArray[Any], topped: NDArray[Any]) -> Callable[[], tuple[str, str, str]]:
        """What the open round's commit says of its sum: the hash of the released one, and sketches
        of the sum before the coordinator's noise and after it. They are computed aside."""
        job, number, bits = self.terms.job, self._current().number, self.mechanism.modulus_bits

        def see() -> tuple[str, str, str]:
            aggregate = sha256_of_aggregate(topped)
            before, after = sketches([ring, topped], sketch_key(job, number, aggregate), bits)
            return aggregate, before, after

        return see if self._aside is None else self._aside.submit(see).result

    def _step(self, mean: NDArray[np.float64]) -> Weights:
        return self.strategy.apply(self.weights, mean).astype(np.float32)

    def _released(self, weights: Weights, answer: Weights | None) -> dict[str, str]:
        """Hashes of what a commit releases."""
        found = {self.terms.released: sha256_of_weights(weights)}
        return found if answer is None else found | {"answer_sha256": sha256_of_weights(answer)}

    def _answer(self, number: int, mean: NDArray[np.float64]) -> Weights | None:
        """(d,) what devices answered in a round between those of training; None in any other."""
        if self.terms.kind_of(number) == self.terms.kind:
            return None
        return (mean[: self.terms.asked] / self.mechanism.event.clip).astype(np.float32)

    def _shared(self) -> dict[str, NDArray[np.float32]]:
        """What the strategy sends with the model, of the same shapes in every round."""
        shared = shared_by(self.strategy)
        shapes = {name: each.shape for name, each in shared.items()}
        if self._shapes not in (None, shapes):
            raise ConfigError(
                f"server.strategy: shared() returned {shapes}, and {self._shapes} before; names "
                f"and shapes stay as they are"
            )
        self._shapes = shapes
        return shared

    def _opening(self, nonces: Mapping[int, bytes]) -> Opening:
        """How the open round was drawn, for those who hold ``private.jsonl``."""
        seed = self._seeds[self._current().number]
        return Opening(seed=seed, nonces=nonces, cohort=self._cohort_key)

    def _mixed(self, opening: Opening) -> bytes:
        return mixed(self._current().number, opening.seed, opening.nonces)

    def _noise(self, mix: bytes, survivors: int) -> NDArray[np.int64]:
        stream = AesCtrStream(noise_key(mix))
        self.mechanism.skip_to(self._current().number - 1, stream)
        return self.mechanism.top_up(survivors, stream)

    def _current(self) -> OpenRound:
        if self._open is None:
            raise ProtocolError("no round is open")
        return self._open


def _unfit(open_: OpenRound, survivors: Sequence[int], mechanism: Mechanism) -> str | None:
    """Why these survivors' sum may not be released, or None; numbers come after the colon."""
    event, summed = mechanism.event, set(survivors)
    if len(summed) != len(survivors) or not summed <= set(open_.cohort):
        return "the sum holds clients that were not asked, or one of them twice"
    if len(summed) < event.min_survivors:
        return f"fewer clients than min_survivors were left: {len(summed)} of {event.min_survivors}"
    if len(summed) > event.cap:
        return f"more clients than the cap were summed: {len(summed)}, at most {event.cap}"
    return None


def _strength(mean: NDArray[np.float64], mechanism: Mechanism) -> dict[str, float]:
    """Estimated L2 norms of the signal and the noise in the released mean, at most 1e150.

    Noise of deviation s in each of d coordinates has E‖noise‖² = s²d; where it is independent of
    the signal, ‖released‖² - s²d is an unbiased estimate of ‖signal‖². Only the release is used.
    """
    noise = min(mechanism.noise_deviation * math.sqrt(len(mean)), 1e150)
    # Not np.linalg.norm: the threads of its dot product cost more than they save.
    released = min(math.sqrt(float(np.einsum("i,i", mean, mean))), 1e150)
    return {"signal_norm": math.sqrt(max(released**2 - noise**2, 0.0)), "noise_norm": noise}
