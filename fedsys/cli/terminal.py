"""Prints untrusted text: one line at a time, whatever it contains.

Names, reasons and errors come from devices, coordinators and files; they reach a terminal only
through `say`, which lets no control character and no second line through.
"""

from __future__ import annotations

import sys

import typer

from fedsys.printable import printable

__all__ = ["document", "say"]

_MOST = 20_000


def say(line: object = "", *, err: bool = False) -> None:
    """Print one line.

    Args:
        line: its text; a line break in it is replaced, because it may be an attacker's.
        err: whether to print to standard error.
    """
    typer.echo(printable(line, _MOST), err=err)


def document(text: str) -> None:
    """Write a whole document to standard output: as it is to a file or a pipe, whose reader wants
    every character, and as printable lines to a terminal.

    Args:
        text: its lines, each with its line break.
    """
    if sys.stdout.isatty():
        for line in text.splitlines():
            say(line)
    else:
        typer.echo(text, nl=False)
