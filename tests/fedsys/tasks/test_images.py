"""Pictures in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsys.errors import ConfigError, DataError
from fedsys.tasks import DataSource, FederatedData, check_contract, load, preprocessing_of


def picture(path: Path, seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)


def read(folder: Path, **options: Any) -> FederatedData:
    task = load("images", {"path": str(folder), "classes": ["cat", "dog"], "size": 8, **options})
    data = task.clients(DataSource())
    check_contract(task, data, 0)
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(20):
        mode = ("RGB", "L", "RGBA")[k % 3]
        picture(tmp_path / "pets" / ("cat", "dog")[k % 2] / f"{k}.PNG", k, mode)
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no picture")
    return tmp_path / "pets"


@pytest.mark.parametrize("model", ["cnn", "logistic"])
@pytest.mark.parametrize(("channels", "size"), [(1, 9), (3, 8)])
def test_a_folder_a_class(folder: Path, model: str, channels: int, size: int) -> None:
    data = read(folder, model=model, channels=channels, size=size, test_fraction=0.4)
    assert len(data.train) + len(data.test) == 20
    assert data.train.x.shape[1:] == (channels, size, size)
    assert int(data.train.y.sum() + data.test.y.sum()) == 10
    assert data.natural is None


def test_a_folder_a_client(tmp_path: Path) -> None:
    for k in range(12):
        picture(tmp_path / f"00{k % 3}" / ("cat", "dog")[k % 2] / f"{k}.jpg", k)
    data = read(tmp_path, layout="client/class", test_fraction=0.5)
    assert data.client_names == ("000", "001", "002")
    assert data.natural is not None
    assert set(data.natural.tolist()) == {0, 1, 2}
    options = {"path": "x", "classes": ["a", "b"]}
    assert preprocessing_of(load("images", options)) == "row-local"
    assert preprocessing_of(load("images", {**options, "layout": "client/class"})) == "client-local"


def test_a_copy_goes_where_the_picture_goes(folder: Path) -> None:
    before = read(folder)
    for path in sorted(folder.glob("*/*.PNG")):
        (path.parent / f"copy-{path.name}").write_bytes(path.read_bytes())
    after = read(folder)
    assert (len(after.train), len(after.test)) == (2 * len(before.train), 2 * len(before.test))


def test_what_cannot_be_is_explained(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.options\.classes = \['cat'\]"):
        read(folder, classes=["cat"])
    with pytest.raises(ConfigError, match="channels = 2"):
        read(folder, channels=2)
    with pytest.raises(DataError, match=r"dog: is not one of task\.options\.classes"):
        read(folder, classes=["cat", "cow"])
    with pytest.raises(DataError, match="no such folder"):
        read(folder / "nowhere")
    (folder / "dog" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    with pytest.raises(DataError, match=r"torn\.png: not a readable picture"):
        read(folder)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        read(folder / "empty")
