"""``fedsys coordinator sign-roster``: for the roster's authority, on its own machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsys.cli.deployment import unwritable
from fedsys.cli.terminal import say

if TYPE_CHECKING:
    from fedsys.wire.roster import RosterStatement

__all__ = ["sign_roster"]

_MOST_BYTES = 128 << 20
"""More than a roster of a million members takes; what is longer is cut off, and then no list."""


def sign_roster(
    key: Annotated[Path, typer.Argument(help="The authority's key file; created if missing.")],
    statement: Annotated[
        Path | None,
        typer.Argument(help="The list that the operator proposed.", show_default="none"),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="If KEY's record of signed lists is lost: the list that it signed last, or none.",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show what would be signed, but sign nothing.")
    ] = False,
) -> None:
    """For the roster's authority, on its own machine: create a key, or sign a proposed list.

    What was signed is recorded next to the key; a second list with the same version is refused.
    """
    from fedsys.errors import ConfigError
    from fedsys.wire.roster import RosterStatement
    from fedsys.wire.roster_authority import RosterAuthority, write_signed

    try:
        with RosterAuthority.opened(key, after=after) as authority:
            if statement is None:
                say(authority.public_key.hex())
                return
            try:
                with statement.open("rb") as file:
                    found = RosterStatement.decode(file.read(_MOST_BYTES))
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise ConfigError(
                    f"{statement}: {reason}; give the file that `fedsys coordinator roster "
                    f"--propose` wrote"
                ) from None
            before = authority.newest
            authority.check(found)
            for line in _changes(before, found):
                say(line)
            if show:
                say("nothing was signed")
                return
            signed = authority.sign(found)
    except OSError as error:
        raise unwritable("key", key, error) from None
    target = statement.with_suffix(".signed")
    try:
        write_signed(target, signed)
    except OSError as error:
        raise unwritable("the signed list", target, error) from None
    say(f"signed in {target}")


def _changes(before: RosterStatement | None, after: RosterStatement) -> list[str]:
    """The list as the authority must see it: who is added, removed or stays, each by its key."""
    from fedsys.wire.roster import fingerprint

    old, new = (dict(before.members) if before is not None else {}), dict(after.members)
    same = before is not None and before.colluders == after.colluders
    base = "the first list" if before is None else f"after version {before.version}"
    lines = [
        f"version {after.version}, {base}: {len(new)} members, each with its key's fingerprint",
        f"of which {after.colluders} may collude with the coordinator"
        + ("" if before is None or same else f" (before: {before.colluders})"),
    ]
    for node in sorted(old.keys() | new.keys()):
        sign = " " if node in old and node in new else "+" if node in new else "-"
        lines.append(f"{sign} node {node:<8d} {fingerprint(new.get(node) or old[node])}")
    if old == new:
        lines.append("no member is added or removed")
    return lines
