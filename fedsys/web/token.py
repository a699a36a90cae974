"""The token of a page: 256 bits of the operating system's randomness."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fedsys.errors import ConfigError
from fedsys.secret_files import read_secret, write_secret

__all__ = ["kept_token", "new_token"]

_BYTES = 32


def new_token(entropy: Callable[[int], bytes] = os.urandom) -> str:
    """A token of 64 hexadecimal digits.

    Args:
        entropy: the operating system's randomness, replaced in tests.
    """
    return entropy(_BYTES).hex()


def kept_token(path: Path) -> str:
    """The token in a file that only its owner can read; made on first use.

    Raises:
        ConfigError: the file holds none, or others can read it.
    """
    if not os.path.lexists(path):
        write_secret(path, new_token().encode() + b"\n")
    text = read_secret(path, most=1000).decode("ascii", "replace").strip()
    if len(text) != 2 * _BYTES or not all(digit in "0123456789abcdef" for digit in text):
        raise ConfigError(f"{path}: not a token; delete it, and another one is made")
    return text
