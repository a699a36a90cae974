"""``private.jsonl`` against the ledger's salted commitments, one line at a time.

Lines are reduced to two integer arrays each as they are read, so that a large private file costs
no more memory than its ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from fedsys.audit.evidence import open_bounded
from fedsys.errors import LedgerError
from fedsys.privacy import PrivacyPlan
from fedsys.privacy.ledger.lines import parse_object
from fedsys.privacy.ledger.reader import LedgerView, RoundRecord, check_commitments, read_lines

__all__ = ["Cohorts", "Round", "read_cohorts", "unlikely"]

_PRIVATE_BYTES = 1 << 30
_MOST_PROBLEMS = 3
_UNLIKELY = 1e-9

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Who was asked in one round and whose update was summed; increasing ids."""

    sampled: Ids
    survivors: Ids


@dataclass(kw_only=True, slots=True)
class Cohorts:
    """What ``private.jsonl`` proves.

    Attributes:
        rounds: by number; only rounds whose outcome the ledger holds.
        problems: ways in which the file is not what the ledger committed to.
        broken: limits of the plan that a round did not keep.
        most_participations: of any client.
    """

    rounds: dict[int, Round] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    most_participations: int = 0

    def as_private(self) -> Mapping[int, Mapping[str, Any]]:
        """The form in which rounds are charged."""
        return {
            number: {"sampled": line.sampled, "survivors": line.survivors}
            for number, line in self.rounds.items()
        }


def read_cohorts(path: Path, ledger: LedgerView, plan: PrivacyPlan) -> Cohorts:
    """Reads and checks ``private.jsonl``; never raises for its content.

    Args:
        path: of the file.
        ledger: verified.
        plan: of its header.
    """
    cohorts = Cohorts()
    records = {record.round: record for record in ledger.rounds}
    counts = np.zeros(plan.population, dtype=np.int64)
    separation = _Separation(plan)
    last = 0
    try:
        with open_bounded(path, _PRIVATE_BYTES) as file:
            for number, (raw, ended) in enumerate(read_lines(file, path.name), start=1):
                if not ended:
                    if ledger.closed is not None:
                        raise LedgerError(f"{path.name} ends in an unfinished line")
                    break
                where = f"{path.name} line {number}"
                body = parse_object(raw, where)
                last = _number(body, last, where)
                record = records.get(last)
                if record is None:
                    raise LedgerError(f"{where} is of round {last}, which the ledger lacks")
                if record.outcome is not None:
                    cohorts.rounds[last] = _checked(body, record, plan, counts)
                    _check_limits(cohorts, record, plan)
                    if not separation.kept(last, cohorts.rounds[last].sampled):
                        cohorts.broken.append(
                            f"round {last}: a client was asked again within "
                            f"{plan.min_separation} rounds"
                        )
    except LedgerError as error:
        cohorts.problems.append(str(error))
        return cohorts
    missing = [n for n, r in records.items() if r.outcome is not None and n not in cohorts.rounds]
    if missing:
        cohorts.problems.append(f"{path.name} lacks round {missing[0]} ({len(missing)} in all)")
    cohorts.most_participations = int(counts.max())
    most = plan.max_participations
    if most is not None and cohorts.most_participations > most:
        cohorts.broken.append(
            f"a client took part in {cohorts.most_participations} rounds, over the limit {most}"
        )
    return cohorts


def unlikely(cohorts: Cohorts, plan: PrivacyPlan) -> str | None:
    """Why these cohorts were hardly drawn by Poisson sampling; None if they may have been.

    Two tests that honest sampling fails with a probability of at most 2e-9 together: the number of
    all who were asked is Binomial(N R, q) over R rounds, whatever became of them; and no two
    cohorts are the same, which they are by chance with probability (q^2 + (1 - q)^2)^N a pair.
    """
    rounds = list(cohorts.rounds.values())
    asked = sum(line.sampled.size for line in rounds)
    draws = plan.population * len(rounds)
    tail = min(binom.cdf(asked, draws, plan.rate), binom.sf(asked - 1, draws, plan.rate))
    if 2 * float(tail) < _UNLIKELY:
        return f"{asked} were asked in {len(rounds)} rounds, {draws * plan.rate:.0f} expected"
    distinct = {line.sampled.tobytes() for line in rounds}
    pairs = len(rounds) * (len(rounds) - 1) / 2
    chance = pairs * ((plan.rate**2 + (1 - plan.rate) ** 2) ** plan.population)
    if len(distinct) < len(rounds) and chance < _UNLIKELY:
        return "two rounds have the same cohort: one was used again"
    return None


class _Separation:
    """When each client was asked last, where rounds between two turns are promised."""

    def __init__(self, plan: PrivacyPlan) -> None:
        apart = plan.min_separation if plan.sampling == "min-separation" else None
        self._apart = apart or 0
        self._last = np.full(plan.population if apart else 0, -self._apart, dtype=np.int64)

    def kept(self, round: int, sampled: Ids) -> bool:
        """Whether nobody is asked too early; notes the round."""
        if not self._apart:
            return True
        kept = not (round - self._last[sampled] < self._apart).any()
        self._last[sampled] = round
        return kept


def _number(body: dict[str, Any], last: int, where: str) -> int:
    number = body.get("round")
    if type(number) is not int:
        raise LedgerError(f"{where} has no round number")
    if number <= last:
        raise LedgerError(f"{where} is of round {number} after round {last}: lines were moved")
    return number


def _checked(
    body: dict[str, Any], record: RoundRecord, plan: PrivacyPlan, counts: NDArray[np.int64]
) -> Round:
    """One round's line, as committed to and in order; ``counts`` is brought up to date."""
    check_commitments(record, body)
    where = f"round {record.round}"
    sampled = _ids(body["sampled"], plan.population, f"{where}: sampled")
    survivors = _ids(body["survivors"], plan.population, f"{where}: survivors")
    if np.setdiff1d(survivors, sampled, assume_unique=True).size:
        raise LedgerError(f"{where}: a survivor was not sampled")
    if record.outcome == "abort":
        expected = sampled[:0] if record.refunds_server else sampled
        if not np.array_equal(survivors, expected):
            raise LedgerError(f"{where}: its survivors do not fit how it was aborted")
    counts[survivors] += 1
    if body["participations"] != counts[survivors].tolist():
        raise LedgerError(f"{where}: participations are not what the rounds before it add up to")
    return Round(sampled=sampled, survivors=survivors)


def _ids(value: object, population: int, where: str) -> Ids:
    if not isinstance(value, list) or any(type(client) is not int for client in value):
        raise LedgerError(f"{where} is not a list of client numbers")
    try:
        ids = np.array(value, dtype=np.int64)
    except OverflowError:
        raise LedgerError(f"{where} has a client outside the population") from None
    if ids.size and (ids[0] < 0 or ids[-1] >= population or (np.diff(ids) <= 0).any()):
        raise LedgerError(f"{where} is not an increasing list of clients below {population}")
    return ids


def _check_limits(cohorts: Cohorts, record: RoundRecord, plan: PrivacyPlan) -> None:
    if record.outcome != "commit" or len(cohorts.broken) >= _MOST_PROBLEMS:
        return
    line = cohorts.rounds[record.round]
    if line.sampled.size > plan.cap:
        cohorts.broken.append(
            f"round {record.round}: {line.sampled.size} clients over the cap {plan.cap}"
        )
    if line.survivors.size < plan.min_survivors:
        cohorts.broken.append(
            f"round {record.round}: {line.survivors.size} survivors, fewer than "
            f"{plan.min_survivors}"
        )
