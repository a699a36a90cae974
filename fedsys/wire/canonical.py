"""Canonical JSON, one text per value: what is signed or hashed is encoded and read strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any, NoReturn

from fedsys.errors import ProtocolError

__all__ = ["decode_object", "encode_object"]

_LARGEST = 2**63


def encode_object(value: Mapping[str, Any]) -> bytes:
    """Sorted keys, no spaces, no NaN; floats in the shortest form that reads back equal."""
    return json.dumps(dict(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode_object(
    data: bytes, what: str, keys: frozenset[str], *, optional: Set[str] = frozenset()
) -> dict[str, Any]:
    """The object that `encode_object` wrote, with exactly these keys, and maybe optional ones.

    Every number in it, at any depth, is a finite float or an integer of at most 64 bits, so that no
    later conversion of a number can fail.

    Raises:
        ProtocolError: it is anything else, including another spelling of the same value.
    """

    def refuse(_text: str) -> NoReturn:
        raise ValueError("a number that is not finite")

    def bounded(text: str) -> int:
        if len(text) > 20 or not -_LARGEST <= int(text) < _LARGEST:
            raise ValueError(f"an integer outside 64 bits: {text[:24]}")
        return int(text)

    try:
        value = json.loads(data, parse_constant=refuse, parse_int=bounded)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        if encode_object(value) != data:
            raise ValueError("not in canonical form")
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{what}: {error}") from None
    if value.keys() - optional != keys:
        wrong = ", ".join(sorted((value.keys() - optional) ^ keys))
        raise ProtocolError(f"{what}: missing or unknown keys: {wrong}")
    return value
