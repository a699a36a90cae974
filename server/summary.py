"""``summary.json``: a run's result for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsys.versions import versions
from server.job import Job
from server.run_folder import FORMAT_VERSION

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
        job: at its end.
        status: ``completed``, ``budget-exhausted`` or ``interrupted``.
        model_sha256: of ``model.pt``, where there is one.
        metrics: the last evaluation.
        seconds: of each round, evaluation left out; after a resume, of the rounds since.
        clients: that trained in each of those rounds.
    """
    privacy, spent = job.config.privacy, job.recorded()
    steady_seconds, steady_clients = sum(seconds[1:]), sum(clients[1:])
    return {
        "version": FORMAT_VERSION,
        "name": job.config.job.name,
        "status": status,
        "rounds": job.coordinator.reserved,
        "metrics": metrics,
        "privacy": {
            "mechanism": privacy.mechanism,
            "unit": privacy.unit,
            "delta": job.plan.delta,
            "noise_multiplier": job.plan.noise_multiplier,
            "clip": privacy.clip,
            "guarantee": privacy.guarantee,
            "epsilon": {
                "outsider": spent.outsider,
                "participant": spent.participant,
                "server": spent.server,
            },
            "budget": job.budget,
        },
        "clients_trained": sum(clients),
        "train_seconds": round(sum(seconds), 3),
        "clients_per_second": round(steady_clients / steady_seconds, 1) if steady_seconds else None,
        "model_sha256": model_sha256,
        "ledger_head": job.ledger.head,
        "signer": job.signer.public_hex,
        "protocol": job.config.aggregation.protocol,
        "versions": versions(),
        "reproducible": job.facts.reproducible,
    }
