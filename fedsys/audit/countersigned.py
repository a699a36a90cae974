"""``countersignatures.jsonl``: what agents' own signatures say about the ledger, and what not.

A countersignature signs the hash of the line that concludes a round. That line's place in the chain
covers every line before it, all of which the agent has checked, so the history up to the newest
signed line cannot be rewritten without the agents that signed it. It also states what the agent did
and was sent, by its own count. It says nothing about other clients.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsys.audit.members import KnownMembers, is_deployed
from fedsys.audit.wording import claim
from fedsys.errors import LedgerError
from fedsys.privacy import LedgerView, PrivacyPlan
from fedsys.privacy.ledger.files import open_regular, read_lines
from fedsys.privacy.ledger.openings import NONCE_BYTES
from fedsys.records import Claim
from fedsys.wire.countersign import FILE, MAX_LINE_BYTES, NO_HEAD, Countersignature

__all__ = [
    "AgainstCohorts",
    "Countersigned",
    "Said",
    "countersigned_claims",
    "read_countersignatures",
]

_FILE_BYTES = 1 << 29
_MOST_LINES = 500_000
_VERIFIED = 20_000
"""The most signatures that are verified: those of the newest rounds."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Said:
    """What an agent states about one round, besides the ledger's head.

    Attributes:
        follows: the round of its statement before; 0 for none.
        uploaded: whether it sent a vector.
        nonce: what it sent along.
        invitations: rounds that it accepted so far.
        uploads: rounds in which it sent a vector so far.
    """

    follows: int
    uploaded: bool
    nonce: bytes
    invitations: int
    uploads: int


@dataclass(kw_only=True, slots=True)
class Countersigned:
    """What ``countersignatures.jsonl`` holds.

    Attributes:
        concluded: number of rounds that the ledger commits or aborts.
        members: whose keys count.
        clients: by round, the clients whose countersignatures were verified.
        said: by round and client, what all of them state.
        unverified: number of lines of older rounds, beyond the most that are verified.
        uncounted: by client, committed rounds for which it says that it sent a vector, and
            private.jsonl does not count it: late, or left out of what the server's view costs.
        problem: the first contradiction; None if there is none.
    """

    concluded: int
    members: KnownMembers = field(default_factory=KnownMembers)
    clients: dict[int, list[int]] = field(default_factory=dict)
    said: dict[int, dict[int, Said]] = field(default_factory=dict)
    unverified: int = 0
    uncounted: Counter[int] = field(default_factory=Counter)
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


class AgainstCohorts:
    """Compares what agents state with ``private.jsonl``, round by round, in order.

    Args:
        found: the statements; its `problem` is set to the first contradiction.
        view: the ledger.
        plan: the plan in its header.
    """

    def __init__(self, found: Countersigned, view: LedgerView, plan: PrivacyPlan) -> None:
        self._found = found
        self._lost = [record.round for record in view.rounds if record.outcome is None]
        self._drawn = plan.sampling != "arrivals"
        signers = {client for each in found.said.values() for client in each}
        self._signers = np.array(sorted(signers), dtype=np.int64)
        self._listed: Counter[int] = Counter()
        self._summed: Counter[int] = Counter()

    def note(
        self,
        round: int,
        sampled: Ids,
        survivors: Ids,
        *,
        committed: bool,
        nonces: Mapping[int, bytes] | None,
    ) -> None:
        """Takes one round's lists.

        Args:
            round: the round.
            sampled: its cohort, increasing.
            survivors: whose updates were summed, increasing.
            committed: whether the sum was released.
            nonces: by survivor, those that the coordinator says it mixed in; None if it does not.
        """
        found = self._found
        if found.problem is not None:
            return
        self._listed.update(np.intersect1d(sampled, self._signers).tolist())
        summed = survivors if committed else survivors[:0]
        self._summed.update(np.intersect1d(summed, self._signers).tolist())
        for client, said in found.said.get(round, {}).items():
            wrong = self._wrong(round, client, said, sampled, summed)
            if wrong is None and committed and nonces is not None and _holds(summed, client):
                wrong = _against_nonce(said, nonces.get(client, b""))
            found.uncounted[client] += committed and said.uploaded and not _holds(summed, client)
            if wrong is not None:
                who = found.members.name(client)
                found.problem = f"round {round}: {who} {wrong}"
                return

    def _wrong(self, round: int, client: int, said: Said, sampled: Ids, summed: Ids) -> str | None:
        if not _holds(sampled, client):
            return "countersigned, and private.jsonl does not include it in the cohort"
        if _holds(summed, client) and not said.uploaded:
            return "says that it sent nothing, and private.jsonl counts its update"
        if said.uploads < self._summed[client]:
            return (
                f"says that it sent {said.uploads} updates so far, and private.jsonl counts "
                f"{self._summed[client]}"
            )
        listed = self._listed[client] + bisect.bisect_right(self._lost, round)
        if self._drawn and said.invitations > listed:
            return (
                f"says that it was invited {said.invitations} times so far, and private.jsonl "
                f"lists {listed}"
            )
        return None


def _against_nonce(said: Said, mixed: bytes) -> str | None:
    if said.nonce == mixed:
        return None
    return (
        f"says that it sent the nonce {said.nonce.hex()}, and private.jsonl mixes in "
        f"{mixed.hex() or 'none'}"
    )


def _holds(ids: Ids, client: int) -> bool:
    at = int(np.searchsorted(ids, client))
    return at < ids.size and int(ids[at]) == client


def read_countersignatures(
    run: Path, view: LedgerView, plan: PrivacyPlan, members: KnownMembers | None
) -> Countersigned | None:
    """Reads and checks a run's file; None if it has none. Never raises for its content.

    Args:
        run: the folder.
        view: its verified ledger.
        plan: the plan in its header.
        members: whose keys count; None if the folder does not say.
    """
    path = run / FILE
    if not path.exists() and not path.is_symlink():
        return None
    concluded = sum(record.outcome is not None for record in view.rounds)
    found = Countersigned(concluded=concluded)
    try:
        if members is None or members.problem is not None:
            raise LedgerError("nobody's keys are known: " + _whose(members))
        found.members = members
        job = _job(view.header.get("job"))
        lines = _Checked(view, plan, members)
        for each in _lines(path):
            lines.take(each)
        lines.finish()
        oldest = lines.oldest_verified()
        for each in _lines(path):
            if each.round < oldest:
                found.unverified += 1
            elif not each.holds(job):
                raise LedgerError(f"{lines.whose(each)} is forged")
            else:
                found.clients.setdefault(each.round, []).append(each.client)
        found.said = lines.said
    except LedgerError as error:
        found.problem = str(error)
        found.clients.clear()
    return found


def _whose(members: KnownMembers | None) -> str:
    return "members.json is not here" if members is None else str(members.problem)


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
    """Whether statements are consistent with the ledger and one another, signatures aside."""

    def __init__(self, view: LedgerView, plan: PrivacyPlan, members: KnownMembers) -> None:
        ends = [record for record in view.rounds if record.outcome is not None]
        self._heads = {record.round: record.hash for record in ends}
        self._rounds = {record.hash: record.round for record in ends}
        self._models = {record.round: record.model for record in ends}
        self._earlier = {record.model: record.round for record in reversed(view.rounds)}
        self._arrivals = plan.sampling == "arrivals"
        self._members = members
        self.said: dict[int, dict[int, Said]] = {}

    def whose(self, each: Countersignature) -> str:
        """A line, for people."""
        return f"the countersignature of {self._members.name(each.client)} for round {each.round}"

    def take(self, each: Countersignature) -> None:
        """Takes one line.

        Raises:
            LedgerError: it contradicts the ledger, the roster or an earlier line.
        """
        whose = self.whose(each)
        if each.client not in self._members.keys:
            raise LedgerError(f"{whose} is of no member of the roster")
        if each.key != self._members.keys[each.client]:
            raise LedgerError(f"{whose} is by another key than the roster's: an invented agent")
        if each.terms != self._members.terms:
            raise LedgerError(f"{whose} is for other terms than those in members.json")
        if each.round not in self._heads:
            raise LedgerError(f"{whose} is for a round that the ledger does not conclude")
        if each.ledger_head.hex() != self._heads[each.round]:
            raise LedgerError(
                f"{whose} signs line {each.ledger_head.hex()}, the ledger has "
                f"{self._heads[each.round]}: two histories"
            )
        if each.client in self.said.get(each.round, {}):
            raise LedgerError(f"{whose} appears twice")
        if not self._was_sent(each):
            raise LedgerError(
                f"{whose} says that it was sent the model {each.weights.hex()}; the ledger has "
                f"{self._models[each.round]}"
            )
        if (
            not each.uploaded <= each.uploads <= each.invitations <= each.round
            or not each.invitations
            or (each.nonce != bytes(NONCE_BYTES)) > each.uploaded
        ):
            raise LedgerError(f"{whose} states impossible counts")
        self.said.setdefault(each.round, {})[each.client] = Said(
            follows=self._follows(each, whose),
            uploaded=each.uploaded,
            nonce=each.nonce,
            invitations=each.invitations,
            uploads=each.uploads,
        )

    def _was_sent(self, each: Countersignature) -> bool:
        sent = each.weights.hex()
        if not self._arrivals:
            return sent == self._models[each.round]
        return self._earlier.get(sent, each.round + 1) <= each.round

    def _follows(self, each: Countersignature, whose: str) -> int:
        if each.previous == NO_HEAD:
            return 0
        before = self._rounds.get(each.previous.hex())
        if before is None or before >= each.round:
            raise LedgerError(
                f"{whose} follows one that signs line {each.previous.hex()}, which concludes no "
                f"earlier round here: two histories"
            )
        return before

    def finish(self) -> None:
        """Compares each agent's statements with one another, once all were taken.

        Raises:
            LedgerError: they are not one agent's count of one history.
        """
        newest: dict[int, tuple[int, Said]] = {}
        for round in sorted(self.said):
            for client, said in self.said[round].items():
                last, before = newest.get(client, (0, _NOTHING))
                newest[client] = round, said
                in_order = (
                    said.follows >= last
                    and said.invitations > before.invitations
                    and said.uploads >= before.uploads + said.uploaded
                )
                if not in_order:
                    raise LedgerError(
                        f"round {round}: the countersignature of {self._members.name(client)} does "
                        f"not continue its own for round {last}"
                    )

    def oldest_verified(self) -> int:
        """The round from which on all signatures are verified."""
        left, oldest = _VERIFIED, max(self.said, default=0) + 1
        for round in sorted(self.said, reverse=True):
            left -= len(self.said[round])
            if left < 0:
                break
            oldest = round
        return oldest


_NOTHING = Said(follows=0, uploaded=False, nonce=b"", invitations=0, uploads=0)


def countersigned_claims(found: Countersigned | None, view: LedgerView) -> Iterator[Claim]:
    """What agents vouch for; nothing where a job had no agents to ask."""
    if found is None and not is_deployed(view):
        return
    if found is None:
        yield claim(
            "Countersignatures",
            None,
            claimed="agents countersign the rounds that they were invited to",
            rederived=f"{FILE} is not here",
            by="Ed25519 by each agent",
            rests_on="the coordinator's word",
        )
        return
    words = found.problem or _words(found)
    yield claim(
        "Countersignatures",
        False if found.problem is not None else True if found.clients else None,
        claimed="agents confirm these very lines, what they were sent, and what they did",
        rederived=words,
        by="Ed25519 by each agent over the hash of the line that concludes a round",
        rests_on="the roster's authority, and agents that do not help the coordinator; statements "
        "that were left out of the folder are not missed",
    )


def _words(found: Countersigned) -> str:
    if not found.clients:
        return "there are none"
    sizes = [len(clients) for clients in found.clients.values()]
    words = (
        f"{found.agents} agents on {len(found.clients)} of {found.concluded} concluded rounds, "
        f"{min(sizes)} to {max(sizes)} per round; the newest is round {found.newest}"
    )
    if (late := found.uncounted.total()) > 0:
        client, most = found.uncounted.most_common(1)[0]
        words += (
            f"; {late} vectors that agents sent are in no sum by private.jsonl, {most} of them by "
            f"{found.members.name(client)}: late, or the server's epsilon is understated"
        )
    if found.unverified:
        words += f"; {found.unverified} older ones not verified"
    return words
