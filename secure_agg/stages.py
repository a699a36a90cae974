"""Where the two machines of a round can stand."""

from __future__ import annotations

import enum

__all__ = ["AggregatorStage", "MemberStage"]


class MemberStage(enum.IntEnum):
    """What a member sent last."""

    IDLE = 0
    UPLOADED = 1
    CHECKED = 2
    ENDORSED = 3
    ANSWERED = 4


class AggregatorStage(enum.IntEnum):
    """Which message the server waits for. Two exchanges with the committee belong to ENDORSE."""

    IDLE = 0
    UPLOAD = 1
    ENDORSE = 2
    ANSWER = 3
    DONE = 4
