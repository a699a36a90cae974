"""Makes untrusted text safe for a log, a terminal or a page: the one place that does it.

A control character can move a terminal's cursor, clear the screen or end a line, so that what
follows looks like a line of ours; a direction-changing one makes text read as something else.

>>> printable("paused\\n\\x1b[2Jerror: forged")
'paused��[2Jerror: forged'
"""

from __future__ import annotations

import unicodedata

__all__ = ["MAX_TEXT", "printable", "printable_lines"]

MAX_TEXT = 400
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(value: object, limit: int = MAX_TEXT) -> str:
    """One bounded line of text without control, direction-changing or invisible characters.

    Args:
        value: the value whose text is shown.
        limit: the most characters; a longer text ends in an ellipsis.
    """
    text = str(value)
    shown = text[:limit]
    if not shown.isprintable():  # a fast check that is stricter than the categories
        shown = "".join(
            _REPLACEMENT if unicodedata.category(char) in _UNPRINTABLE else char for char in shown
        )
    return shown + "…" if len(text) > limit else shown


def printable_lines(text: str, *, indent: str) -> str:
    """Several lines of ours, such as a traceback, that may quote untrusted text; every line is
    indented, so that none looks like a line of a log."""
    return "\n".join(indent + printable(line, 10_000) for line in text.splitlines())
