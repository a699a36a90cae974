"""Reads untrusted TOML, in bounded time and memory.

Python's reader takes time quadratic in the parts of a dotted key, so that a file of half a megabyte
could keep it busy for an hour; a resolved configuration has no such keys.

>>> parse_toml(b"[job]\\nseed = 1\\n")
{'job': {'seed': 1}}
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

__all__ = ["MAX_BYTES", "parse_toml", "read_toml"]

MAX_BYTES = 1 << 18
_MOST_DOTS = 200
"""The most dots in one line, which a dotted key cannot cross."""
_MOST_STEPS = 4_000_000
"""The most steps of Python's reader in all keys together: for each part of a key it walks over all
the parts of that key and of its table's name. That is a quarter of a second; a configuration takes
a thousandth of it."""


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file, of which no more is read than is allowed.

    Raises:
        OSError: it cannot be read.
        ValueError: as for `parse_toml`.
    """
    with path.open("rb") as file:
        return parse_toml(file.read(MAX_BYTES + 1))


def parse_toml(content: bytes) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        ValueError: it is too large, too deep, not UTF-8 or not TOML, or has an integer that TOML
            does not (64 bits).
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 10} KiB")
    _check_keys(content)
    try:
        found = tomllib.loads(content.decode("utf-8"))
        _check_integers(found)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    return found


def _check_keys(content: bytes) -> None:
    table = steps = 0
    for line in content.split(b"\n"):
        dots = line.count(b".")
        if dots > _MOST_DOTS:
            raise ValueError(f"a line with more than {_MOST_DOTS} dots is not a configuration's")
        if line.lstrip().startswith(b"["):
            table = dots
        steps += dots * (dots + table)
    if steps > _MOST_STEPS:
        raise ValueError("its dotted keys would take too long to read")


def _check_integers(value: Any) -> None:
    if isinstance(value, dict):
        for each in value.values():
            _check_integers(each)
    elif isinstance(value, list):
        for each in value:
            _check_integers(each)
    elif type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError("an integer of more than 64 bits")
