"""Log lines: text or JSON, one line a record."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from fedsys.errors import ConfigError
from fedsys.logs import configure, readable


@pytest.fixture(autouse=True)
def _quiet_afterwards() -> Iterator[None]:
    yield
    for name in ("fedsys", "server", "client", "secure_agg"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True


def test_json_lines_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    logging.getLogger("server.x").warning("node %d: two\nlines", 7)
    line = capsys.readouterr().err
    body = json.loads(line)
    assert line.count("\n") == 1
    assert (body["level"], body["logger"]) == ("warning", "server.x")
    assert body["message"] == "node 7: two\nlines"


def test_text_lines_name_their_logger(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text")
    logging.getLogger("client.y").info("connected")
    assert "INFO    client.y: connected" in capsys.readouterr().err


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="text and json"):
        configure("xml")


def test_what_others_wrote_cannot_forge_lines() -> None:
    assert readable("a\nERROR server: b\x1b[31m\u202e") == "a?ERROR server: b?[31m?"
    assert readable("Zürich") == "Zürich"
    assert len(readable("x" * 1000)) == 500
