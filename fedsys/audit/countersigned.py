"""``countersignatures.jsonl``: what agents' own signatures say about the ledger, and what not.

A countersignature signs the hash of the line that commits a round. That line's place in the chain
covers every line before it, so the history up to the newest signed line cannot be rewritten without
the agents that signed it. It says that they took part in that round. It says nothing about other
clients, noise, or how cohorts were drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.audit.wording import claim
from fedsys.errors import LedgerError
from fedsys.privacy import LedgerView, PrivacyPlan
from fedsys.privacy.ledger.files import open_regular, read_lines
from fedsys.records import Claim
from fedsys.wire.countersign import FILE, MAX_LINE_BYTES, Countersignature

__all__ = ["Countersigned", "countersigned_claims", "read_countersignatures"]

_FILE_BYTES = 1 << 28
_MOST_LINES = 500_000
_VERIFIED = 20_000
"""The most signatures that are verified: those of the newest rounds."""


@dataclass(kw_only=True, slots=True)
class Countersigned:
    """What ``countersignatures.jsonl`` holds.

    Attributes:
        committed: number of rounds that the ledger commits.
        clients: by round, the clients whose countersignatures were verified.
        unverified: number of lines of older rounds, beyond the most that are verified.
        problem: the first contradiction; None if there is none.
    """

    committed: int
    clients: dict[int, list[int]] = field(default_factory=dict)
    unverified: int = 0
    problem: str | None = None

    @property
    def agents(self) -> int:
        """Number of distinct agents."""
        return len({client for clients in self.clients.values() for client in clients})

    @property
    def newest(self) -> int | None:
        """The newest countersigned round."""
        return max(self.clients, default=None)

    @property
    def covers(self) -> str | None:
        """What no longer rests on the coordinator's word alone; None if nothing."""
        if self.problem is not None or self.newest is None:
            return None
        agents = len(self.clients[self.newest])
        return f"up to round {self.newest} countersigned by {agents} agents"

    def strangers(self, round: int, sampled: NDArray[np.int64]) -> list[int]:
        """Clients that countersigned a round without being in its cohort."""
        signed = np.array(self.clients.get(round, []), dtype=np.int64)
        return [int(client) for client in np.setdiff1d(signed, sampled)]


def read_countersignatures(run: Path, view: LedgerView, plan: PrivacyPlan) -> Countersigned | None:
    """Reads and checks a run's file; None if it has none. Never raises for its content.

    Args:
        run: the folder.
        view: its verified ledger.
        plan: the plan in its header.
    """
    path = run / FILE
    if not path.exists() and not path.is_symlink():
        return None
    heads = {r.round: r.hash for r in view.rounds if r.outcome == "commit"}
    found = Countersigned(committed=len(heads))
    try:
        job = _job(view.header.get("job"))
        lines = _Checked(heads, plan.population)
        for each in _lines(path):
            lines.take(each)
        oldest = lines.oldest_verified()
        for each in _lines(path):
            if each.round < oldest:
                found.unverified += 1
            elif not each.holds(job):
                raise LedgerError(
                    f"the countersignature of client {each.client} for round {each.round} is forged"
                )
            else:
                found.clients.setdefault(each.round, []).append(each.client)
    except LedgerError as error:
        found.problem = str(error)
        found.clients.clear()
    return found


def _job(stated: Any) -> bytes:
    try:
        return bytes.fromhex(stated)
    except (TypeError, ValueError):
        raise LedgerError("the ledger's header names no job that could be countersigned") from None


def _lines(path: Path) -> Iterator[Countersignature]:
    with open_regular(path, _FILE_BYTES) as file:
        lines = read_lines(file, path.name, limit=MAX_LINE_BYTES)
        for number, (raw, ended) in enumerate(lines, start=1):
            if number > _MOST_LINES:
                raise LedgerError(f"{path.name} has more than {_MOST_LINES} lines")
            if ended:  # otherwise a crash tore it: it was never acknowledged
                yield Countersignature.parse(raw, f"{path.name} line {number}")


class _Checked:
    """Whether lines are consistent with the ledger and one another, signatures aside."""

    def __init__(self, heads: dict[int, str], population: int) -> None:
        self._heads = heads
        self._population = population
        self._seen: set[tuple[int, int]] = set()
        self._keys: dict[int, bytes] = {}
        self._clients: dict[bytes, int] = {}

    def take(self, each: Countersignature) -> None:
        """Takes one line.

        Raises:
            LedgerError: it contradicts the ledger or an earlier line.
        """
        whose = f"the countersignature of client {each.client} for round {each.round}"
        if each.round not in self._heads:
            raise LedgerError(f"{whose} is for a round that the ledger does not commit")
        if each.ledger_head.hex() != self._heads[each.round]:
            raise LedgerError(
                f"{whose} signs line {each.ledger_head.hex()}, the ledger has "
                f"{self._heads[each.round]}: two histories"
            )
        if each.client >= self._population or not 1 <= each.participations <= each.round:
            raise LedgerError(f"{whose} states an impossible client or count")
        if (each.round, each.client) in self._seen:
            raise LedgerError(f"{whose} appears twice")
        self._seen.add((each.round, each.client))
        same_key = self._keys.setdefault(each.client, each.key) == each.key
        if not same_key or self._clients.setdefault(each.key, each.client) != each.client:
            raise LedgerError(f"{whose} is by a different key than before, or by another client's")

    def oldest_verified(self) -> int:
        """The round from which on all signatures are verified."""
        counts = Counter(round for round, _ in self._seen)
        left, oldest = _VERIFIED, max(counts, default=0) + 1
        for round in sorted(counts, reverse=True):
            left -= counts[round]
            if left < 0:
                break
            oldest = round
        return oldest


def countersigned_claims(found: Countersigned | None, view: LedgerView) -> Iterator[Claim]:
    """What agents vouch for; nothing where a job had no agents to ask."""
    population = view.header.get("population")
    deployed = isinstance(population, dict) and "roster_version" in population
    if found is None and not deployed:
        return
    if found is None:
        yield claim(
            "Countersignatures",
            None,
            claimed="agents countersign the rounds that they took part in",
            rederived=f"{FILE} is not here",
            by="Ed25519 by each agent",
            rests_on="the coordinator's word",
        )
        return
    words = found.problem or _words(found)
    yield claim(
        "Countersignatures",
        False if found.problem is not None else True if found.clients else None,
        claimed="agents confirm that they took part in the rounds of these very lines",
        rederived=words,
        by="Ed25519 by each agent over the commit's hash",
        rests_on="the agents' keys being those of the roster, and independent of the coordinator",
    )


def _words(found: Countersigned) -> str:
    if not found.clients:
        return "there are none"
    sizes = [len(clients) for clients in found.clients.values()]
    words = (
        f"{found.agents} agents on {len(found.clients)} of {found.committed} committed rounds, "
        f"{min(sizes)} to {max(sizes)} per round; the newest is round {found.newest}"
    )
    if found.unverified:
        words += f"; {found.unverified} older ones not verified"
    return words
