"""Reading TOML that somebody else wrote, in bounded time and memory.

Python's reader takes time quadratic in the parts of a dotted key, so that a file of half a megabyte
could keep it busy for an hour; a resolved configuration has nothing of the kind.

>>> parse_toml(b"[job]\\nseed = 1\\n")
{'job': {'seed': 1}}
"""

from __future__ import annotations

import tomllib
from typing import Any

__all__ = ["MAX_BYTES", "parse_toml"]

MAX_BYTES = 1 << 18
_MOST_DOTS = 200
"""In one line: a dotted key does not go over its end."""


def parse_toml(content: bytes) -> dict[str, Any]:
    """The tables of a file.

    Raises:
        ValueError: it is too large, too deep, not UTF-8 or not TOML.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 10} KiB")
    if any(line.count(b".") > _MOST_DOTS for line in content.split(b"\n")):
        raise ValueError(f"a line with more than {_MOST_DOTS} dots is no configuration's")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
