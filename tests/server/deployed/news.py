"""News of a ledger, for rounds whose devices are told of no lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.deployed.fleet import Fleet
from server.deployed.ledger_news import LedgerNews


def silent_news(fleet: Fleet, members: tuple[int, ...] = tuple(range(1, 20))) -> LedgerNews:
    """It sends outcomes without a head, and no lines."""
    ledger: Any = None
    return LedgerNews(
        ledger,
        Path("none"),
        job=bytes(32),
        fleet=fleet,
        members=members,
        prekeys=lambda nodes: dict.fromkeys(nodes, 0),
    )
