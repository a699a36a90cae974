"""How a job ends: its model, the closing line that binds what the folder holds, its summary.

The closing line states the summary's hash, and the summary states the closing line's. So the
summary is first written without that head and under another name, where it is found again if the
process dies after the closing line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsys.durable import flush_names, write_atomically
from fedsys.errors import RunFolderError
from fedsys.privacy import LedgerView
from fedsys.privacy.ledger.closing import (
    FILES,
    SALT,
    closing_facts,
    hidden_files,
    summary_sha256,
)
from fedsys.privacy.ledger.cosigned import write_proof
from fedsys.run_folder import RunFolder, plain_json
from server.job import Job
from server.summary import summarize

__all__ = ["end_job", "finish_ended", "is_unfinished_end"]

_PENDING = "summary.pending.json"


def end_job(
    job: Job,
    *,
    status: str,
    model: bytes | None,
    metrics: dict[str, float],
    seconds: Sequence[float],
    clients: Sequence[int],
) -> None:
    """Write the model, close the ledger, write the summary; the job runs no further rounds.

    Args:
        job: A job with no open round and no held commit.
        status: ``completed``, ``budget-exhausted``, ``stopped-early`` or ``interrupted``.
        model: Content of ``model.pt``; None where rounds asked and there is none.
        metrics: Metrics of the last evaluation.
        seconds: Duration of each round.
        clients: Number of clients that trained in each of those rounds.

    Raises:
        OSError: The model or the summary cannot be written.
        LedgerError: The ledger cannot be closed.
    """
    folder = job.folder
    model_sha256 = None
    if model is not None:
        write_atomically(folder.model, model)
        model_sha256 = hashlib.sha256(model).hexdigest()
    stated = summarize(
        job,
        status=status,
        model_sha256=model_sha256,
        metrics=metrics,
        seconds=seconds,
        clients=clients,
    )
    del stated["ledger_head"]
    stated[FILES] = hidden_files(folder.path)
    stated[SALT] = job.ledger.salt().hex()
    text = json.dumps(plain_json(stated), allow_nan=False)
    write_atomically(_pending(folder), text.encode(), mode=0o600)
    summary = json.loads(text)
    facts = closing_facts(
        summary=summary, metrics=folder.metrics, model_sha256=model_sha256, data=folder.data
    )
    job.close(status, facts)
    tree = job.ledger.tree
    note = job.signer.sign_checkpoint(tree, len(tree), job=job.coordinator.terms.job)
    write_proof(folder.proof, tree, note)
    _complete(folder, summary, job.ledger.head)


def is_unfinished_end(folder: RunFolder) -> bool:
    """Whether a process may have died between a job's closing line and its summary."""
    return _pending(folder).is_file()


def finish_ended(folder: RunFolder, view: LedgerView) -> None:
    """Write the summary of a closed ledger whose process died before writing it.

    Args:
        folder: The run's folder.
        view: Its closed ledger.

    Raises:
        RunFolderError: The pending summary cannot be read.
    """
    try:
        summary = folder.read_object(_pending(folder))
    except RunFolderError as error:
        raise RunFolderError(
            f"{folder.path}: its job is over and {_PENDING} cannot be read ({error}); nothing "
            "else can make summary.json as the ledger binds it"
        ) from None
    bound = (view.closed or {}).get("summary_sha256")
    if summary_sha256(summary) != bound:
        raise RunFolderError(
            f"{folder.path}: its job is over, and {_PENDING} is not what the ledger's closing line "
            f"binds (summary_sha256 {bound}); restore that file from a backup"
        )
    _complete(folder, summary, view.head)


def _complete(folder: RunFolder, summary: dict[str, Any], head: str) -> None:
    folder.write_summary({**summary, "ledger_head": head})
    _pending(folder).unlink()
    flush_names(folder.path)


def _pending(folder: RunFolder) -> Path:
    return folder.path / _PENDING
