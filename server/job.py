"""A job and its run's folder: started, taken up again after a crash, closed.

Every host (the simulator in process, gRPC, Flower) runs its rounds on the `Coordinator` that it
gets here, so that all of them keep the same ledger in the same order.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.config import Config
from fedsys.errors import MechanismError, RunFolderError
from fedsys.privacy import (
    AdaptiveClipping,
    Entropy,
    Epsilons,
    Ledger,
    LedgerView,
    PrivacyPlan,
    Signer,
    ViewAccountant,
    charge_rounds,
    default_bit_fraction,
    guaranteed_epsilon,
    ledger_header,
    make_plan,
    read_ledger,
    replay,
)
from fedsys.privacy.ledger import read_private
from fedsys.versions import code_hash, versions
from server.checkpoint import Checkpoint, Checkpoints, sha256_of_weights
from server.cohorts import CohortSampler
from server.coordinator import Coordinator, JobTerms
from server.run_folder import RunFolder
from server.strategies import Strategy, build_strategy

__all__ = [
    "Job",
    "JobFacts",
    "JobSpec",
    "budget_of",
    "clipping_for",
    "example_steps",
    "plan_for",
    "take_up",
]

Weights = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """What the ledger's header says beside the privacy plan.

    Attributes:
        population_known: how N is known.
        roster: whose word the list of members is.
        randomness: where secrets come from.
        reproducible: whether somebody could draw them again; then nothing is private.
        roster_version: of the signed list of members, in a deployment.
    """

    population_known: str
    roster: str
    randomness: str
    reproducible: bool = False
    roster_version: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class JobSpec:
    """What a job is made of, whether it begins or goes on.

    Attributes:
        config: resolved; for a job that goes on, as stored in its folder.
        plan: as `plan_for` gives it.
        weights: (d,) of the initial model; a job with a checkpoint goes on from that.
        facts: for the ledger's header; a job goes on only with those that it was started with.
        clipping: as `clipping_for` gives it.
        signer: of the ledger; by default the coordinator's own.
        entropy: of the job's name and the ledger's salts.
    """

    config: Config
    plan: PrivacyPlan
    weights: Weights
    facts: JobFacts
    clipping: AdaptiveClipping | None = None
    signer: Signer | None = None
    entropy: Entropy = os.urandom


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job whose folder exists.

    Attributes:
        config: resolved; what ``config.toml`` holds.
        plan: its privacy parameters.
        folder: of the run.
        ledger: open for writing.
        coordinator: ready for its next round.
        signer: of the ledger.
        facts: as the ledger's header has them.
    """

    config: Config
    plan: PrivacyPlan
    folder: RunFolder
    ledger: Ledger
    coordinator: Coordinator
    signer: Signer
    facts: JobFacts

    @classmethod
    def start(cls, folder: RunFolder, spec: JobSpec) -> Job:
        """Write configuration and ledger header into an empty folder."""
        config, plan, facts = spec.config, spec.plan, spec.facts
        signer, name = spec.signer or Signer.load_or_create(), spec.entropy(32)
        folder.write_config(config)
        header = ledger_header(
            plan,
            job=name.hex(),
            name=config.job.name,
            protocol=config.aggregation.protocol,
            release=config.aggregation.protocol != "float",
            population=_population(plan, facts),
            trust={
                "roster": facts.roster,
                "corrupt": config.aggregation.corrupt,
                "dropout": config.aggregation.dropout,
            },
            randomness=facts.randomness,
            reproducible=facts.reproducible,
            tuning=config.tuning.to_json(),
            config_sha256=hashlib.sha256(folder.config.read_bytes()).hexdigest(),
            code_sha256=code_hash(),
            initial_weights_sha256=sha256_of_weights(spec.weights),
            versions=versions(),
        )
        ledger = Ledger.create(
            folder.ledger, folder.private, signer=signer, header=header, entropy=spec.entropy
        )
        coordinator = _coordinator(
            spec,
            name,
            ledger=ledger,
            accountant=ViewAccountant(plan),
            strategy=strategy_of(config),
            checkpoint=Checkpoint(round=0, weights=spec.weights),
            sampler=CohortSampler(plan),
            checkpoints=Checkpoints(folder.checkpoints),
        )
        return cls(
            config=config,
            plan=plan,
            folder=folder,
            ledger=ledger,
            coordinator=coordinator,
            signer=signer,
            facts=facts,
        )

    @classmethod
    def restore(cls, folder: RunFolder, spec: JobSpec, *, ledger: Ledger | None = None) -> Job:
        """Take an interrupted job up again: charge its ledger's rounds, load its committed model.

        Args:
            folder: of the run.
            spec: what it is made of.
            ledger: as `take_up` opened it, where its header had to be read first.

        Raises:
            LedgerError: the ledger is closed, locked or does not hold.
            RunFolderError: it belongs to another configuration, or a checkpoint does not fit.
        """
        config, plan, facts, weights = spec.config, spec.plan, spec.facts, spec.weights
        signer = spec.signer or Signer.load_or_create()
        with ExitStack() as held:
            if ledger is None:
                ledger = take_up(folder, signer, entropy=spec.entropy)
            held.enter_context(ledger)
            view = ledger.view
            if view is None or view.header.get("plan") != plan.to_json():
                raise RunFolderError(
                    f"{folder.config}: gives another privacy plan than {folder.ledger.name} was "
                    f"started with; restore the file, or start a new run"
                )
            if view.header.get("randomness") != facts.randomness:
                raise RunFolderError(f"{folder.path}: a seeded test run is not resumed; start anew")
            strategy = strategy_of(config)
            checkpoints = Checkpoints(folder.checkpoints)
            checkpoint = checkpoints.newest(_committed(view))
            if checkpoint is not None:
                if checkpoint.weights.shape != weights.shape:
                    raise RunFolderError(
                        f"{folder.checkpoints}: holds {len(checkpoint.weights)} weights, the task "
                        f"has {len(weights)}; is this the task that the run was started with?"
                    )
                strategy.load(checkpoint.strategy)
            accountant = ViewAccountant(plan)
            for _ in charge_rounds(accountant, view, ledger.private_rounds):
                pass
            sampler = CohortSampler(plan)
            _recall(sampler, view, ledger)
            name = bytes.fromhex(view.header["job"])
            coordinator = _coordinator(
                spec,
                name,
                ledger=ledger,
                accountant=accountant,
                strategy=strategy,
                checkpoint=checkpoint or Checkpoint(round=0, weights=weights),
                sampler=sampler,
                checkpoints=checkpoints,
            )
            held.pop_all()
        return cls(
            config=config,
            plan=plan,
            folder=folder,
            ledger=ledger,
            coordinator=coordinator,
            signer=signer,
            facts=facts,
        )

    @property
    def budget(self) -> float | None:
        """What epsilon may reach in the guaranteed view; None where nothing is promised."""
        return budget_of(self.plan)

    @property
    def epsilon(self) -> float | None:
        """Spent so far in the guaranteed view; None where nothing is promised."""
        return self.coordinator.spent_in(self.plan.guarantee) if self.plan.protected else None

    def recorded(self) -> Epsilons:
        """What the ledger on disk says was spent; a round that was cut off counts at its worst."""
        view = read_ledger(self.folder.ledger, allow_torn=True)
        private, _torn = read_private(self.folder.private)
        return replay(view, private)[1]

    def close(self, status: str, *, model_sha256: str) -> None:
        """End the ledger; the job takes no further round."""
        self.ledger.close(status, {"model_sha256": model_sha256})


def take_up(folder: RunFolder, signer: Signer, *, entropy: Entropy = os.urandom) -> Ledger:
    """Open an interrupted job's ledger: read and verified once, with ``view`` and private rounds.

    Raises:
        LedgerClosed: its job is over.
        LedgerError: it is locked or does not hold.
    """
    return Ledger.open(
        folder.ledger,
        folder.private,
        signer=signer,
        facts={"code_sha256": code_hash(), "versions": versions()},
        entropy=entropy,
    )


def budget_of(plan: PrivacyPlan) -> float | None:
    """What epsilon may reach in a plan's guaranteed view; None where nothing is promised."""
    if not plan.protected:
        return None
    return plan.budget if plan.budget is not None else guaranteed_epsilon(plan)


def clipping_for(
    config: Config, plan: PrivacyPlan, layers: Sequence[int]
) -> AdaptiveClipping | None:
    """The first round's clipping norms, where they adapt.

    Args:
        config: of the job.
        plan: that it means.
        layers: sizes of the model's parameters, in the order of the flat vector.
    """
    privacy = config.privacy
    if privacy.adaptive_quantile is None:
        return None
    return AdaptiveClipping.start(
        layers=_clipped_apart(config, layers),
        clip=privacy.clip,
        quantile=privacy.adaptive_quantile,
        learning_rate=privacy.adaptive_rate,
        bit_fraction=default_bit_fraction(plan.noise_multiplier, plan.expected_cohort),
        survival=1 - config.aggregation.dropout,
    )


def _clipped_apart(config: Config, layers: Sequence[int]) -> tuple[int, ...]:
    per_layer = config.privacy.adaptive_layers == "per-layer"
    return tuple(layers) if per_layer else (sum(layers),)


def plan_for(config: Config, *, population: int, layers: Sequence[int]) -> PrivacyPlan:
    """The privacy plan that a configuration means for this population and model.

    Args:
        config: `privacy.noise_multiplier` is derived where only `privacy.epsilon` is given.
        population: N.
        layers: sizes of the model's parameters; d in all. Adaptive clipping adds a bit for each
            group of them that is clipped apart.

    Raises:
        MechanismError: its numbers do not fit one another.
    """
    privacy, cohort, aggregation = config.privacy, config.cohort, config.aggregation
    adaptive = privacy.adaptive_quantile is not None
    bits = len(_clipped_apart(config, layers)) if adaptive else 0
    cap, least = cohort.cap, cohort.min_survivors
    if privacy.mechanism == "none":
        cap, least = cap or population, least or 1
    try:
        plan = make_plan(
            mechanism=privacy.mechanism,
            population=population,
            expected_cohort=float(cohort.expected),
            rounds=config.rounds.count,
            dimension=sum(layers) + bits,
            adaptive_clip=adaptive,
            clip=privacy.clip,
            delta=privacy.delta,
            noise_multiplier=privacy.noise_multiplier,
            epsilon=privacy.epsilon if privacy.noise_multiplier is None else None,
            budget=privacy.epsilon,
            cap=cap,
            min_survivors=least,
            encoding="float" if aggregation.protocol == "float" else aggregation.encoding,
            noise="once" if aggregation.protocol == "float" else aggregation.noise,
            modulus_bits=aggregation.modulus_bits,
            sampling=cohort.sampling,
            participation=cohort.participation,
            guarantee=privacy.guarantee,
            colluders=privacy.max_colluders,
            dropout=aggregation.dropout,
            max_participations=privacy.max_participations,
            min_separation=cohort.min_separation,
            unit=privacy.unit,
            example_rate=privacy.example_rate,
            steps=None if privacy.example_rate is None else example_steps(config),
            corrupt=aggregation.corrupt if aggregation.protocol == "secure" else None,
        )
        plan.build_mechanism()
    except MechanismError as error:
        if privacy.noise_multiplier is None and privacy.epsilon is not None:
            raise MechanismError(f"privacy.epsilon = {privacy.epsilon:g}: {error}") from None
        raise
    return plan


def example_steps(config: Config) -> int:
    """Local steps of DP-SGD in a round: as many as pass over a client's examples `epochs` times."""
    rate = config.privacy.example_rate or 1.0
    return config.local.epochs * math.ceil(1 / rate - 1e-9)


def strategy_of(config: Config) -> Strategy:
    """The strategy that a configuration names, fresh.

    Raises:
        ConfigError: there is none of that name.
    """
    server = config.server
    return build_strategy(
        server.strategy,
        learning_rate=server.learning_rate,
        momentum=server.momentum,
        beta1=server.beta1,
        beta2=server.beta2,
        tau=server.tau,
    )


def _coordinator(
    spec: JobSpec,
    name: bytes,
    *,
    ledger: Ledger,
    accountant: ViewAccountant,
    strategy: Strategy,
    checkpoint: Checkpoint,
    sampler: CohortSampler,
    checkpoints: Checkpoints,
) -> Coordinator:
    config = spec.config
    return Coordinator(
        terms=JobTerms(
            job=name,
            task=config.task.name,
            local=config.local.model_dump(),
            plan=accountant.plan,
            seed=config.job.seed,
        ),
        ledger=ledger,
        accountant=accountant,
        strategy=strategy,
        sampler=sampler,
        weights=checkpoint.weights,
        clipping=_at(checkpoint, spec.clipping),
        noise=checkpoint.mechanism,
        keep=checkpoints.save,
    )


def _at(checkpoint: Checkpoint, start: AdaptiveClipping | None) -> AdaptiveClipping | None:
    """The clipping of the round after a checkpoint."""
    if start is None or checkpoint.clipping is None:
        return start
    return AdaptiveClipping.from_json(checkpoint.clipping)


def _population(plan: PrivacyPlan, facts: JobFacts) -> dict[str, Any]:
    known: dict[str, Any] = {"clients": plan.population, "known": facts.population_known}
    if facts.roster_version is not None:
        known["roster_version"] = facts.roster_version
    return known


def _committed(view: LedgerView) -> dict[int, str]:
    """SHA-256 of the model of each committed round, as the ledger has it."""
    return {
        record.round: str(record.body.get("weights_sha256"))
        for record in view.rounds
        if record.outcome == "commit"
    }


def _recall(sampler: CohortSampler, view: LedgerView, ledger: Ledger) -> None:
    """Tell the sampler of the rounds that are over; one whose cohort a crash lost had everybody."""
    for record in view.rounds:
        line: Mapping[str, Any] | None = ledger.private_rounds.get(record.round)
        known = record.outcome is not None and line is not None
        sampler.note(record.round, line["sampled"] if known and line is not None else None)
