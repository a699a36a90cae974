"""How large a message of each kind may be, and what is checked before one is parsed.

Both ends decide by a message's first byte, which gives its kind, before they hold any of it; and
they scan a list's entries before creating an object for each. So a message that would cost the
receiver more than the sender is refused while it still costs nothing.

>>> from fedsys.wire import fleet_pb2
>>> kind_of_up(fleet_pb2.Up(refusal=fleet_pb2.Refusal()).SerializeToString())
'refusal'
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fedsys.errors import ProtocolError
from fedsys.wire import fleet_pb2
from fedsys.wire.services import MAX_PREKEYS
from secure_agg.messages import largest_from_server
from secure_agg.params import MAX_COHORT
from secure_agg.prekeys import PREKEY_SIZE

__all__ = [
    "MAX_LINES",
    "MAX_NEWER",
    "MAX_SMALL",
    "MOST_ROSTERS",
    "check_down",
    "check_up",
    "down_limits",
    "kind_of_down",
    "kind_of_up",
    "up_limits",
]

MAX_SMALL: Final = 64 << 10
"""Largest answer outside an open round: it may have come too late."""
MAX_LINES: Final = 2 << 20
"""Bytes of a ledger's lines in one message, of which a single one may have 1 MiB."""
_ENVELOPE: Final = 4096
_MAX_REFUSAL: Final = 4 << 10
_MAX_OFFER: Final = 1 << 20
_MAX_ROSTERS: Final = 96 << 20
"""Room for the largest list, of a million members; a coordinator splits several lists into messages
of a few MiB."""
_LEAST_ROSTER: Final = 100
"""Bytes of a signed list without members, or of a change that changes nothing; no entry can be
shorter."""
MOST_ROSTERS: Final = 10_000
"""Signed lists in one message."""
_MAX_ASSIGNMENT: Final = 1 << 20
MAX_NEWER: Final = 4 << 20
"""Bytes of lists that an agent sends at once to a coordinator that has lost them, unless one alone
is larger."""
_MAX_PREKEYS: Final = MAX_PREKEYS * (4 + max(PREKEY_SIZE.values()))
_WITH_PREKEYS: Final = ("hello", "consent", "countersignature", "prekeys")

_UP = {each.number: each.name for each in fleet_pb2.Up.DESCRIPTOR.fields}
_DOWN = {each.number: each.name for each in fleet_pb2.Down.DESCRIPTOR.fields}
_ROSTER_FIELD = {"welcome": 2, "roster": 1}
_UP_ROSTER_FIELD: Final = 1


def kind_of_up(message: bytes) -> str:
    """The kind of a serialised `Up`, or of its beginning."""
    return _UP.get(message[0] >> 3, "unknown") if message else "unknown"


def kind_of_down(message: bytes) -> str:
    """The kind of a serialised `Down`, or of its beginning."""
    return _DOWN.get(message[0] >> 3, "unknown") if message else "unknown"


def up_limits(answer: int = 0, *, rosters: bool = False) -> Mapping[str, int]:
    """The most bytes that a coordinator accepts from an agent, by kind of message.

    Args:
        answer: size of the largest answer in the agent's open round; 0 where it is in none.
        rosters: whether the agent was asked for signed lists that the coordinator has lost.
    """
    limits = dict.fromkeys(_WITH_PREKEYS, _ENVELOPE + _MAX_PREKEYS)
    return MappingProxyType(
        limits
        | ({"roster": _MAX_ROSTERS} if rosters else {})
        | {
            "refusal": _MAX_REFUSAL,
            "trained": _MAX_REFUSAL,
            "answer": max(answer, MAX_SMALL),
        },
    )


def down_limits(*, dimension: int = 0, cap: int = 0) -> Mapping[str, int]:
    """The most bytes that an agent accepts from its coordinator, by kind of message.

    Args:
        dimension: weights of the largest model among the jobs that it agreed to; 0 for no job.
        cap: members of the largest cohort that it agreed to.
    """
    message = largest_from_server(min(cap, MAX_COHORT))
    return MappingProxyType(
        {
            "welcome": _MAX_ROSTERS,
            "roster": _MAX_ROSTERS,
            "offer": _MAX_OFFER,
            "model": _ENVELOPE + 4 * dimension,
            "invitation": _MAX_ASSIGNMENT + message,
            "stage": _ENVELOPE + message,
            "begin": _ENVELOPE,
            "collect": _ENVELOPE,
            "discard": _ENVELOPE,
            "lines": _ENVELOPE + MAX_LINES,
            "outcome": _ENVELOPE,
            "goodbye": _ENVELOPE,
            "roster_wanted": _ENVELOPE,
            "notice": _ENVELOPE,
        }
    )


def check_up(message: bytes, limits: Mapping[str, int]) -> str:
    """Checks that an agent's message may be parsed, and returns its kind.

    Raises:
        ProtocolError: it is too large, not exactly one content of a known kind, or its roster
            entries are malformed.
    """
    kind = _check("an agent's message", kind_of_up(message), message, limits)
    if kind == "roster":
        _check_entries(message, _UP_ROSTER_FIELD)
    return kind


def check_down(message: bytes, limits: Mapping[str, int]) -> str:
    """Checks that a coordinator's message may be parsed, and returns its kind.

    Raises:
        ProtocolError: it is too large, not exactly one content of a known kind, or its roster
            entries are malformed.
    """
    kind = _check("a coordinator's message", kind_of_down(message), message, limits)
    if kind in _ROSTER_FIELD:
        _check_entries(message, _ROSTER_FIELD[kind])
    return kind


def _check(what: str, kind: str, message: bytes, limits: Mapping[str, int]) -> str:
    if kind not in limits:
        raise ProtocolError(f"{what} of a kind that this version does not know")
    if len(message) > limits[kind]:
        raise ProtocolError(
            f"{what}: {kind} of {len(message)} bytes: at most {limits[kind]} are accepted"
        )
    begins, size = _varint(message, 1)
    if message[0] & 7 != 2 or begins + size != len(message):
        raise ProtocolError(f"{what}: {kind} is not its only content")
    return kind


def _check_entries(message: bytes, field: int) -> None:
    """Scan a message's lists before parsing, which makes each an object of some 200 bytes."""
    at, count = _varint(message, 1)[0], 0
    while at < len(message):
        number, wire = message[at] >> 3, message[at] & 7
        at, value = _varint(message, at + 1)
        count += 1
        if count > MOST_ROSTERS:
            raise ProtocolError(f"more than {MOST_ROSTERS} rosters at once")
        if wire == 2:
            at += value
            if number != field or value < _LEAST_ROSTER:
                raise ProtocolError(f"a roster of {value} bytes, which cannot be one")
        elif wire != 0:
            raise ProtocolError("news of rosters with something else in it")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Where a varint ends, and its value."""
    value = shift = 0
    for index in range(at, min(at + 10, len(message))):
        byte = message[index]
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return index + 1, value
        shift += 7
    raise ProtocolError("a message that is cut off")
