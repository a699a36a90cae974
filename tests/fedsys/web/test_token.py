"""The token: 256 bits of the system's, in a file for its owner alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fedsys.errors import ConfigError
from fedsys.web.token import kept_token, new_token


def test_a_token_is_all_of_its_entropy() -> None:
    asked: list[int] = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        return bytes(range(count))

    assert new_token(entropy) == bytes(range(32)).hex()
    assert asked == [32]
    assert new_token() != new_token()


def test_it_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "web.token"
    token = kept_token(path)
    assert kept_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0640 lets others read it"):
        kept_token(path)


@pytest.mark.parametrize("content", [b"", b"short\n", b"z" * 64, b"\xff" * 64, b"A" * 64])
def test_what_is_no_token_is_not_used(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "web.token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not a token; delete it"):
        kept_token(path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "web.token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"web\.token"):
        kept_token(tmp_path / "web.token")
    assert not (tmp_path / "elsewhere").exists()
