"""``members.json``, read from a folder that anybody may have made."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from fedsys.errors import LedgerError
from fedsys.wire import members
from fedsys.wire.members import read_members


def test_there_may_be_none(tmp_path: Path) -> None:
    assert read_members(tmp_path) is None


@pytest.mark.parametrize("within", [False, True], ids=["in the file", "in a text of it"])
def test_more_values_than_any_roster_has_are_not_parsed(
    within: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would take thirty times its octets in memory."""
    monkeypatch.setattr(members, "_MOST_VALUES", 10_000)
    content = "[" + "[]," * (1 << 20) + "[]]"
    (tmp_path / "members.json").write_text(json.dumps(content) if within else content)
    tracemalloc.start()
    try:
        with pytest.raises(LedgerError, match=r"members\.json: more values than a roster"):
            read_members(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
