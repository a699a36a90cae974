"""How a job begins: in a new folder, or resumed from its folder after a crash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.config import Config
from fedsys.errors import ConfigError, RunFolderError
from fedsys.privacy import (
    AdaptiveClipping,
    Entropy,
    Ledger,
    LedgerView,
    PrivacyPlan,
    Signer,
    ViewAccountant,
    charge_rounds,
    ledger_header,
    read_ledger,
)
from fedsys.privacy.encoding.parts import Parts
from fedsys.privacy.ledger.openings import Opening, mixed
from fedsys.privacy.sampling.drawing import CohortSampler
from fedsys.run_folder import RunFolder
from fedsys.versions import code_hash, versions
from server.asking import between_of, sheet_between, turns_of
from server.checkpoint import Checkpoint, Checkpoints, sha256_of_weights
from server.coordinator import Coordinator, JobTerms
from server.job import Job, JobFacts, job_withheld
from server.job_settings import sampler_of, strategy_of
from server.strategy_base import Strategy

__all__ = ["JobSpec", "Weights", "reached", "restore_job", "start_job", "take_up"]

Weights = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class JobSpec:
    """What a new or resumed job is made of.

    Attributes:
        config: The resolved configuration; for a resumed job, as stored in its folder.
        plan: As returned by `server.job_settings.plan_for`.
        weights: (d,) float32, the initial model; a job with a checkpoint resumes from that.
        facts: For the ledger's header; a job is resumed only with those it was started with.
        clipping: As returned by `server.job_settings.clipping_for`.
        signer: Signs the ledger; by default the coordinator's own key.
        entropy: Source for the job's name and the ledger's salts.
        disk: Writes each round's files in the background, and looks at its sum; of two threads it
            makes use. With None, each round waits for its own.
        parts: What lies where in a client's vector; None where it is the update alone.
        begin: What the job begins with, where another run reached it: `weights`, and the state of
            strategy and clipping. It is kept in the job's folder.
    """

    config: Config
    plan: PrivacyPlan
    weights: Weights
    facts: JobFacts
    clipping: AdaptiveClipping | None = None
    signer: Signer | None = None
    entropy: Entropy = os.urandom
    disk: Executor | None = None
    parts: Parts | None = None
    begin: Checkpoint | None = None


def start_job(folder: RunFolder, spec: JobSpec) -> Job:
    """Write configuration and ledger header into an empty folder."""
    signer, name = spec.signer or Signer.load_or_create(), spec.entropy(32)
    folder.write_config(spec.config)
    checkpoints = Checkpoints(folder.checkpoints, spec.disk)
    strategy = strategy_of(spec.config, spec.plan, len(spec.weights), spec.parts)
    if spec.begin is not None:
        checkpoints.begin(spec.begin)
        if spec.begin.strategy:
            strategy.load(spec.begin.strategy)
    ledger = Ledger.create(
        folder.ledger,
        folder.private,
        signer=signer,
        header=_header(folder, spec, name),
        entropy=spec.entropy,
    )
    with ExitStack() as held:
        held.enter_context(ledger)
        job = _job(
            folder,
            spec,
            name=name,
            ledger=ledger,
            accountant=ViewAccountant(spec.plan),
            strategy=strategy,
            sampler=sampler_of(spec.config, spec.plan),
            checkpoint=spec.begin or Checkpoint(round=0, weights=spec.weights),
            checkpoints=checkpoints,
        )
        held.pop_all()
    return job


def restore_job(folder: RunFolder, spec: JobSpec, *, ledger: Ledger | None = None) -> Job:
    """Resume an interrupted job: charge its ledger's rounds, load its committed model.

    Args:
        folder: The run's folder.
        spec: What the job is made of.
        ledger: As opened by `take_up`, where its header had to be read first.

    Raises:
        LedgerError: The ledger is closed, locked or does not verify.
        RunFolderError: It belongs to another configuration, or a checkpoint does not fit.
    """
    signer = spec.signer or Signer.load_or_create()
    with ExitStack() as held:
        if ledger is None:
            ledger = take_up(folder, signer, entropy=spec.entropy)
        held.enter_context(ledger)
        view = _view_of_the_same_job(ledger, folder, spec)
        strategy = strategy_of(spec.config, spec.plan, len(spec.weights), spec.parts)
        checkpoints = Checkpoints(folder.checkpoints, spec.disk)
        checkpoint = checkpoints.newest(_committed(view))
        if checkpoint is None and "start" in view.header:
            checkpoint = checkpoints.start(str(view.header.get("initial_weights_sha256")))
        if checkpoint is not None:
            asks = spec.config.job.kind != "train"  # what is kept is the answer, not a model
            if checkpoint.weights.shape != spec.weights.shape and not asks:
                raise RunFolderError(
                    f"{folder.checkpoints}: holds {len(checkpoint.weights)} weights, the task "
                    f"has {len(spec.weights)}; is this the task that the run was started with?"
                )
            if checkpoint.round or checkpoint.strategy:
                strategy.load(checkpoint.strategy)
        folder.keep_answers(_committed(view))
        accountant = ViewAccountant(spec.plan)
        for _ in charge_rounds(accountant, view, ledger.private_rounds):
            pass
        sampler = sampler_of(spec.config, spec.plan)
        _recall(sampler, view, ledger)
        job = _job(
            folder,
            spec,
            name=bytes.fromhex(view.header["job"]),
            ledger=ledger,
            accountant=accountant,
            strategy=strategy,
            sampler=sampler,
            checkpoint=checkpoint or Checkpoint(round=0, weights=spec.weights),
            checkpoints=checkpoints,
        )
        if (mix := _mix(view, ledger)) is not None:
            job.coordinator.go_on_from(mix)
        held.pop_all()
    return job


def reached(folder: RunFolder) -> Checkpoint:
    """A job's newest committed round.

    Raises:
        ConfigError: it has none, or its folder is the published part.
        FedsysError: its folder cannot be read.
    """
    committed = _committed(read_ledger(folder.ledger, allow_torn=True)) if folder.begun else {}
    if committed and not folder.checkpoints.is_dir():
        raise ConfigError(
            f"{folder.path}: holds no checkpoints; name the folder that the run itself wrote"
        )
    checkpoint = Checkpoints(folder.checkpoints).newest(committed) if committed else None
    if checkpoint is None:
        raise ConfigError(f"{folder.path}: no round of that job was committed")
    return checkpoint


def take_up(folder: RunFolder, signer: Signer, *, entropy: Entropy = os.urandom) -> Ledger:
    """Open an interrupted job's ledger: read and verified once, with ``view`` and private rounds.

    Raises:
        LedgerClosed: The job is over.
        LedgerError: The ledger is locked or does not verify.
    """
    return Ledger.open(
        folder.ledger,
        folder.private,
        signer=signer,
        facts={"code_sha256": code_hash(), "versions": versions()},
        entropy=entropy,
    )


def _header(folder: RunFolder, spec: JobSpec, name: bytes) -> dict[str, Any]:
    config, plan, facts = spec.config, spec.plan, spec.facts
    further = config.job.kind == "train" and len(spec.weights) != plan.dimension
    optional = {
        "canaries": facts.canaries,
        "frozen_sha256": facts.frozen_sha256,
        "start": config.job.start or None,
        "model_dimension": len(spec.weights) if further else None,
        "on_devices_every": config.evaluation.on_devices_every or None,
    }
    registered = {key: value for key, value in optional.items() if value is not None}
    return ledger_header(
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
        preprocessing=facts.preprocessing,
        withheld=job_withheld(plan, facts),
        tuning=config.tuning.to_json(),
        kind=config.job.kind,
        config_sha256=hashlib.sha256(folder.config.read_bytes()).hexdigest(),
        code_sha256=code_hash(),
        initial_weights_sha256=sha256_of_weights(spec.weights),
        versions=versions(),
        **registered,
    )


def _population(plan: PrivacyPlan, facts: JobFacts) -> dict[str, Any]:
    known: dict[str, Any] = {"clients": plan.population, "known": facts.population_known}
    if facts.roster_version is not None:
        known["roster_version"] = facts.roster_version
        known["roster_sha256"] = facts.roster_sha256
    return known


def _view_of_the_same_job(ledger: Ledger, folder: RunFolder, spec: JobSpec) -> LedgerView:
    view = ledger.view
    if view is None or view.header.get("plan") != spec.plan.to_json():
        raise RunFolderError(
            f"{folder.config}: gives another privacy plan than {folder.ledger.name} was "
            f"started with; restore the file, or start a new run"
        )
    if view.header.get("frozen_sha256") != spec.facts.frozen_sha256:
        raise RunFolderError(
            f"{folder.path}: the model's frozen weights or buffers, or its form, are not those "
            f"that the run was started with; restore the task's code and the files that it reads"
        )
    if view.header.get("randomness") != spec.facts.randomness:
        raise RunFolderError(f"{folder.path}: a seeded test run is not resumed; start over")
    return view


def _committed(view: LedgerView) -> dict[int, str]:
    """SHA-256 of each committed round's model, as the ledger states it."""
    return {
        record.round: str(record.body.get("weights_sha256", record.body.get("answer_sha256")))
        for record in view.rounds
        if record.outcome == "commit"
    }


def _recall(sampler: CohortSampler, view: LedgerView, ledger: Ledger) -> None:
    """Give the sampler all past rounds; a cohort that a crash lost counts as everybody."""
    for record in view.rounds:
        line: Mapping[str, Any] | None = ledger.private_rounds.get(record.round)
        known = record.outcome is not None and line is not None
        sampler.note(record.round, line["sampled"] if known and line is not None else None)


def _mix(view: LedgerView, ledger: Ledger) -> bytes | None:
    """What the last round's seed and nonces gave; None where a crash took them."""
    if not view.rounds or view.rounds[-1].outcome is None:
        return None
    number = view.rounds[-1].round
    line = ledger.private_rounds[number]
    opening = Opening.parse(line.get("opening"), line["survivors"], f"round {number}")
    return mixed(number, opening.seed, opening.nonces)


def _job(
    folder: RunFolder,
    spec: JobSpec,
    *,
    name: bytes,
    ledger: Ledger,
    accountant: ViewAccountant,
    strategy: Strategy,
    sampler: CohortSampler,
    checkpoint: Checkpoint,
    checkpoints: Checkpoints,
) -> Job:
    """The job that continues from a checkpoint; `name` is the job's name in the ledger."""
    config, signer = spec.config, spec.signer or Signer.load_or_create()
    sheet = sheet_between(config, accountant.plan.dimension)

    def keep(kept: Checkpoint) -> Callable[[], object]:
        if kept.answer is not None:
            stated = between_of(config, accountant.plan, kept.round, kept.answer)
            folder.append_answers(kept.round, stated)
        return checkpoints.save(kept)

    coordinator = Coordinator(
        terms=JobTerms(
            job=name,
            task=config.task.name,
            local=config.local.model_dump(),
            plan=accountant.plan,
            seed=config.job.seed,
            parts=spec.parts,
            kind=config.job.kind,
            turns=None if sheet is None else turns_of(config),
            asked=0 if sheet is None else sheet.size,
        ),
        ledger=ledger,
        accountant=accountant,
        strategy=strategy,
        sampler=sampler,
        weights=checkpoint.weights,
        clipping=_at(checkpoint, spec.clipping),
        noise=checkpoint.mechanism,
        keep=keep,
    )
    if spec.disk is not None:
        coordinator.in_background(spec.disk)
    return Job(
        config=config,
        plan=spec.plan,
        folder=folder,
        ledger=ledger,
        coordinator=coordinator,
        signer=signer,
        facts=spec.facts,
    )


def _at(checkpoint: Checkpoint, start: AdaptiveClipping | None) -> AdaptiveClipping | None:
    """The clipping of the round after a checkpoint."""
    if start is None or checkpoint.clipping is None:
        return start
    return AdaptiveClipping.from_json(checkpoint.clipping)
