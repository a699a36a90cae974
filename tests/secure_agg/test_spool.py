"""What may have to be taken out of a sum again comes back as it was, from memory or from disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from secure_agg import spool
from secure_agg.errors import StateError
from secure_agg.spool import Spool


def test_what_fits_stays_in_memory_uncopied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", 100)
    kept = Spool()
    message = bytes(range(60))
    view = memoryview(message)[20:]
    kept.put(1, view)  # 60 bytes are held, of which 40 are the ciphertext
    kept.put(2, b"x" * 40)
    assert kept._file is None
    kept.put(3, b"y" * 10)
    assert kept._file is not None
    assert kept.take(1) is view
    kept.put(4, b"z" * 60)  # in the place of the first
    kept.put(5, bytearray(b"w" * 70))
    assert [bytes(kept.take(i)) for i in (5, 4, 3, 2)] == [
        b"w" * 70,
        b"z" * 60,
        b"y" * 10,
        b"x" * 40,
    ]
    with pytest.raises(KeyError):
        kept.take(2)
    kept.close()


def test_a_file_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(StateError, match="cannot be written"):
        Spool().put(1, b"x")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = Spool()
    kept.put(1, b"x" * 1000)
    assert not list(tmp_path.iterdir())  # the file has no name
    assert kept._file is not None
    kept._file.truncate(10)
    with pytest.raises(StateError, match="cut short"):
        kept.take(1)
