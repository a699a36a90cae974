"""The signed lists as they travel: in messages of a few MiB, whatever a device has missed."""

from __future__ import annotations

from fedsys.wire import fleet_pb2
from fedsys.wire.limits import MOST_ROSTERS
from server.home.enrollment import Registry

__all__ = ["roster_news"]

_MOST = 4 << 20


def roster_news(
    registry: Registry, node: int, after: int, *, most: int | None = None
) -> list[list[fleet_pb2.SignedRoster]]:
    """What a device lacks, oldest first, in parts that each fit a message.

    Args:
        registry: has them.
        node: the device's.
        after: version that it holds; 0 for none.
        most: bytes of a part, by default 4 MiB; a list that is larger has a part to itself.

    Returns:
        at least one part, which may be empty.
    """
    parts: list[list[fleet_pb2.SignedRoster]] = [[]]
    size, most = 0, _MOST if most is None else most
    for each in registry.rosters.news(node, after):
        signed = fleet_pb2.SignedRoster(statement=each.statement, signature=each.signature)
        if size and (size + signed.ByteSize() > most or len(parts[-1]) == MOST_ROSTERS):
            parts.append([])
            size = 0
        parts[-1].append(signed)
        size += signed.ByteSize()
    return parts
