"""``data.json`` of a run's folder, which somebody else may have made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedsys.errors import DataError
from fedsys.tasks.tables.stored import columns_of
from tests.reading import reads_at_most

OPTIONS = {"path": "rows.csv", "label": "y"}


def test_no_file_is_no_columns(tmp_path: Path) -> None:
    assert columns_of("tabular", OPTIONS, tmp_path / "data.json") is None
    assert columns_of("digits", {}, tmp_path / "data.json") is None


@pytest.mark.parametrize("how", ["pipe", "link", "large", "deep", "other"])
def test_what_no_run_stored_is_named_and_not_read(tmp_path: Path, how: str) -> None:
    path = tmp_path / "data.json"
    if how == "pipe":
        os.mkfifo(path)
    elif how == "link":
        path.symlink_to("/dev/zero")
    elif how == "large":
        with path.open("wb") as file:
            os.truncate(file.fileno(), 10 << 30)
    else:
        path.write_text("[" * 100_000 if how == "deep" else '{"preparation": 7}')
    with reads_at_most(4), pytest.raises(DataError, match=r"data\.json"):
        columns_of("tabular", OPTIONS, path)


def test_a_hugging_face_dataset_without_pictures_is_a_table(tmp_path: Path) -> None:
    own = {"path": "pets", "split": "train", "test_split": "test", "partitioner": "iid"}
    found = columns_of("hf", {**OPTIONS, **own}, tmp_path / "data.json")
    assert found == columns_of("tabular", OPTIONS, tmp_path / "data.json")
    assert columns_of("hf", {**own, "image": "img"}, tmp_path / "data.json") is None
    declared = {"label": "kind", "classes": ["a", "b"], "ranges": {"age": [0, 100]}}
    found = columns_of("hf", {**declared, **own}, tmp_path / "data.json")
    assert found is not None
    assert found == columns_of("tabular", {**declared, "path": "x.csv"}, tmp_path / "data.json")
