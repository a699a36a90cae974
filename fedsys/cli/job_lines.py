"""A job's status as one line for people, or as one line of JSON for programs."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from fedsys.wire import fleet_pb2

__all__ = ["describe", "fetched_json", "job_json", "node_json"]


def describe(status: fleet_pb2.JobStatus) -> str:
    """One job as one line."""
    parts = [status.id, status.name, status.status]
    if status.rounds:
        parts.append(f"round {status.round}/{status.rounds}")
    if status.stage:
        parts.append(status.stage)
    if status.HasField("epsilon"):
        budget = f" of {status.budget:.2f}" if status.HasField("budget") else ""
        parts.append(f"epsilon {status.epsilon:.2f}{budget}")
    parts += [f"{name} {value:.4f}" for name, value in sorted(status.metrics.items())]
    return "  ".join(parts)


def job_json(status: fleet_pb2.JobStatus) -> str:
    """One job as one line of JSON; a number without a finite value is null."""
    return _line(
        {
            "id": status.id,
            "name": status.name,
            "status": status.status,
            "reason": status.reason,
            "round": status.round,
            "rounds": status.rounds,
            "stage": status.stage,
            "epsilon": _finite(status.epsilon) if status.HasField("epsilon") else None,
            "budget": _finite(status.budget) if status.HasField("budget") else None,
            "metrics": {name: _finite(value) for name, value in sorted(status.metrics.items())},
            "refusals": list(status.refusals),
        }
    )


def fetched_json(id: str, status: str, folder: Path, *, audit: bool) -> str:
    """What was fetched, as one line of JSON."""
    return _line({"id": id, "status": status, "folder": str(folder), "audit": audit})


def node_json(node: fleet_pb2.NodeStatus) -> str:
    """One device as one line of JSON; `expires` in seconds since 1970."""
    return _line(
        {
            "id": node.id,
            "name": node.name,
            "status": node.status,
            "connected": node.connected,
            "version": node.version,
            "expires": node.expires,
            "labels": list(node.labels),
            "warning": node.warning,
        }
    )


def _line(body: dict[str, Any]) -> str:
    return json.dumps(body, allow_nan=False)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
