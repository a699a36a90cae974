"""Log lines of long-running processes: text or JSON, to standard error; never a secret."""

from __future__ import annotations

import json
import logging
import sys

from fedsys.errors import ConfigError

__all__ = ["configure", "readable"]


def readable(text: str, most: int = 500) -> str:
    """What another party wrote, fit for a log or a terminal: one line, no control characters.

    >>> readable("paused\\n\\x1b[2J")
    'paused??[2J'
    """
    return "".join(each if each.isprintable() else "?" for each in text[:most])


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        body = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return json.dumps(body)


def configure(kind: str) -> None:
    """Send our loggers' lines to standard error.

    Raises:
        ConfigError: an unknown kind.
    """
    if kind not in ("text", "json"):
        raise ConfigError(f"--log {kind}: allowed are text and json")
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(_Json() if kind == "json" else text)
    for name in ("fedsys", "server", "client", "secure_agg"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]
        logger.propagate = False
