"""Log lines of long-running processes: text or JSON, to standard error; never a secret.

Many lines quote what devices and coordinators write. The formatters here, and nothing before them,
make that safe for a terminal: a record is one line without control characters; a traceback follows
it indented, so that none of its lines looks like a record.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from fedsys.errors import ConfigError
from fedsys.printable import printable, printable_lines

__all__ = ["configure", "configure_unless_hosted"]

_MOST = 10_000
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record), _MOST)

    def formatException(self, ei: Any) -> str:
        return printable_lines(super().formatException(ei), indent="    ")

    def formatStack(self, stack_info: str) -> str:
        return printable_lines(super().formatStack(stack_info), indent="    ")


class _Json(_Text):
    def format(self, record: logging.LogRecord) -> str:
        body = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage(), _MOST),
        }
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return json.dumps(body)


def configure(kind: str) -> None:
    """Send our loggers' lines to standard error.

    Args:
        kind: ``text`` or ``json``.

    Raises:
        ConfigError: `kind` is neither.
    """
    if kind not in ("text", "json"):
        raise ConfigError(f"--log {kind}: allowed are text and json")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if kind == "json" else _Text(_FORMAT))
    for name in ("fedsys", "server", "client", "secure_agg"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]
        logger.propagate = False


def configure_unless_hosted() -> None:
    """`configure` as text, in a process whose host has set up no logging: otherwise Python would
    print untrusted text as it is."""
    if not logging.getLogger().handlers:
        configure("text")
