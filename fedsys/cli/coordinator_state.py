"""``fedsys coordinator backup|restore|move|recover``: state that must not go back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsys.cli.terminal import say

__all__ = ["backup", "move", "recover", "restore"]

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.")]


def backup(
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file; it holds all keys.")],
) -> None:
    """Copy a coordinator into one file, while it runs or not.

    Anyone who has the file is the coordinator. What happens later is not in it: see restore.
    """
    from server.home.backup import back_up
    from server.home.folder import Home

    back_up(Home.open(folder), file)
    say(f"wrote {file}; it holds every key of the coordinator, so keep it secret")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What backup or move wrote.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name or address of the new machine; repeatable.", show_default="as before"
        ),
    ] = None,
) -> None:
    """Unpack a backup; jobs wait until it was compared with what the devices hold.

    A coordinator that was moved goes on at once.
    """
    from server.home.backup import restore as restore_

    why = restore_(file, folder, hosts=host or ())
    say(f"coordinator in {folder}")
    if why:
        say(f"{why}: run it, let the devices connect, then: fedsys coordinator recover {folder}")
    if host:
        say("each device, if its address changed: fedsys agent set-address DIR HOST:PORT")


def move(
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file; it holds all keys.")],
) -> None:
    """Pack a stopped coordinator for another machine; it cannot be run here any more."""
    from server.home.backup import move as move_
    from server.home.folder import Home

    move_(Home.open(folder), file)
    say(f"wrote {file}, and marked {folder} as moved")
    say(f"on the new machine: fedsys coordinator restore {file.name} DIR --host NAME")
    say("on each device, if the address changed: fedsys agent set-address DIR HOST:PORT")


def recover(
    folder: Folder,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it, instead of saying what would be done.")
    ] = False,
) -> None:
    """Put a coordinator that was restored from a backup to work again.

    Revocations and rosters come back from the devices by themselves. Jobs that were not over end,
    and count as having spent all that they promised; so do those that only devices remember.
    """
    from server.home.folder import Home
    from server.home.recovery import recover as recover_
    from server.home.state import State

    home, state = Home.open(folder), State.open(folder)
    try:
        lines = recover_(state, home.registry(state), act=yes)
    finally:
        state.close()
    for line in lines:
        say(line)
    if not lines:
        say("nothing holds this coordinator")
    elif yes:
        say("done: jobs run again")
    else:
        say(
            f"nothing was changed; once all devices were connected: fedsys coordinator recover "
            f"{folder} --yes"
        )
