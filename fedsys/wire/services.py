"""Names and limits of the gRPC services; the messages are in ``proto/fleet.proto``."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ENROLLMENT",
    "FLEET",
    "MAX_PARCEL",
    "MAX_PREKEYS",
    "OPERATOR",
    "OPERATOR_SOCKET",
    "PREKEYS",
    "PROTOCOL",
    "PROTOCOL_MIN",
    "method",
]

PROTOCOL: Final = 1
"""Newest protocol that this version speaks."""
PROTOCOL_MIN: Final = 1
"""Oldest that it still speaks."""
ENROLLMENT: Final = "fedsys.v1.Enrollment"
FLEET: Final = "fedsys.v1.Fleet"
OPERATOR: Final = "fedsys.v1.Operator"
PREKEYS: Final = 8
"""Single-use sealing keys of one agent that the coordinator holds when all is well; a round takes
one from each committee member."""
MAX_PREKEYS: Final = 16
"""That it holds of one agent at all."""
MAX_PARCEL: Final = 1 << 32
"""The largest message at all: a model of a billion float32 weights."""
OPERATOR_SOCKET: Final = "operator.sock"
"""In the coordinator's folder."""


def method(service: str, name: str) -> str:
    """Path of an RPC."""
    return f"/{service}/{name}"
