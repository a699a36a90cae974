"""Who of a job's members has agreed to its terms, who has declined, and whether that will do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedsys.wire import fleet_pb2
from server.deployed.fleet import Devices, Link
from server.deployed.preparation import PreparedJob

__all__ = ["Consent", "Shortfall"]

_MOST_NAMES = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class Shortfall:
    """That too few of a job's devices agreed and are connected.

    Attributes:
        nodes: the job's devices.
        needed: how many of them it needs.
        declined: sessions that are open and in which its terms were declined; in another one they
            may be agreed to.
    """

    nodes: frozenset[int]
    needed: int
    declined: frozenset[Link]

    def met(self, links: Mapping[int, Link]) -> bool:
        """Whether enough are connected that have not declined.

        Args:
            links: the open sessions by node.
        """
        there = {links[node] for node in self.nodes & links.keys()}
        return len(there - self.declined) >= self.needed


class Consent:
    """Offers of one job and their answers. A restart asks again: what agents know, they repeat.

    Args:
        prepared: the job.
        fleet: the sessions.
        prekeys: how many sealing keys of a node are held, for the offer.
        blamed: why, for each client that was caught cheating in an earlier round.
        serves: whether rounds could succeed if these clients were there, and no others.
        names: of the nodes.

    Attributes:
        given: clients that agreed.
        declined: reasons by client, those that were caught cheating included.
    """

    def __init__(
        self,
        prepared: PreparedJob,
        fleet: Devices,
        *,
        prekeys: Callable[[int], int],
        blamed: Mapping[int, str],
        serves: Callable[[frozenset[int]], bool],
        names: Mapping[int, str],
    ) -> None:
        self._names = names
        self.given: set[int] = set()
        self.declined = dict(blamed)
        self._blamed = set(blamed)
        self._prekeys = prekeys
        self._terms = prepared.terms
        self._nodes = prepared.roster.nodes
        self._serves = serves
        self._fleet = fleet
        self._sessions: dict[int, Link] = {}

    def offer(self, node: int) -> None:
        """Send a node the terms; nothing happens where it is not connected."""
        if node in self._fleet.links:
            offer = fleet_pb2.Offer(terms=self._terms.encoded, prekeys=self._prekeys(node))
            self._fleet.send(node, fleet_pb2.Down(offer=offer))

    def offer_all(self) -> None:
        """The same for every member."""
        for node in self._nodes:
            self.offer(node)

    def agree(self, client: int, consent: fleet_pb2.Consent, link: Link | None) -> None:
        """A client agreed; counted if it means these terms and was never caught cheating.

        Args:
            client: who.
            consent: what it said.
            link: the session in which it said so; None for the one that is open now.
        """
        terms = (self._terms.job, self._terms.digest)
        if (consent.job, consent.terms) == terms and client not in self._blamed:
            self.given.add(client)
            self.declined.pop(client, None)
            session = link or self._fleet.links.get(self._nodes[client])
            if session is not None:
                self._sessions[client] = session

    def decline(self, client: int, reason: str) -> None:
        """A client declined, or takes its consent back."""
        self.declined[client] = reason
        self.given.discard(client)

    def exclude(self, client: int, reason: str) -> None:
        """Leave a client that was caught cheating out of the rest of the job."""
        self._blamed.add(client)
        self.decline(client, reason)

    @property
    def listening(self) -> frozenset[int]:
        """Clients that agreed in the session that is open now, or whose host repeats the offer.

        Another process of theirs, which was not offered the job yet, does not know of it.
        """
        return frozenset(client for client in self.given if self._listens(client))

    def _listens(self, client: int) -> bool:
        link = self._fleet.links.get(self._nodes[client])
        if link is None:
            return False
        return link.repeats_offers or link is self._sessions.get(client)

    @property
    def undecided(self) -> bool:
        """Whether an agent that is connected has not answered the offer yet."""
        answered = self.given | self.declined.keys()
        return any(
            node in self._fleet.links and client not in answered
            for client, node in enumerate(self._nodes)
        )

    def enough(self, *, at_best: bool) -> bool:
        """Whether those that agreed and listen will do.

        Args:
            at_best: count those who have not answered yet as if they agreed.
        """
        if at_best:
            return self._serves(frozenset(range(len(self._nodes))) - self.declined.keys())
        return self._serves(self.listening)

    @property
    def needed(self) -> int:
        """How many agents must have agreed and be connected; more than there are if no number will
        do."""
        low, high = 0, len(self._nodes) + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._serves(frozenset(range(middle))):
                high = middle
            else:
                low = middle
        return high

    @property
    def lacking(self) -> int:
        """How many more must agree and connect."""
        return max(0, self.needed - len(self.listening))

    @property
    def shortfall(self) -> Shortfall:
        """By what the job is short now."""
        there = self._fleet.links
        declined = {self._nodes[client] for client in self.declined}
        return Shortfall(
            nodes=frozenset(self._nodes),
            needed=self.needed,
            declined=frozenset(there[node] for node in declined & there.keys()),
        )

    def standing(self) -> str:
        """Who is there and who is away, by name."""
        away = [
            self._name(client)
            for client, node in enumerate(self._nodes)
            if node not in self._fleet.links and client not in self.declined
        ]
        gone = f" ({_names(away)} away)" if away else ""
        refuse = f", {len(self.declined)} refuse" if self.declined else ""
        there = len(self._nodes) - len(away) - len(self.declined)
        return f"{there} of {len(self._nodes)} connected{gone}{refuse}, needs {self.needed}"

    def refusals(self) -> str:
        """All refusals, those with one reason together, by name."""
        by_reason: dict[str, list[str]] = {}
        for client, reason in sorted(self.declined.items()):
            by_reason.setdefault(reason, []).append(self._name(client))
        return "; ".join(f"{_names(names)}: {reason}" for reason, names in by_reason.items())

    def shortage(self, waited: str) -> str:
        """Why the job cannot go on, for its operator.

        Args:
            waited: how long, or nothing.
        """
        reasons = self.refusals()
        return f"{self.standing()}: too few agreed and are connected{waited}" + (
            f". Refused: {reasons}" if reasons else ""
        )

    def _name(self, client: int) -> str:
        node = self._nodes[client]
        return self._names.get(node, f"node {node}")


def _names(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
