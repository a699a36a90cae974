"""What a coordinator reads from a refusal: its cause, and the owner's reason, if given."""

from __future__ import annotations

from fedsys.errors import Cause
from fedsys.printable import printable
from fedsys.wire import fleet_pb2

__all__ = ["cause_of", "reason_of"]

_MOST = 500
_NAMES = {each.number: each.name for each in fleet_pb2.Refusal.Cause.DESCRIPTOR.values}


def cause_of(refusal: fleet_pb2.Refusal) -> Cause:
    """The kind of a refusal; UNSPECIFIED for a cause that this version does not know."""
    return Cause[_NAMES.get(refusal.cause, "UNSPECIFIED")]


def reason_of(refusal: fleet_pb2.Refusal) -> str:
    """One line for the operator, without control characters."""
    return printable(refusal.reason, _MOST) or cause_of(refusal).value
