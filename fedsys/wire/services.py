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
"""Oldest protocol that it still speaks."""
ENROLLMENT: Final = "fedsys.v1.Enrollment"
FLEET: Final = "fedsys.v1.Fleet"
OPERATOR: Final = "fedsys.v1.Operator"
PREKEYS: Final = 8
"""Single-use sealing keys that the coordinator normally holds from one agent; a round takes one
from each committee member."""
MAX_PREKEYS: Final = 16
"""The most sealing keys that it holds from one agent."""
MAX_PARCEL: Final = 1 << 32
"""Bytes of the largest message of any kind: a model of a billion float32 weights."""
OPERATOR_SOCKET: Final = "operator.sock"
"""Name of the socket in the coordinator's folder."""


def method(service: str, name: str) -> str:
    """Path of an RPC."""
    return f"/{service}/{name}"
