"""The content of Flower's messages: the same `Down` and `Up` as over gRPC, in one record.

A Flower node is a stateless relay: it may handle every message in a separate process. So each
message is answered by exactly one, both carry a list of serialised `Down` or `Up`, and whatever an
invitation needs comes with it, except the model, which the node keeps for the round.

Flower's node ids say nothing about who answers. The first exchange is therefore a challenge: the
device signs it, together with the Flower node's id, with its roster identity.
"""

from __future__ import annotations

__all__ = ["CHALLENGE", "DOWN", "NODE", "PROOF", "QUERY", "RECORD", "UP", "hello_message"]

QUERY = "fedsys"
"""Name of the query: messages are of type ``query.fedsys``."""
RECORD = "fedsys"
"""Name of the one record in a message's content, and in the node's state."""
CHALLENGE = "challenge"
"""32 bytes from the coordinator, in its first message to a node."""
DOWN = "down"
"""Serialised `Down`, in order."""
NODE = "node"
"""The device's node number, next to its proof."""
PROOF = "proof"
"""Ed25519 signature over `hello_message`."""
UP = "up"
"""Serialised `Up`, in order."""

_DOMAIN = b"fedsys flower hello v1\x00"


def hello_message(challenge: bytes, flower_node: int) -> bytes:
    """What a device signs to prove its identity behind a Flower node.

    >>> len(hello_message(bytes(32), 2**64 - 1))
    63
    """
    return _DOMAIN + challenge + flower_node.to_bytes(8, "big")
