"""Prints untrusted text: one line at a time, whatever it contains.

Names, reasons and errors come from devices, coordinators and files; they reach a terminal only
through `say`, which lets no control character and no second line through.
"""

from __future__ import annotations

import typer

from fedsys.printable import printable

__all__ = ["say"]

_MOST = 20_000


def say(line: object = "", *, err: bool = False) -> None:
    """Print one line.

    Args:
        line: its text; a line break in it is replaced, because it may be an attacker's.
        err: whether to print to standard error.
    """
    typer.echo(printable(line, _MOST), err=err)
