"""What must hold in every schedule, watched from outside: the disk's certain bytes and the wire.

1. A sum is exact, or the round is given up. Every upload that was taken in time is in it, whatever
   became of its sender afterwards.
2. No agent uploads two vectors in a round, endorses two sets, or answers twice; what it did is
   certain to survive a loss of power before it says so.
3. No two sums of a round are opened: one set is proposed, and one certified.
4. A sealing key serves one session, and the coordinator names it in one. Who lost power in a
   session has nothing more to say in it.
5. Nobody is asked anything before the round's cost is certain to survive a loss of power, nor
   before its consent to these terms has reached the coordinator's process.
6. A model is handed out, and an outcome told, only after the commit is certain to survive; a
   restart goes on from the newest committed model.
7. No round number is used twice, and no cohort is drawn again.
8. What a replay of the surviving disk charges is at least what was, or may have been, learnt.
9. The budget of the guaranteed view is never exceeded.
10. Nobody is blamed but those who cheat, and who was blamed for good is asked for nothing more.
11. A round is given up only where too few uploads, or too few of its committee, came in time; who
    is not on the committee is asked for one message and cannot cost it anything afterwards.
12. Every job ends, and its end survives. A job that is cancelled begins no further round.
13. Nothing leaves an agent in a round that a loss of power could make it forget, and no agent takes
    part in more rounds than its owner allows.
14. What an agent refused is counted in the database when the job is over.
15. What agents countersigned agrees with the run that is left, as an audit compares the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from fedsys.audit.cohorts import Cohorts
from fedsys.audit.countersigned import read_countersignatures
from fedsys.audit.members import known_members
from fedsys.errors import Cause
from fedsys.privacy import (
    Epsilons,
    PrivacyPlan,
    ViewAccountant,
    event_from_json,
    plan_of,
    read_ledger,
    replay,
)
from fedsys.privacy.ledger import LedgerView, read_private
from fedsys.privacy.ledger.lines import Line
from fedsys.privacy.ledger.reader import build_view
from fedsys.wire import Assignment, fleet_pb2
from secure_agg import SecAggParams
from secure_agg.messages import HEADER_SIZE, Kind, Opening, kind_of
from server.checkpoint import sha256_of_weights
from server.coordinator import OpenRound
from server.home.state import RefusalRow
from server.rounds import SecureRound
from simulations.deterministic.agent import AgentParty

__all__ = ["Violation", "Witness", "countersigned", "recorded"]

_TWICE = {
    Kind.UPLOAD: "uploaded two vectors",
    Kind.CHECKED: "checked the shares twice",
    Kind.ENDORSEMENT: "endorsed two sets",
    Kind.ANSWER: "answered for two sums",
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
    committee: frozenset[int] = frozenset()
    proposal: bytes | None = None
    proposed: frozenset[int] = frozenset()
    certified: bool = False
    taken: dict[Kind, set[int]] = field(default_factory=dict)


class Witness:
    """Sees every message that leaves a party, lost ones too, and all disks.

    Args:
        plan: of the job.
        initial: sha256 of the initial weights.
        most: rounds that an agent's owner allows, where there is a limit.
        cheats: agents that may be blamed.

    Attributes:
        broken: the first invariant that broke; the code that raised it may have been caught on the
        way. numbers: of the rounds whose sums the coordinator opened.
    """

    def __init__(
        self,
        plan: PrivacyPlan,
        initial: str,
        most: Mapping[int, int],
        cheats: frozenset[int] = frozenset(),
    ) -> None:
        self.broken: Violation | None = None
        self.numbers: MutableMapping[SecureRound, int] = WeakKeyDictionary()
        self._plan = plan
        self._cheats = cheats
        self._opened: dict[int, OpenRound] = {}
        self._consents: dict[int, bytes] = {}
        self._refused: Counter[tuple[int, str]] = Counter()
        self._guilty: dict[int, int] = {}
        self._last: int | None = None
        self._sealed: dict[bytes, bytes] = {}
        self._stopping = False
        self._initial = initial
        self._most = most
        self._spoke: dict[int, set[int]] = {}
        self._rounds: dict[int, _Round] = {}
        self._drawn: set[int] = set()
        self._parameters: dict[int, SecAggParams] = {}
        self._said: dict[tuple[int, int, Kind], bytes] = {}
        self._named: dict[tuple[bytes, int], bytes] = {}
        self._served: dict[bytes, bytes] = {}
        self._lives: dict[int, int] = {}
        self._entered: dict[tuple[int, bytes], int] = {}
        self._provided: dict[int, NDArray[Any]] = {}
        self._inputs: dict[tuple[int, int], NDArray[Any]] = {}

    def broke(self, what: str) -> Violation:
        """Note that an invariant broke, for the caller to raise."""
        violation = Violation(what)
        self.broken = self.broken or violation
        return violation

    # -- the coordinator -------------------------------------------------------------------------

    def begins(self) -> None:
        """A process of the coordinator's starts: it has heard nobody yet."""
        self._consents.clear()
        self._refused.clear()
        self._stopping = False

    def stops(self) -> None:
        """The operator stops the coordinator's process: it gives up the round in hand."""
        self._stopping = True

    def cancelled(self) -> None:
        """That the job is cancelled is durable: the round in hand is its last."""
        self._last = max(self._drawn, default=0) + 1

    def drew(self, round: int) -> None:
        """A cohort was drawn."""
        if round in self._drawn:
            raise self.broke(f"the cohort of round {round} was drawn twice")
        self._drawn.add(round)

    def hears(self, agent: int, message: fleet_pb2.Up) -> None:
        """A message of an agent reaches the coordinator's process."""
        if message.HasField("consent"):
            self._consents[agent] = message.consent.terms

    def declines(self, agent: int, cause: Cause) -> None:
        """The coordinator takes an agent's refusal of the job, or of the round in hand."""
        self._refused[agent, cause.name] += 1

    def leaves(self, agent: int, message: fleet_pb2.Down, ledger: bytes | None) -> None:
        """The coordinator sends a message.

        Args:
            agent: to whom.
            message: about to leave.
            ledger: the certain bytes of the ledger.
        """
        kind = message.WhichOneof("content")
        if kind in ("stage", "invitation"):
            stage = message.stage if kind == "stage" else message.invitation.stage
            self._asks(self._opened[stage.round], agent, stage.message, ledger)
        elif kind == "outcome" and message.outcome.committed:
            number, view = message.outcome.round, _view(ledger)
            records = {} if view is None else {each.round: each for each in view.rounds}
            if number not in records or records[number].outcome != "commit":
                raise self.broke(f"the outcome of round {number} was told before its commit")

    def _asks(self, open_: OpenRound, agent: int, message: bytes, ledger: bytes | None) -> None:
        assignment, cohort, number = open_.assignment, open_.cohort, open_.number
        seen = self._rounds.get(number)
        if seen is None:
            self._check_reserved(assignment, ledger)
            seen = self._rounds[number] = _Round(assignment=assignment, cohort=frozenset(cohort))
        if seen.assignment.digest != assignment.digest or seen.cohort != frozenset(cohort):
            raise self.broke(f"round {number} was used twice: two cohorts or two models")
        self._check_wanted(agent, assignment)
        kind, session, body = kind_of(message), message[2:HEADER_SIZE], message[HEADER_SIZE:]
        if kind is Kind.OPENING:
            self._opens(seen, session, Opening.parse(body))
        elif agent not in seen.committee:
            raise self.broke(f"agent {agent} is asked for more than its upload in round {number}")
        if kind is Kind.PROPOSAL:
            self._proposes(seen, body)
        seen.certified |= kind is Kind.CERTIFICATE

    def _check_wanted(self, agent: int, assignment: Assignment) -> None:
        number = assignment.round
        if agent not in self._rounds[number].cohort:
            raise self.broke(f"agent {agent} is asked in round {number}, which has not drawn it")
        if self._consents.get(agent) != assignment.terms:
            raise self.broke(f"agent {agent} is asked in round {number} without its consent")
        if self._guilty.get(agent, number) < number:
            raise self.broke(f"agent {agent} was caught cheating and is asked in round {number}")
        if self._last is not None and number > self._last:
            raise self.broke(f"round {number} of a job that is cancelled")

    def _proposes(self, seen: _Round, body: bytes) -> None:
        if seen.proposal not in (None, body):
            raise self.broke(f"two sets were proposed in round {seen.assignment.round}")
        seen.proposal = body
        seen.proposed = frozenset(seen.taken.get(Kind.UPLOAD, ()))

    def _opens(self, seen: _Round, session: bytes, opening: Opening) -> None:
        seen.committee = frozenset(opening.committee)
        for member, prekey in zip(opening.committee, opening.prekeys, strict=True):
            self._named[session, member] = prekey
            if prekey:
                self._names(member, prekey, session)

    def _names(self, member: int, prekey: bytes, session: bytes) -> None:
        if self._sealed.setdefault(prekey, session) != session:
            raise self.broke(f"a sealing key of agent {member} was named in two sessions")

    def _check_reserved(self, assignment: Assignment, ledger: bytes | None) -> None:
        number = assignment.round
        view = _view(ledger)
        if view is None or number not in {record.round for record in view.rounds}:
            raise self.broke(f"a client was asked to join round {number} without a durable reserve")
        if view.rounds[-1].round != number or view.rounds[-1].outcome is not None:
            raise self.broke(f"round {number} opens, but the ledger's newest round is another")
        newest = _committed(view) or self._initial
        if sha256_of_weights(assignment.weights) != newest:
            raise self.broke(f"round {number} hands out a model that is not the newest committed")

    def opened(self, open_: OpenRound, params: SecAggParams) -> None:
        """The coordinator begins a round with these parameters."""
        self._opened[open_.number] = open_
        self._parameters[open_.number] = params

    def took(self, round: int, agent: int, kind: Kind) -> None:
        """The coordinator took a message in time."""
        self._rounds[round].taken.setdefault(kind, set()).add(agent)

    def sums(self, round: int, total: NDArray[Any], included: Sequence[int]) -> None:
        """The coordinator has a sum."""
        expected = np.zeros_like(total)
        for agent in included:
            expected += self._inputs[agent, round].astype(expected.dtype)
        expected &= expected.dtype.type(2 ** self._parameters[round].modulus_bits - 1)
        if not np.array_equal(expected, total):
            raise self.broke(f"the sum of round {round} is not the sum of {included}")
        missing = self._rounds[round].taken.get(Kind.UPLOAD, set()) - set(included)
        if missing:
            raise self.broke(
                f"uploads of {sorted(missing)} were taken in round {round}, not summed"
            )

    def gives_up(self, round: int, why: str) -> None:
        """The coordinator gives a round up."""
        seen, params = self._rounds.get(round), self._parameters.get(round)
        if seen is None or params is None or self._stopping:
            return  # no such cohort is served, or too few have a sealing key
        came = {kind: len(agents) for kind, agents in seen.taken.items()}
        if came.get(Kind.UPLOAD, 0) < max(params.min_included, self._plan.min_survivors):
            return
        needed = {
            Kind.CHECKED: params.needed,
            Kind.ENDORSEMENT: params.quorum,
            Kind.ANSWER: params.threshold,
        }
        if any(came.get(kind, 0) < least for kind, least in needed.items()):
            return
        raise self.broke(f"round {round} was given up ({why}) though {came} came in time")

    def blames(self, blamed: Mapping[int, str]) -> None:
        """The coordinator blames agents."""
        for agent, why in blamed.items():
            if agent not in self._cheats:
                raise self.broke(f"agent {agent}, which is honest, was blamed: {why}")

    def remembers_blame(self, agent: int, round: int) -> None:
        """That an agent was caught cheating is durable."""
        self._guilty.setdefault(agent, round)

    def refusals_are(self, rows: Sequence[RefusalRow]) -> None:
        """What the database counts when the job is over."""
        counted = {(row.node - 1, row.cause): row.count for row in rows}
        for (agent, cause), count in self._refused.items():
            if counted.get((agent, cause), 0) < count:
                raise self.broke(
                    f"agent {agent} refused {count} times ({cause}), and "
                    f"{counted.get((agent, cause), 0)} are counted"
                )

    def restarted(self, weights: NDArray[np.float32], view: LedgerView | None) -> None:
        """The coordinator goes on after a crash."""
        newest = self._initial if view is None else _committed(view) or self._initial
        if sha256_of_weights(weights) != newest:
            raise self.broke("a restarted job does not go on from the newest committed model")

    def survives(self, found: Epsilons) -> None:
        """What the surviving ledger charges, compared with what was, or may have been, learnt."""
        truth = self.learnt()
        for view in _VIEWS:
            real, said = getattr(truth, view), getattr(found, view)
            if real > said * (1 + _SLACK):
                raise self.broke(
                    f"epsilon under-counted: the {view} may have learnt {real:.6g}, the surviving "
                    f"ledger says {said:.6g}"
                )
        budget, view = self._plan.budget, self._plan.guarantee
        if budget is not None and getattr(truth, view) > budget * (1 + 1e-6):
            raise self.broke(f"the {view}'s budget {budget:g} was exceeded")

    def learnt(self) -> Epsilons:
        """Epsilon of all that was asked: a round without a certificate told the server nothing, one
        with a certificate the sum of the proposed set."""
        accountant = ViewAccountant(self._plan)
        for seen in self._rounds.values():
            event = event_from_json(dict(seen.assignment.mechanism))
            summed = seen.proposed if seen.certified else frozenset[int]()
            accountant.charge(event, sorted(seen.cohort), sorted(summed))
        return accountant.spent()

    # -- agents ----------------------------------------------------------------------------------

    def lost_power(self, agent: int) -> None:
        """An agent's machine loses what it had in memory."""
        self._lives[agent] = self._lives.get(agent, 0) + 1

    def provides(self, agent: int, vector: NDArray[Any]) -> None:
        """An agent hands its vector to be encrypted; the last one before it uploads counts."""
        self._provided[agent] = vector.copy()

    def says(self, party: AgentParty, round: int, message: bytes) -> None:
        """An agent sends a message of secure aggregation.

        Args:
            party: which.
            round: it belongs to.
            message: about to leave.
        """
        agent, (joined, uploaded) = party.id, party.counted
        kind, session = kind_of(message), message[2:HEADER_SIZE]
        if round not in joined or (kind is Kind.UPLOAD and round not in uploaded):
            raise self.broke(f"agent {agent} spoke in round {round} before it was certain to count")
        spoke = self._spoke.setdefault(agent, set())
        spoke.add(round)
        if len(spoke) > self._most.get(agent, len(spoke)):
            raise self.broke(f"agent {agent} took part in rounds {sorted(spoke)}: too many")
        if self._said.setdefault((agent, round, kind), message) != message:
            raise self.broke(f"agent {agent} {_TWICE[kind]} (round {round})")
        life = self._lives.get(agent, 0)
        if self._entered.setdefault((agent, session), life) != life:
            raise self.broke(f"agent {agent} goes on with round {round} after it lost power")
        self._check_marked(party, round, kind, session)
        if kind is not Kind.UPLOAD:
            key = self._named[session, agent]
            if self._served.setdefault(key, session) != session:
                raise self.broke(
                    f"agent {agent} opened shares of two sessions with one sealing key"
                )
        if kind is Kind.UPLOAD and (agent, round) not in self._inputs:
            self._inputs[agent, round] = self._provided[agent]

    def _check_marked(self, party: AgentParty, round: int, kind: Kind, session: bytes) -> None:
        marks = [mark for mark in party.marks.jobs.values() if mark.session == session]
        marked = {
            Kind.UPLOAD: any(mark.uploads for mark in marks),
            Kind.CHECKED: bool(marks),
            Kind.ENDORSEMENT: any(mark.endorsed for mark in marks),
            Kind.ANSWER: any(mark.answered for mark in marks),
        }
        if not marked[kind]:
            raise self.broke(
                f"agent {party.id} sent its {kind.name} of round {round} before the mark of it was "
                f"certain"
            )


def countersigned(run: Path, view: LedgerView) -> str | None:
    """What contradicts what the agents of a finished run countersigned; None if nothing does."""
    plan = plan_of(view.header)
    found = read_countersignatures(run, view, plan, known_members(run, view, plan))
    if found is None:
        return None
    cohorts = Cohorts(run / "private.jsonl", view, plan, found)
    cohorts.finish()
    return next(iter(cohorts.problems), found.problem)


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
