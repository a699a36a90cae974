"""Pictures of a Hugging Face dataset."""

from __future__ import annotations

from typing import Any

import pytest

from fedsys.errors import ConfigError, DataError
from fedsys.tasks import load, preprocessing_of
from tests.fedsys.tasks.hf.conftest import CLASSES, Save, png
from tests.fedsys.tasks.hf.test_table import read

USUAL = {"image": "image", "label": "kind", "classes": CLASSES, "size": 8}


@pytest.mark.parametrize(("channels", "model"), [(1, "logistic"), (3, "cnn")])
def test_pictures_their_classes_and_clients_are_read(save: Save, channels: int, model: str) -> None:
    folder = save()
    data = read(folder, **USUAL, client="who", channels=channels, model=model, test_split="test")
    assert data.train.x.shape == (60, channels, 8, 8)
    assert data.train.y.tolist() == [(59 - row) % 3 for row in range(60)]
    assert data.client_names == ("000", "001", "002", "003", "004")
    assert data.natural is not None
    assert data.natural.tolist() == [(59 - row) % 5 for row in range(60)]
    part = read(folder, **USUAL, test_fraction=0.4)
    assert len(part.train) + len(part.test) == 60
    assert part.natural is None
    turned = read(folder, **USUAL | {"classes": ["owl", "cat", "dog"]}, test_split="test")
    assert turned.train.y.tolist() == [(60 - row) % 3 for row in range(60)]


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({}, {"image": "age"}, r"column 'age' holds .*, and image names a column of pictures: im"),
        ({}, {"label": "sort"}, r"has no column 'sort'; it has image, kind, age, who"),
        ({}, {"client": "whom"}, r"has no column 'whom' \(did you mean who\?\)"),
        ({}, {"classes": ["cat", "dog"]}, r"column 'kind', row 1: 'owl' is no class of task.opt"),
        ({"kind": [-1] * 60}, {}, r"column 'kind', row 1: the cell is no class"),
        ({"who": [None] * 60}, {"client": "who"}, r"column 'who', row 1: the cell names no client"),
        ({"image": [png(0)] * 59 + [{"bytes": b"GIF89a", "path": None}]}, {},
         r"column 'image', row 1: not a readable picture"),
        ({"image": [png(0)] * 59 + [None]}, {}, r"column 'image', row 1: holds no picture"),
    ],
)  # fmt: skip
def test_what_is_no_such_column_is_one_line(
    save: Save, columns: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        read(save(**columns), **USUAL | options)


def test_options_and_declarations() -> None:
    with pytest.raises(ConfigError, match=r"of a ClassLabel: its names"):
        load("hf", {"path": "x", "image": "image", "label": "kind"})
    with pytest.raises(ConfigError, match=r"task.options.ranges: unknown to task hf"):
        load("hf", {"path": "x", **USUAL, "ranges": {}})
    assert preprocessing_of(load("hf", {"path": "x", **USUAL})) == "row-local"
    assert preprocessing_of(load("hf", {"path": "x", **USUAL, "client": "who"})) == "client-local"
