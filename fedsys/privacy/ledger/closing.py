"""The files that a ledger's closing line binds: summary, metrics, model and what is not published.

Without these hashes, anyone who holds a finished run could truncate its ledger to a cheaper one and
rewrite the rest of the folder to match. ``report.html`` is not among them, because it states the
ledger's head, which is known only after the line is written; an audit renders it again and
compares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsys.errors import LedgerError
from fedsys.privacy.ledger.files import open_regular
from fedsys.privacy.ledger.lines import canonical, commitment

__all__ = [
    "COHORT_SECRETS",
    "FILES",
    "NEVER_PUBLISHED",
    "SALT",
    "closing_facts",
    "file_sha256",
    "hidden_epsilons",
    "hidden_files",
    "public_summary",
    "secrets_commitment",
    "summary_sha256",
]

SALT = "salt"
"""Key of a summary that opens the commitment to what is never published."""
FILES = "files"
"""Key of a summary with the SHA-256 of each file in ``NEVER_PUBLISHED`` that is there."""
NEVER_PUBLISHED = ("private.jsonl", "clients.json", "canaries.jsonl")
COHORT_SECRETS = (
    "clients_trained",
    "train_seconds",
    "clients_per_second",
    "simulated",
    FILES,
    SALT,
)
"""Keys of a summary that reveal the sizes of realised cohorts, which no noise hides."""

_COHORT_VIEWS = ("participant", "server")
_MOST_BYTES = 1 << 32
_SALT_DIGITS = 64


def public_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a summary that reveals no realised cohort: what is published and bound.

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
    """SHA-256 of a public summary's canonical JSON, without the head, which is known only later.

    Raises:
        LedgerError: the summary is not plain finite JSON.
    """
    shown = public_summary(summary)
    shown.pop("ledger_head", None)
    return hashlib.sha256(canonical(shown)).hexdigest()


def secrets_commitment(summary: Mapping[str, Any], data: Path) -> str | None:
    """The salted commitment to what is never published: a summary's secrets, and ``data.json``.

    Args:
        summary: the object in ``summary.json``, untrusted.
        data: the path of ``data.json``, which may not exist.

    Returns:
        None if the summary has no salt.

    Raises:
        LedgerError: the salt is malformed, or a part cannot be read.
    """
    if SALT not in summary:
        return None
    stated = summary[SALT]
    try:
        salt = bytes.fromhex(stated) if isinstance(stated, str) else b""
    except ValueError:
        salt = b""
    if len(salt) * 2 != _SALT_DIGITS:
        raise LedgerError(f"summary.json: its {SALT} is not {_SALT_DIGITS} hexadecimal digits")
    hidden = {key: summary[key] for key in COHORT_SECRETS if key in summary and key != SALT}
    content: dict[str, Any] = {"data_sha256": file_sha256(data), "summary": hidden}
    if FILES in summary:  # an older summary has none, and its ledger binds no more than the above
        content["epsilon"] = hidden_epsilons(summary)
    return commitment("secrets", content, salt)


def hidden_epsilons(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The epsilons in a summary that depend on cohorts, by view, as far as they are stated.

    Args:
        summary: the object in ``summary.json``, untrusted.
    """
    privacy = summary.get("privacy")
    epsilon = privacy.get("epsilon") if isinstance(privacy, dict) else None
    stated = epsilon if isinstance(epsilon, dict) else {}
    return {view: stated[view] for view in _COHORT_VIEWS if stated.get(view) is not None}


def hidden_files(folder: Path) -> dict[str, str]:
    """What a summary states as its ``FILES``.

    Raises:
        LedgerError: one of them is not a regular file, or cannot be read.
    """
    found = {name: file_sha256(folder / name) for name in NEVER_PUBLISHED}
    return {name: digest for name, digest in found.items() if digest is not None}


def file_sha256(path: Path) -> str | None:
    """SHA-256 of a file's bytes, as hex; None if there is no file.

    Raises:
        LedgerError: it is not a regular file, or cannot be read.
    """
    if not path.exists() and not path.is_symlink():
        return None
    digest = hashlib.sha256()
    with open_regular(path, _MOST_BYTES) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def closing_facts(
    *, summary: Mapping[str, Any], metrics: Path, model_sha256: str | None, data: Path
) -> dict[str, str | None]:
    """The body of a closing line, except for ``reason`` and ``lines``.

    Args:
        summary: the object that ``summary.json`` will hold.
        metrics: the path of ``metrics.jsonl``, which must be complete.
        model_sha256: the hash of ``model.pt``, or None.
        data: the path of ``data.json``, which may not exist.
    """
    return {
        "metrics_sha256": file_sha256(metrics),
        "model_sha256": model_sha256,
        "secrets": secrets_commitment(summary, data),
        "summary_sha256": summary_sha256(summary),
    }
