"""Who is still in a round, and who was lost at which stage."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

__all__ = ["Attendance"]


class Attendance:
    """Those of a round's members from whom something is expected.

    Whoever leaves does not come back. One that sent something wrong is not heard again, and leaves
    when its stage is closed, as one that sent nothing does.

    >>> there = Attendance()
    >>> there.gather([1, 2, 3])
    >>> there.exclude(2)
    >>> there.waiting(answered={1: b""})
    frozenset({3})
    >>> there.close("reveal", answered={1: b""})
    >>> list(there.expected), there.dropped
    ([1], {'reveal': (2, 3)})

    Attributes:
        expected: Members still in the round, by increasing id.
        out: Those of them that sent something wrong in this stage.
        dropped: Increasing ids that left, by the stage whose message they did not send.
    """

    def __init__(self) -> None:
        self.expected: dict[int, None] = {}
        self.out: set[int] = set()
        self.dropped: dict[str, tuple[int, ...]] = {}

    def gather(self, members: Iterable[int]) -> None:
        """Start with these members, or go on with these alone."""
        self.expected = dict.fromkeys(members)

    def hears(self, member: int) -> bool:
        """Whether a message of this member counts."""
        return member in self.expected and member not in self.out

    def waiting(self, answered: Collection[int]) -> frozenset[int]:
        """Who may still send its message of a stage that so many have answered."""
        return frozenset(m for m in self.expected if m not in answered and m not in self.out)

    def exclude(self, member: int) -> None:
        """A member sent something wrong."""
        self.out.add(member)

    def close(self, stage: str, answered: Collection[int]) -> None:
        """Go on with those that answered a stage."""
        missing = self.expected.keys() - answered
        if missing:
            self.dropped[stage] = tuple(sorted(missing.union(self.dropped.get(stage, ()))))
            self.gather(m for m in self.expected if m in answered)
            self.out.clear()

    def restore(
        self,
        *,
        expected: Iterable[int],
        out: Iterable[int],
        dropped: Mapping[str, tuple[int, ...]],
    ) -> None:
        """Go on from what was written down."""
        self.gather(expected)
        self.out = set(out)
        self.dropped = dict(dropped)
