"""What a ledger's closing line binds beside the ledger: summary, metrics and model, by hash.

Without those hashes whoever holds a finished run could cut its ledger to a cheaper one and write
the rest of the folder to match. ``report.html`` is not among them: it states the ledger's head,
which is known only after the line is written; an audit makes it anew instead and compares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsys.privacy.ledger.files import open_regular
from fedsys.privacy.ledger.lines import canonical

__all__ = ["COHORT_SECRETS", "closing_facts", "file_sha256", "public_summary", "summary_sha256"]

COHORT_SECRETS = ("clients_trained", "train_seconds", "clients_per_second", "simulated")
"""Keys of a summary that tell realised cohorts' sizes, which no noise covers."""

_COHORT_VIEWS = ("participant", "server")
_MOST_BYTES = 1 << 32


def public_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary without what tells realised cohorts: what is published, and what is bound.

    Args:
        summary: the object in ``summary.json``, untrusted.
    """
    shown = {key: value for key, value in summary.items() if key not in COHORT_SECRETS}
    privacy = shown.get("privacy")
    epsilon = privacy.get("epsilon") if isinstance(privacy, dict) else None
    if isinstance(privacy, dict) and isinstance(epsilon, dict):
        hidden = {**epsilon, **dict.fromkeys(_COHORT_VIEWS)}
        shown["privacy"] = {**privacy, "epsilon": hidden}
    return shown


def summary_sha256(summary: Mapping[str, Any]) -> str:
    """SHA-256 of a public summary's canonical JSON, without the head that is known only later.

    Raises:
        LedgerError: it is not plain finite JSON.
    """
    shown = public_summary(summary)
    shown.pop("ledger_head", None)
    return hashlib.sha256(canonical(shown)).hexdigest()


def file_sha256(path: Path) -> str | None:
    """SHA-256 of a file as it lies there; None if there is none.

    Raises:
        LedgerError: it is no regular file, or cannot be read.
    """
    if not path.exists() and not path.is_symlink():
        return None
    digest = hashlib.sha256()
    with open_regular(path, _MOST_BYTES) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def closing_facts(
    *, summary: Mapping[str, Any], metrics: Path, model_sha256: str | None
) -> dict[str, str | None]:
    """Body of a closing line, but for ``reason`` and ``lines``.

    Args:
        summary: as ``summary.json`` will hold it.
        metrics: path of ``metrics.jsonl``, which is not written to any more.
        model_sha256: of ``model.pt``.
    """
    return {
        "metrics_sha256": file_sha256(metrics),
        "model_sha256": model_sha256,
        "summary_sha256": summary_sha256(summary),
    }
