"""Greetings that show this coordinator to be older than its devices; both hosts pass them here."""

from __future__ import annotations

import logging

from fedsys.errors import ProtocolError
from fedsys.wire import fleet_pb2
from fedsys.wire.roster import SignedStatement
from server.deployed.fleet import Link
from server.home.enrollment import Registry

__all__ = ["compare_greeting", "take_back"]

_log = logging.getLogger(__name__)


def compare_greeting(registry: Registry, link: Link, hello: fleet_pb2.Hello) -> None:
    """Compare what a device holds with what is known here, and ask it for lists that were lost."""
    after = registry.continuity.greeted(link.node, hello)
    if after is not None:
        _ask(link, after)


def take_back(registry: Registry, link: Link, news: fleet_pb2.RosterNews) -> None:
    """Take back lists that a device was asked for; the rest, if any, is asked for next.

    Lists that do not follow those held here are left: what they contradict is for the operator.

    Raises:
        ProtocolError: it was not asked.
    """
    if not link.rosters:
        raise ProtocolError("lists that nobody asked for")
    link.rosters = False
    taken = 0
    for each in news.roster:
        signed = SignedStatement(statement=each.statement, signature=each.signature)
        try:
            statement = registry.take_back(signed)
        except ProtocolError as error:
            _log.error("lists of node %d are not taken back: %s", link.node, error)
            return
        if statement is not None:
            taken += 1
            _log.warning(
                "roster version %d was lost here, and came back from node %d",
                statement.version,
                link.node,
            )
    if taken:
        _ask(link, registry.roster_version())


def _ask(link: Link, after: int) -> None:
    link.rosters = True
    link.send(fleet_pb2.Down(roster_wanted=fleet_pb2.RosterWanted(after=after)))
