"""Log lines: text or JSON, one line a record."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from fedsys.errors import ConfigError
from fedsys.logs import configure, configure_unless_hosted
from fedsys.printable import printable


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
    assert body["message"] == "node 7: two�lines"


def test_text_lines_name_their_logger(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text")
    logging.getLogger("client.y").info("connected")
    assert "INFO    client.y: connected" in capsys.readouterr().err


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="text and json"):
        configure("xml")


HOSTILE = "a\n2026-01-01 00:00:00,000 ERROR   server: forged\x1b[2J\x00\u202e\x9b31m\r\u2028\x85end"


@pytest.mark.parametrize("kind", ["text", "json"])
def test_what_others_wrote_forges_no_line_and_moves_no_cursor(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(kind)
    logger = logging.getLogger("server.x")
    logger.warning("node 7 declines: %s", HOSTILE)
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert text.rstrip("\n").isprintable()
    if kind == "json":
        assert json.loads(text)["message"].isprintable()
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("failed: %s", HOSTILE)
    record, *trace = capsys.readouterr().err.rstrip("\n").split("\n")
    assert record.isprintable()
    assert all(line.isprintable() and line.startswith("    ") for line in trace)


def test_text_that_people_write_is_left_alone() -> None:
    assert printable("Zürich 東京 €") == "Zürich 東京 €"
    assert printable(HOSTILE).isprintable()
    assert len(printable("x" * 1000)) == 401


def test_a_host_that_has_no_log_gets_ours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    configure_unless_hosted()  # pytest has one
    assert not logging.getLogger("client").handlers
    monkeypatch.setattr(root, "handlers", [])
    configure_unless_hosted()
    logging.getLogger("client.session").warning("%s", HOSTILE)
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert text.rstrip("\n").isprintable()
