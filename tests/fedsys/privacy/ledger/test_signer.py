"""The signer's key stays private, its public half is found."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fedsys.errors import LedgerError
from fedsys.privacy import Signer, load_public_key
from tests.fedsys.privacy.ledger.ledgers import SIGNER


class TestSigner:
    def test_a_key_is_made_once_and_private(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        first = Signer.load_or_create(home)
        assert Signer.load_or_create(home).public_hex == first.public_hex
        key = next(home.iterdir())
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        key.chmod(0o644)
        with pytest.raises(LedgerError, match="chmod 600"):
            Signer.load_or_create(home)
        key.chmod(0o600)
        key.write_bytes(b"short")
        with pytest.raises(LedgerError, match="instead of 32"):
            Signer.load_or_create(home)

    def test_the_environment_names_the_home(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "elsewhere"))
        Signer.load_or_create()
        assert (tmp_path / "elsewhere").is_dir()

    def test_secrets_stay_inside(self) -> None:
        assert SIGNER.public_hex in repr(SIGNER)
        with pytest.raises(TypeError):
            SIGNER.__reduce__()

    def test_public_keys_are_read_from_text_and_files(self, tmp_path: Path) -> None:
        path = tmp_path / "key.pub"
        path.write_text(SIGNER.public_hex + "\n")
        for text in (SIGNER.public_hex, str(path)):
            assert load_public_key(text).public_bytes_raw().hex() == SIGNER.public_hex
        for bad in ("", "zz" * 32, str(tmp_path), "ab" * 31):
            with pytest.raises(LedgerError, match="not a public key"):
                load_public_key(bad)
