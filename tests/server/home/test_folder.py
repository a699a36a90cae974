"""``coordinator.toml`` and its witnesses."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsys.errors import ConfigError
from fedsys.witness.folder import WitnessFolder
from server.home.folder import Home
from server.home.state import State
from simulations.testbed.joining import join


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "c", hosts=["localhost"])


def key(path: Path, name: str) -> str:
    WitnessFolder.create(path, name=name, logs=[])
    return (path / "witness.vkey").read_text().strip()


def table(url: str, key: str) -> str:
    return f'\n[[witnesses]]\nurl = "{url}"\nkey = "{key}"\n'


def test_witnesses_are_added_by_hand(home: Home, tmp_path: Path) -> None:
    a, b = key(tmp_path / "a", "w.example/a"), key(tmp_path / "b", "w.example/b")
    assert home.settings().witnesses == []
    text = home.settings_file.read_text()
    more = text.replace("witness_threshold = 0", "witness_threshold = 2")
    assert more != text
    home.settings_file.write_text(
        more + table("https://a.example/w", a) + table("http://[::1]:7450", b)
    )
    found = home.settings()
    assert [each.vkey.name for each in found.witnesses] == ["w.example/a", "w.example/b"]
    assert found.witness_threshold == 2


def test_what_is_no_witness_is_refused_in_one_line(home: Home, tmp_path: Path) -> None:
    a = key(tmp_path / "a", "w.example/a")
    log = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
    text = home.settings_file.read_text()
    for more, words in (
        (table("https://a.example", log), "a log's, not a witness's"),
        (table("https://a.example", "x"), "expected name"),
        (table("ftp://a.example", a), "url"),
        (table("https://a.example/ b", a), "url"),
        (table("https://a.example", a) + table("https://b.example", a), "one key or one name"),
        (table("https://a.example", a) * 17, "at most 16"),
    ):
        home.settings_file.write_text(text + more)
        with pytest.raises(ConfigError, match=words) as caught:
            home.settings()
        assert "\n" not in str(caught.value)
    home.settings_file.write_text(
        "witness_threshold = 1\n" + text.replace("witness_threshold", "#")
    )
    with pytest.raises(ConfigError, match="there are 0 witnesses"):
        home.settings()


def test_a_new_settings_file_explains_itself_and_a_revoked_name_says_so(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "c", hosts=["localhost"])
    assert home.settings_file.read_text().startswith("# Settings of this coordinator")
    state = State.open(home.path)
    registry = home.registry(state)
    join(registry, "ward")
    with pytest.raises(ConfigError, match="enrolled already"):
        registry.issue_token("ward")
    registry.revoke("ward")
    with pytest.raises(ConfigError, match="was revoked, for good; choose another name"):
        registry.issue_token("ward")
    state.close()
