"""What holders report of their dealers with their uploads: shares that did not open.

A complaint counts as an absent edge: the holder has no share of that dealer to release. More than
c complaints about one dealer contain an honest one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from secure_agg.errors import MessageError
from secure_agg.messages import take_count, unpack_ids

__all__ = ["Complaints", "accused", "read_complaints"]

Complaints = frozenset[int]
"""Ids of the dealers that one holder complains about."""


def read_complaints(
    body: memoryview, sender: int, dealers: Collection[int]
) -> tuple[list[int], int]:
    """Return the ids complained about at the head of a MASKED message, and where its vector starts.

    Args:
        body: Of the message.
        sender: Whose it is.
        dealers: Those that dealt this member a share.

    Raises:
        MessageError: On a wrong form, or a complaint about anybody else.
    """
    _, end = take_count(body, 0, 2, 4, "complaints")
    found = unpack_ids(body[2:end], "complaints")
    if not set(found).issubset(dealers):
        raise MessageError(f"member {sender} complains about one that dealt it no share")
    return found, end


def accused(complaints: Iterable[Complaints], colluders: int) -> dict[int, int]:
    """How many complain about each dealer that more than ``colluders`` complain about."""
    against = Counter(dealer for each in complaints for dealer in each)
    return {dealer: count for dealer, count in against.items() if count > colluders}
