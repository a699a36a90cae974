"""``private.jsonl`` against the ledger's salted commitments, read once during the accounting.

No line is kept: each round's cohort is checked, passed to the accountant and dropped, so that a
private file of any length costs the memory of one line and of one count per client.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.audit.cohort_counts import CohortCounts, Scheme
from fedsys.audit.countersigned import AgainstCohorts, Countersigned
from fedsys.audit.openings import Openings
from fedsys.errors import LedgerError
from fedsys.privacy import PrivacyPlan
from fedsys.privacy.ledger.files import open_regular, read_lines
from fedsys.privacy.ledger.openings import Opening
from fedsys.privacy.ledger.private import (
    MAX_PRIVATE_LINE_BYTES,
    check_commitments,
    parse_private,
)
from fedsys.privacy.ledger.reader import LedgerView, RoundRecord

__all__ = ["Cohorts", "Round"]

_MOST_PROBLEMS = 3

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Who was invited in one round and whose update was summed; increasing ids."""

    round: int
    sampled: Ids
    survivors: Ids


class Cohorts:
    """What ``private.jsonl`` proves; rounds are requested in order, then `finish` is called.

    Args:
        path: the file.
        ledger: the verified ledger.
        plan: the plan in its header.
        countersigned: agents' statements, which have to agree with the lists.

    Attributes:
        openings: how cohorts and noise were drawn.
        opened: rounds whose lists are those that the ledger committed to.
        counts: input of the sampling tests; None where the plan promises no randomness.
        problems: ways in which the file is not what the ledger committed to.
        broken: limits of the plan that a round exceeded.
        participations: rounds in which each client's update was summed.
    """

    def __init__(
        self,
        path: Path,
        ledger: LedgerView,
        plan: PrivacyPlan,
        countersigned: Countersigned | None = None,
    ) -> None:
        self.opened = 0
        self._statements = (
            None if countersigned is None else AgainstCohorts(countersigned, ledger, plan)
        )
        scheme = Scheme.of(plan)
        self.counts = None if scheme is None else CohortCounts(scheme)
        self.problems: list[str] = []
        self.broken: list[str] = []
        self.participations = np.zeros(plan.population, dtype=np.int64)
        self.openings = Openings(ledger, plan)
        self._path = path
        self._plan = plan
        self._closed = ledger.closed is not None
        self._records = {record.round: record for record in ledger.rounds}
        self._separation = _Separation(plan)
        self._todo = iter(ledger.rounds)
        self._rounds = self._read()
        self._ahead: Round | None = None
        self._missing: list[int] = []

    @property
    def most_participations(self) -> int:
        """The largest number of participations of any client."""
        return int(self.participations.max(initial=0))

    def get(self, round: int, /) -> dict[str, Ids] | None:
        """A concluded round's cohort, as rounds are charged; None if the file has no line for it.

        Raises:
            LedgerError: the next line is not what the ledger committed to; ``problems`` says why.
        """
        for record in self._todo:
            found = self._take(record)
            if record.round == round:
                if found is not None:
                    return {"sampled": found.sampled, "survivors": found.survivors}
                break
        return None

    def finish(self) -> None:
        """Checks the rounds that were not requested, and that no line is missing or surplus."""
        try:
            for record in self._todo:
                self._take(record)
            for _ in self._rounds:
                pass
        except LedgerError:
            return
        if self._missing:
            self.problems.append(
                f"{self._path.name} lacks round {self._missing[0]} ({len(self._missing)} in all)"
            )
        most = self._plan.max_participations
        # under other sampling a client that reached the limit keeps sending zeros and noise
        limited = self._plan.by_turns
        if limited and most is not None and self.most_participations > most:
            self.broken.append(
                f"a client took part in {self.most_participations} rounds, over the limit {most}"
            )

    def _take(self, record: RoundRecord) -> Round | None:
        if record.outcome is None or self.problems:
            return None
        if self._ahead is None:
            self._ahead = next(self._rounds, None)
        if self._ahead is None or self._ahead.round != record.round:
            self._missing.append(record.round)
            return None
        found, self._ahead = self._ahead, None
        return found

    def _read(self) -> Iterator[Round]:
        """The concluded rounds' lines, each checked."""
        try:
            yield from self._lines()
        except LedgerError as error:
            self.problems.append(str(error))
            raise

    def _lines(self) -> Iterator[Round]:
        last, name = 0, self._path.name
        with open_regular(self._path) as file:
            lines = read_lines(file, name, limit=MAX_PRIVATE_LINE_BYTES)
            for number, (raw, ended) in enumerate(lines, start=1):
                if not ended:
                    if self._closed:
                        raise LedgerError(f"{name} ends in an unfinished line")
                    return
                where = f"{name} line {number}"
                body = parse_private(raw, where)
                if body["round"] <= last:
                    raise LedgerError(
                        f"{where} is of round {body['round']} after round {last}: lines were moved"
                    )
                last = body["round"]
                record = self._records.get(last)
                if record is None:
                    raise LedgerError(f"{where} is of round {last}, which the ledger lacks")
                if record.outcome is not None:
                    found = _checked(body, record, self._plan, self.participations)
                    opening = self.openings.take(record, body, found.sampled, found.survivors)
                    self._note(found, record, opening)
                    yield found

    def _note(self, found: Round, record: RoundRecord, opening: Opening | None) -> None:
        self.opened += 1
        if self.counts is not None:
            self.counts.note(found.round, found.sampled)
        if self._statements is not None:
            self._statements.note(
                found.round,
                found.sampled,
                found.survivors,
                committed=record.outcome == "commit",
                nonces=None if opening is None else opening.nonces,
            )
        wrong = (
            _over_limits(found, record, self._plan)
            or _another_size(found, record.outcome, self._plan)
            or self._separation.broken_by(found)
        )
        if wrong is not None and len(self.broken) < _MOST_PROBLEMS:
            self.broken.append(f"round {found.round}: {wrong}")


class _Separation:
    """How far apart a client's rounds are, where the plan's accounting relies on it.

    Under min-separation sampling two rounds that invite the same client differ by b or more; under
    banded-mf with Poisson sampling only the clients of the round's own cyclic group may be drawn.
    """

    def __init__(self, plan: PrivacyPlan) -> None:
        self._apart = plan.min_separation or 0
        cyclic = plan.mechanism == "banded-mf" and plan.sampling == "poisson"
        self._groups = (plan.min_separation or 1) if cyclic else 1
        remembers = self._apart and plan.sampling == "min-separation"
        # Round numbers; 0 means never. Pages of zeros that are never written take no memory.
        self._last = np.zeros(plan.population if remembers else 0, dtype=np.int64)

    def broken_by(self, found: Round) -> str | None:
        """Why the plan does not allow this cohort, or None; remembers the round."""
        turn = (found.round - 1) % self._groups
        strangers = int(np.count_nonzero(found.sampled % self._groups != turn))
        if strangers:
            return f"{strangers} invited clients are not in the round's cyclic group"
        if self._last.size:
            last = self._last[found.sampled]
            early = ((last > 0) & (found.round - last < self._apart)).any()
            self._last[found.sampled] = found.round
            if early:
                return f"a client was invited again within {self._apart} rounds"
        return None


def _checked(body: dict[str, Any], record: RoundRecord, plan: PrivacyPlan, counts: Ids) -> Round:
    """Checks one round's line against its commitments, and updates ``counts``."""
    check_commitments(record, body)
    where = f"round {record.round}"
    sampled = _ids(body["sampled"], plan.population, f"{where}: sampled")
    survivors = _ids(body["survivors"], plan.population, f"{where}: survivors")
    place = np.searchsorted(sampled, survivors)
    if survivors.size and not (
        place[-1] < sampled.size and np.array_equal(sampled[place], survivors)
    ):
        raise LedgerError(f"{where}: a survivor was not sampled")
    if record.outcome == "abort":
        expected = sampled[:0] if record.refunds_server else sampled
        if not np.array_equal(survivors, expected):
            raise LedgerError(f"{where}: its survivors do not fit how it was aborted")
    counts[survivors] += 1
    if body["participations"] != counts[survivors].tolist():
        raise LedgerError(f"{where}: participations are not the sums over the rounds so far")
    return Round(round=record.round, sampled=sampled, survivors=survivors)


def _ids(value: object, population: int, where: str) -> Ids:
    if not isinstance(value, list) or set(map(type, value)) - {int}:
        raise LedgerError(f"{where} is not a list of client numbers")
    try:
        ids = np.array(value, dtype=np.int64)
    except OverflowError:
        raise LedgerError(f"{where} has a client outside the population") from None
    if ids.size and (ids[0] < 0 or ids[-1] >= population or (np.diff(ids) <= 0).any()):
        raise LedgerError(f"{where} is not an increasing list of clients below {population}")
    return ids


def _another_size(found: Round, outcome: str | None, plan: PrivacyPlan) -> str | None:
    """Cohorts of a fixed size have that size, whatever the round's outcome; an aborted buffer may
    hold less."""
    size = round(plan.expected_cohort)
    if plan.sampling == "poisson" or found.sampled.size == size:
        return None
    if plan.sampling == "arrivals":
        if outcome == "abort" and found.sampled.size < size:
            return None
        return f"{found.sampled.size} uploads were summed; every buffer has {size}"
    return f"{found.sampled.size} clients were invited; every cohort has {size}"


def _over_limits(found: Round, record: RoundRecord, plan: PrivacyPlan) -> str | None:
    if record.outcome != "commit":
        return None
    if found.sampled.size > plan.cap:
        return f"{found.sampled.size} clients over the cap {plan.cap}"
    if found.survivors.size < plan.min_survivors:
        return f"{found.survivors.size} survivors, fewer than {plan.min_survivors}"
    return None
