"""Text of an audit: bounded, printable, and one way of writing each kind of value."""

from __future__ import annotations

import math

from fedsys.printable import printable
from fedsys.records import Claim

__all__ = ["claim", "epsilon_text", "plain", "value_text"]

_LONGEST = 300


def plain(value: object, limit: int = _LONGEST) -> str:
    """One bounded line without control, direction-changing or invisible characters.

    >>> plain("ledger" + chr(27) + "[31m" + chr(0x202E) + "txt")
    'ledger\\ufffd[31m\\ufffdtxt'
    """
    return printable(value, limit)


def value_text(value: object) -> str:
    """A number, name or missing value from an untrusted file, as a claim shows it.

    >>> value_text(0.30000000000000004), value_text(None), value_text(True), value_text("x")
    ('0.3', 'nothing', 'true', 'x')
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else f"about 2^{value.bit_length()}"
    return plain(value, 80)


def epsilon_text(epsilon: object) -> str:
    """An epsilon to five digits.

    >>> epsilon_text(5.3712345), epsilon_text(math.inf), epsilon_text(None)
    ('5.3712', 'infinite', 'nothing')
    """
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)):
        return value_text(epsilon)
    try:
        return "infinite" if epsilon == math.inf else f"{float(epsilon):.5g}"
    except OverflowError:
        return value_text(epsilon)


def claim(
    name: str,
    holds: bool | None,
    *,
    claimed: object,
    rederived: object,
    by: str,
    rests_on: str = "the folder alone",
) -> Claim:
    """A claim whose text is safe to print, wherever it came from."""
    return Claim(
        name=plain(name),
        claimed=plain(claimed),
        rederived=plain(rederived),
        by=plain(by),
        rests_on=plain(rests_on),
        holds=holds,
    )
