"""``summary.json``: a run's result in machine-readable form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsys.audit.tuning import total_of
from fedsys.config import Config
from fedsys.improvement import STOPPED
from fedsys.privacy import (
    Epsilons,
    PrivacyPlan,
    ViewAccountant,
    read_ledger,
    replay,
)
from fedsys.privacy.ledger import read_private
from fedsys.records import Total
from fedsys.run_folder import FORMAT_VERSION, RunFolder
from fedsys.versions import versions
from server.asking import result_of
from server.job import Job
from server.job_settings import budget_of
from server.simulated_time import simulated_time
from server.standstill import stopped

__all__ = ["summarize"]


def summarize(
    job: Job,
    *,
    status: str,
    model_sha256: str | None,
    metrics: dict[str, float],
    seconds: Sequence[float],
    clients: Sequence[int],
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
        job: The job, with its last round over.
        status: ``completed``, ``budget-exhausted``, ``stopped-early`` or ``interrupted``.
        model_sha256: SHA-256 of ``model.pt``, where there is one.
        metrics: Metrics of the last evaluation.
        seconds: Duration of each round without evaluation; after a resume, of the rounds since.
        clients: Number of clients that trained in each of those rounds.
    """
    view = read_ledger(job.folder.ledger, allow_torn=True)
    accountant, spent = replay(view, read_private(job.folder.private)[0])
    content = _content(
        config=job.config,
        plan=job.plan,
        spent=spent,
        total=_total(job.config, accountant, spent),
        withheld=view.header.get("withheld"),
        rounds=job.coordinator.reserved,
        status=status,
        model_sha256=model_sha256,
        metrics=metrics,
        seconds=seconds,
        clients=clients,
        ledger_head=job.ledger.head,
        signer=job.signer.public_hex,
        reproducible=job.facts.reproducible,
        simulated=_simulated(job.config, job.folder),
    )
    if status == STOPPED:
        content["stopped"] = stopped(job.config, job.plan, job.folder.evaluations())
    return content if job.config.job.kind == "train" else {**content, "query": _asked(job)}


def _asked(job: Job) -> dict[str, Any] | None:
    """The answers; None where no round gave any."""
    if not job.ledger.committed:
        return None
    coordinator = job.coordinator
    deviation = coordinator.mechanism.noise_deviation
    return result_of(job.config, coordinator.weights, deviation=deviation, rate=job.plan.rate)


def _total(config: Config, accountant: ViewAccountant, spent: Epsilons) -> Total | None:
    """Total cost, with the tuning runs that the configuration states."""
    return total_of(
        config.tuning.to_json(), accountant.plan, accountant.outsider.steps(), spent.outsider
    )


def _simulated(config: Config, folder: RunFolder) -> dict[str, Any] | None:
    if not config.faults.seconds_per_example:
        return None
    return simulated_time(folder.evaluations(), read_private(folder.private)[0])


def _content(
    *,
    config: Config,
    plan: PrivacyPlan,
    spent: Epsilons,
    total: Total | None,
    withheld: str | None,
    rounds: int,
    status: str,
    model_sha256: str | None,
    metrics: dict[str, float],
    seconds: Sequence[float],
    clients: Sequence[int],
    ledger_head: str,
    signer: str,
    reproducible: bool,
    simulated: dict[str, Any] | None,
) -> dict[str, Any]:
    privacy = config.privacy
    steady_seconds, steady_clients = sum(seconds[1:]), sum(clients[1:])
    return {
        "version": FORMAT_VERSION,
        "name": config.job.name,
        "status": status,
        "rounds": rounds,
        "metrics": metrics,
        "privacy": {
            "mechanism": privacy.mechanism,
            "unit": privacy.unit,
            "delta": plan.delta,
            "noise_multiplier": plan.noise_multiplier,
            "clip": privacy.clip,
            "guarantee": privacy.guarantee,
            "epsilon": {
                "outsider": spent.outsider,
                "participant": spent.participant,
                "server": spent.server,
            },
            "budget": budget_of(plan),
            "total": None if total is None else total.to_json(),
            "withheld": withheld,
        },
        "clients_trained": sum(clients),
        "train_seconds": round(sum(seconds), 3),
        "clients_per_second": round(steady_clients / steady_seconds, 1) if steady_seconds else None,
        "model_sha256": model_sha256,
        "ledger_head": ledger_head,
        "signer": signer,
        "protocol": config.aggregation.protocol,
        "modulus_bits": plan.modulus_bits,
        "versions": versions(),
        "reproducible": reproducible,
        **({} if simulated is None else {"simulated": simulated}),
    }
