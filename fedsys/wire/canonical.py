"""One text for one value: what is signed or hashed is encoded here and read back strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from fedsys.errors import ProtocolError

__all__ = ["decode_object", "encode_object"]


def encode_object(value: Mapping[str, Any]) -> bytes:
    """Sorted keys, no blanks, no NaN; floats in the shortest form that reads back equal."""
    return json.dumps(dict(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode_object(data: bytes, what: str, keys: frozenset[str]) -> dict[str, Any]:
    """The object that `encode_object` wrote, with exactly these keys.

    Raises:
        ProtocolError: it is anything else, another spelling of the same value included.
    """

    def refuse(_text: str) -> NoReturn:
        raise ValueError("a number that is not finite")

    try:
        value = json.loads(data, parse_constant=refuse)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        if encode_object(value) != data:
            raise ValueError("not in canonical form")
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{what}: {error}") from None
    if value.keys() != keys:
        wrong = ", ".join(sorted(value.keys() ^ keys))
        raise ProtocolError(f"{what}: missing or unknown keys: {wrong}")
    return value
