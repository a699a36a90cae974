"""What must hold in every schedule, watched from outside: the disk's certain bytes and the wire.

1. A sum is exact, or the round is given up.
2. No session, mask, signature or share pair is used twice.
3. Nobody is asked anything before the round's cost is certain to survive a loss of power.
4. A model is handed out only after its commit is certain to survive; a restart goes on from the
   newest committed model.
5. No round number is used twice, and no cohort is drawn again.
6. What a replay of the surviving disk charges is at least what was, or may have been, learnt.
7. The budget of the guaranteed view is never exceeded.
8. Nobody is blamed: every party here is honest.
9. Every job ends, and its end survives.
10. Nothing leaves an agent in a round that a loss of power could make it forget, and no agent takes
    part in more rounds than its owner allows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.privacy import (
    Epsilons,
    PrivacyPlan,
    ViewAccountant,
    event_from_json,
    read_ledger,
    replay,
)
from fedsys.privacy.ledger import LedgerView, read_private
from fedsys.privacy.ledger.lines import Line
from fedsys.privacy.ledger.reader import build_view
from fedsys.wire import Assignment
from secure_agg import SumResult
from secure_agg.messages import HEADER_SIZE, Kind, Release, kind_of, unpack_ids
from server.checkpoint import sha256_of_weights

__all__ = ["Violation", "Witness", "recorded"]

_ONCE = {
    Kind.ADVERT: "joined a session twice",
    Kind.MASKED: "masked two inputs with the same masks",
    Kind.CONSISTENCY: "signed two alive sets",
    Kind.RELEASE: "released twice",
}
_VIEWS = ("outsider", "participant", "server")
_SLACK = 1e-9


class Violation(Exception):
    """A schedule broke an invariant; the message says which and how."""


@dataclass
class _Round:
    """What was seen of one round."""

    assignment: Assignment
    cohort: frozenset[int]
    alive: frozenset[int] | None = None
    unmasked: bool = False


class Witness:
    """Sees every message that leaves a party, lost ones too, and the coordinator's disk.

    Args:
        plan: of the job.
        initial: sha256 of the initial weights.
        most: rounds that an agent's owner allows, where there is a limit.
    """

    def __init__(self, plan: PrivacyPlan, initial: str, most: Mapping[int, int]) -> None:
        self._plan = plan
        self._initial = initial
        self._most = most
        self._spoke: dict[int, set[int]] = {}
        self._rounds: dict[int, _Round] = {}
        self._drawn: set[int] = set()
        self._said: dict[tuple[int, bytes, Kind], bytes] = {}
        self._signed: dict[tuple[int, int], bytes] = {}
        self._mask_keys: dict[bytes, tuple[int, bytes]] = {}
        self._released: dict[tuple[bytes, int], int] = {}
        self._inputs: dict[tuple[int, int], NDArray[Any]] = {}

    # -- the coordinator -------------------------------------------------------------------------

    def drew(self, round: int) -> None:
        """A cohort was drawn."""
        if round in self._drawn:
            raise Violation(f"the cohort of round {round} was drawn twice")
        self._drawn.add(round)

    def asks(
        self,
        assignment: Assignment,
        cohort: Sequence[int],
        message: bytes,
        ledger: bytes | None,
    ) -> None:
        """The coordinator sends a message of secure aggregation.

        Args:
            assignment: of the round.
            cohort: of the round.
            message: about to leave.
            ledger: the certain bytes of the ledger.
        """
        number = assignment.round
        seen = self._rounds.get(number)
        if seen is None:
            self._check_reserved(assignment, ledger)
            seen = self._rounds[number] = _Round(assignment=assignment, cohort=frozenset(cohort))
        if seen.assignment.digest != assignment.digest or seen.cohort != frozenset(cohort):
            raise Violation(f"round {number} was used twice: two cohorts or two models")
        kind = kind_of(message)
        if kind is Kind.ALIVE:
            seen.alive = frozenset(unpack_ids(message[HEADER_SIZE:], "alive set"))
        seen.unmasked |= kind is Kind.UNMASK

    def _check_reserved(self, assignment: Assignment, ledger: bytes | None) -> None:
        number = assignment.round
        view = _view(ledger)
        if view is None or number not in {record.round for record in view.rounds}:
            raise Violation(f"a client was asked to join round {number} without a durable reserve")
        if view.rounds[-1].round != number or view.rounds[-1].outcome is not None:
            raise Violation(f"round {number} opens, but the ledger's newest round is another")
        newest = _committed(view) or self._initial
        if sha256_of_weights(assignment.weights) != newest:
            raise Violation(f"round {number} hands out a model that is not the newest committed")

    def sums(self, round: int, result: SumResult) -> None:
        """The coordinator has a sum."""
        expected = np.zeros_like(result.total)
        for agent in result.included:
            expected += self._inputs[agent, round]
        if not np.array_equal(expected, result.total):
            raise Violation(f"the sum of round {round} is not the sum of {result.included}")

    def blames(self, agent: int, why: str) -> None:
        """The coordinator blames an agent."""
        raise Violation(f"agent {agent}, honest like all, was blamed: {why}")

    def restarted(self, weights: NDArray[np.float32], view: LedgerView | None) -> None:
        """The coordinator goes on after a crash."""
        newest = self._initial if view is None else _committed(view) or self._initial
        if sha256_of_weights(weights) != newest:
            raise Violation("a restarted job does not go on from the newest committed model")

    def survives(self, found: Epsilons) -> None:
        """What the surviving ledger charges, compared with what was, or may have been, learnt."""
        truth = self.learnt()
        for view in _VIEWS:
            real, said = getattr(truth, view), getattr(found, view)
            if real > said * (1 + _SLACK):
                raise Violation(
                    f"epsilon under-counted: the {view} may have learnt {real:.6g}, the surviving "
                    f"ledger says {said:.6g}"
                )
        budget, view = self._plan.budget, self._plan.guarantee
        if budget is not None and getattr(truth, view) > budget * (1 + 1e-6):
            raise Violation(f"the {view}'s budget {budget:g} was exceeded")

    def learnt(self) -> Epsilons:
        """Epsilon of all that was asked: a round that was never unmasked told the server nothing,
        one that was told it the sum of the alive set."""
        accountant = ViewAccountant(self._plan)
        for seen in self._rounds.values():
            event = event_from_json(dict(seen.assignment.mechanism))
            summed = (seen.alive or seen.cohort) if seen.unmasked else frozenset[int]()
            accountant.charge(event, sorted(seen.cohort), sorted(summed))
        return accountant.spent()

    # -- agents ----------------------------------------------------------------------------------

    def provides(self, agent: int, round: int, vector: NDArray[Any]) -> None:
        """An agent hands its vector to be masked; the last one before it uploads counts."""
        self._inputs[agent, round] = vector.copy()

    def says(self, agent: int, round: int, message: bytes, counted: Collection[int]) -> None:
        """An agent sends a message.

        Args:
            agent: which.
            round: it belongs to.
            message: about to leave.
            counted: rounds in this agent's journal that a loss of power cannot take from it.
        """
        if round not in counted:
            raise Violation(f"agent {agent} spoke in round {round} before it was certain to count")
        spoke = self._spoke.setdefault(agent, set())
        spoke.add(round)
        if len(spoke) > self._most.get(agent, len(spoke)):
            raise Violation(f"agent {agent} took part in rounds {sorted(spoke)}: too many")
        kind, session, body = kind_of(message), message[2:HEADER_SIZE], message[HEADER_SIZE:]
        if kind in _ONCE:
            before = self._said.setdefault((agent, session, kind), message)
            if before != message:
                raise Violation(f"agent {agent} {_ONCE[kind]} (round {round})")
        if kind is Kind.ADVERT:
            mine = agent, session
            if self._mask_keys.setdefault(body[32:64], mine) != mine:
                raise Violation(f"agent {agent} used one mask key in two sessions")
        elif kind is Kind.CONSISTENCY:
            if self._signed.setdefault((agent, round), message) != message:
                raise Violation(f"agent {agent} signed two alive sets (round {round})")
        elif kind is Kind.RELEASE:
            self._shares(agent, session, Release.parse(body))

    def _shares(self, agent: int, session: bytes, release: Release) -> None:
        """Shares of a seed, or of a mask key, of one dealer leave its holders: never both."""
        rows = [(dealer, half) for dealer, half, _, _ in release.rows]
        for dealer, half in [(agent, 0), *rows]:
            if self._released.setdefault((session, dealer), half) != half:
                raise Violation(f"both kinds of shares that agent {dealer} dealt were released")


def recorded(ledger: Path, private: Path) -> Epsilons:
    """What a replay of a run's files says was spent."""
    rounds, _torn = read_private(private)
    return replay(read_ledger(ledger, allow_torn=True), rounds)[1]


def _view(ledger: bytes | None) -> LedgerView | None:
    """The ledger of these bytes; None where not even its header is whole."""
    raw = (ledger or b"").split(b"\n")[:-1]
    if not raw:
        return None
    lines = [Line.parse(line, number) for number, line in enumerate(raw, start=1)]
    return build_view(lines, newest_signatures=1)


def _committed(view: LedgerView) -> str | None:
    """The weights of the newest commit, as its line states them."""
    for record in reversed(view.rounds):
        if record.outcome == "commit":
            return str(record.body["weights_sha256"])
    return None
