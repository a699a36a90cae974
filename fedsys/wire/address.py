"""Parses ``HOST:PORT``, for a port to listen on or to connect to."""

from __future__ import annotations

import re

from fedsys.errors import ConfigError

__all__ = ["host_and_port"]

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.%]+\]")


def host_and_port(text: str, what: str, *, least: int = 1) -> tuple[str, int]:
    """Both parts; an IPv6 address loses its brackets.

    Args:
        text: ``HOST:PORT``, with an IPv6 address in brackets.
        what: the option or argument, for the message.
        least: the smallest port; 0 where the system may choose it.

    Raises:
        ConfigError: it is not such an address.

    >>> host_and_port("[::1]:7443", "--listen")
    ('::1', 7443)
    """
    host, colon, port = text.rpartition(":")
    if not colon or _HOST.fullmatch(host) is None:
        raise ConfigError(f"{what} {text}: expected HOST:PORT, e.g. localhost:7443 or [::1]:7443")
    if not (port.isascii() and port.isdecimal() and least <= int(port[:6]) <= 65_535):
        raise ConfigError(f"{what} {text}: the port is a number from {least} to 65535")
    return host.strip("[]"), int(port)
