"""A run's rounds, one row each: evaluation, cohort, and epsilon spent so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsys.privacy import VIEWS, read_ledger
from fedsys.records import AuditResult
from fedsys.report.contents import read
from fedsys.run_folder import RunFolder
from fedsys.runs.rows import Rows

__all__ = ["history_of"]


def history_of(folder: Path, audit: AuditResult) -> Rows:
    """One row for each reserved round.

    ``outcome`` is ``commit``, ``abort``, or None for a round that a crash interrupted; epsilons are
    those that the audit derived. ``sampled``, ``survivors`` and ``clipped_fraction`` come from
    ``private.jsonl``: they are for the operator of the job, and no published folder has them.

    Args:
        folder: the run's folder.
        audit: the audit of that folder.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    evaluated = {line.pop("round", None): line for line in RunFolder(folder).evaluations()}
    privately = {each.round: each for each in read(folder, private=True).diagnostics or ()}
    spent = {point.round: point.spent for point in audit.curve}
    rows = []
    for record in read_ledger(folder / "ledger.jsonl", allow_torn=True).rounds:
        row: dict[str, Any] = {"round": record.round, "outcome": record.outcome}
        row |= evaluated.get(record.round, {})
        if (diagnostics := privately.get(record.round)) is not None:
            row["sampled"] = diagnostics.sampled
            row["survivors"] = diagnostics.survivors
            row["clipped_fraction"] = diagnostics.clipped_fraction
        if record.round in spent:
            for view in VIEWS:
                row[f"epsilon_{view}"] = getattr(spent[record.round], view)
        rows.append(row)
    return Rows(rows)
