"""The signed lists of members that a device accepts, keeps, and sends to a coordinator that has
lost them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from client.identity import Credentials
from fedsys.errors import ProtocolError
from fedsys.wire import fleet_pb2
from fedsys.wire.limits import MAX_NEWER, MOST_ROSTERS
from fedsys.wire.roster import RosterStatement, SignedStatement, changes
from fedsys.wire.roster_chain import RosterChain
from fedsys.wire.terms import Terms

__all__ = ["list_of", "lists_after", "take_news"]

_log = logging.getLogger(__name__)


def take_news(
    credentials: Credentials, chain: RosterChain, news: Iterable[fleet_pb2.SignedRoster]
) -> tuple[RosterChain, ProtocolError | None]:
    """Accept further lists, each the signed successor of the one before, and make them durable. A
    device that holds none begins with the first that comes.

    Args:
        credentials: of the device that keeps them.
        chain: the lists that it holds.
        news: what the coordinator sent, oldest first.

    Returns:
        The lists that it holds now, and why the rest of the news is refused, if it is.

    Raises:
        OSError: they could not be written; none is accepted.
    """
    before = chain.newest
    refused: ProtocolError | None = None
    longer = chain.copy()
    accepted: list[tuple[SignedStatement, RosterStatement]] = []
    for each in news:
        signed = SignedStatement(statement=each.statement, signature=each.signature)
        try:
            statement = longer.accept(signed)
        except ProtocolError as error:
            refused = error
            break
        if statement is not None:
            accepted.append((signed, statement))
    if not accepted:
        return chain, refused
    # Durable before use: a restart must not return to an older list.
    credentials.append_roster((signed for signed, _ in accepted), begins=before is None)
    for _, statement in accepted:
        _log.info("roster: %s", changes(before, statement))
        before = statement
    return longer, refused


def list_of(chain: RosterChain, terms: Terms) -> RosterStatement | None:
    """Those who take part in an agreed job; None if its list was never announced."""
    found = chain.find(terms.roster_version)
    return None if found is None else found.only(terms.members)


def lists_after(credentials: Credentials, version: int) -> fleet_pb2.Up:
    """The lists that follow a version, for a coordinator that has lost them: as many as fit 4 MiB
    and a message, but at least one.

    Raises:
        FedsysError: the file that keeps them is lost or was changed.
    """
    held = credentials.rosters()
    first = RosterStatement.decode(held[0].statement).version if held else 1
    found, size = fleet_pb2.RosterNews(), 0
    for signed in held[max(0, version + 1 - first) :][:MOST_ROSTERS]:
        roster = fleet_pb2.SignedRoster(statement=signed.statement, signature=signed.signature)
        size += roster.ByteSize()
        if found.roster and size > MAX_NEWER:
            break
        found.roster.append(roster)
    return fleet_pb2.Up(roster=found)
