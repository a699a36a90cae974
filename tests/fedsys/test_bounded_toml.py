"""TOML from elsewhere: read in bounded time, or refused for what would take long."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedsys.bounded_toml import MAX_BYTES, parse_toml
from fedsys.config import dump, load, recipes
from fedsys.errors import ConfigError
from server.deployed.queue import submit
from server.home.state import State

DEEP = b".".join([b"a"] * 199)
UNDER_A_TABLE = b"[" + DEEP + b"]\n" + b"".join(DEEP + b".k%d=1\n" % n for n in range(600))


def test_every_resolved_recipe_is_read() -> None:
    for name in recipes():
        text = dump(load(name))
        assert parse_toml(text.encode()) == tomllib.loads(text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"x" * (MAX_BYTES + 1), "larger than 256 KiB"),
        (b"\xff", "not UTF-8"),
        (b"x = " + b"[" * 10_000, "too deep"),
        (b".".join([b"a"] * 202) + b"=1", "more than 200 dots"),
        (UNDER_A_TABLE, "too long to read"),
        (b"".join(DEEP + b".k%d=1\n" % n for n in range(600)), "too long to read"),
        (b"x=[" + b",".join(b"{" + DEEP + b"=1}\n" for _ in range(600)) + b"]", "too long"),
        (b"x = 0x" + b"f" * 1000, "more than 64 bits"),
        (b"x = [{y = 9223372036854775808}]", "more than 64 bits"),
        (b"x = " + b"9" * 10_000, "integer"),
    ],
)
def test_what_would_take_long_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_toml(content)


def test_what_an_operator_submits_is_bounded(tmp_path: Path) -> None:
    state = State.create(tmp_path)
    try:
        with pytest.raises(ConfigError, match="too long to read"):
            submit(state, UNDER_A_TABLE.decode())
        assert not state.jobs()
    finally:
        state.close()
