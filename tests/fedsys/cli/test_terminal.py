"""What reaches a terminal through a command is one line for one line, no matter who wrote it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fedsys.cli
from fedsys.cli import main, terminal
from fedsys.errors import ConfigError

HOSTILE = "a\nerror: forged\x1b[2J\x00\u202e\x9b31m\r\u2028end"


def test_a_line_stays_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(HOSTILE)
    terminal.say(f"refused: {HOSTILE}", err=True)
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert text.count("\n") == 1
        assert text.rstrip("\n").isprintable()


def test_an_error_stays_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_settings: object) -> None:
        raise ConfigError(HOSTILE)

    monkeypatch.setattr("fedsys.cli.app.app", fails)
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.rstrip("\n").isprintable()


def test_commands_print_through_one_place() -> None:
    """Anything else is a document whose writer escapes what is in it: JSON."""
    echo = ("typer.echo", "click.echo")
    others = [
        f"{path.name}: {ast.unparse(node)}"
        for path in sorted(Path(fedsys.cli.__file__).parent.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in echo
    ]
    allowed = (
        "dumps(",
        "to_json(",
        "summary.json",
        "of {of} rounds are equal",
        "printable(line",
        "terminal.py: ",
    )
    assert [each for each in others if not any(part in each for part in allowed)] == []
