"""Where the two machines of a round can stand."""

from __future__ import annotations

import enum

__all__ = ["AggregatorStage", "ParticipantStage"]


class ParticipantStage(enum.Enum):
    """What a participant sent last."""

    IDLE = 0
    ADVERTISED = 1
    REVEALED = 2
    SHARED = 3
    MASKED = 4
    SIGNED = 5
    RELEASED = 6


class AggregatorStage(enum.IntEnum):
    """Which message the server waits for."""

    IDLE = 0
    ADVERTISE = 1
    REVEAL = 2
    SHARE_KEYS = 3
    MASKED_INPUT = 4
    CONSISTENCY = 5
    UNMASK = 6
    DONE = 7
