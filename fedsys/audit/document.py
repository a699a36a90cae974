"""``audit.json``: the result of an audit for machines."""

from __future__ import annotations

import json
import math
import os
import secrets
from pathlib import Path
from typing import Any

from fedsys.records import AuditResult

__all__ = ["VERSION", "to_json", "write"]

VERSION = 1


def to_json(result: AuditResult) -> str:
    """The content of ``audit.json``; an infinite epsilon is the string "inf"."""
    last = result.curve[-1].spent.to_json() if result.curve else None
    body = {
        "version": VERSION,
        "run": result.run,
        "passed": result.passed,
        "epsilon": last,
        "delta": result.delta,
        "neighbours": dict(result.neighbours),
        "withheld": result.withheld,
        "total": None if result.total is None else result.total.to_json(),
        "ledger_head": result.ledger_head,
        "signer": result.signer,
        "claims": [
            {
                "name": claim.name,
                "claimed": claim.claimed,
                "rederived": claim.rederived,
                "by": claim.by,
                "rests_on": claim.rests_on,
                "holds": claim.holds,
            }
            for claim in result.claims
        ],
        "notes": list(result.notes),
        "curve": [{"round": point.round, **point.spent.to_json()} for point in result.curve],
        "details": result.details,
    }
    return json.dumps(_plain(body), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def write(run: Path, result: AuditResult) -> Path:
    """Writes ``audit.json`` into a run's folder, replacing an existing file or link.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = run / "audit.json"
    partial = run / f".audit.{secrets.token_hex(8)}.partial"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(to_json(result))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
