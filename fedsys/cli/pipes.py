"""Refuses named pipes among a command's arguments: opening one waits until somebody writes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING

from typer.core import TyperGroup

from fedsys.errors import ConfigError

if TYPE_CHECKING:
    import click

__all__ = ["WithoutPipes", "refuse_pipes"]


class WithoutPipes(TyperGroup):
    """A group of commands that refuses named pipes before any of them sees its arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments of a command line."""
        refuse_pipes(args)
        return super().parse_args(ctx, args)


def refuse_pipes(arguments: Iterable[str]) -> None:
    """Refuse arguments, and values after an equals sign, that name a pipe.

    The shell's own pipes, ``<(command)`` or ``/dev/stdin``, have no name in any folder, and their
    writer is running.

    Raises:
        ConfigError: One names a pipe.
    """
    for argument in arguments:
        for path in (argument, argument.partition("=")[2]):
            try:
                named = stat.S_ISFIFO(os.stat(path).st_mode) and os.path.exists(
                    os.path.realpath(path)
                )
            except (OSError, ValueError):  # no path at all
                continue
            if named:
                raise ConfigError(
                    f"{path}: is a named pipe, and reading it would wait for somebody to write; "
                    f"give a file or a folder"
                )
