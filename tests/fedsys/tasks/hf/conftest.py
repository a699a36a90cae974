"""Datasets on disk, where the library that writes them is installed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsys.installation import how_to_install

Save = Callable[..., Path]
CLASSES = ["cat", "dog", "owl"]
ROWS = 60


def png(seed: int) -> dict[str, Any]:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Save:
    """Writes a dataset with pictures, classes, ages and owners; columns replace or add to those."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets", reason=f"datasets: {how_to_install('hf')}")
    datasets.disable_progress_bar()

    def write(*, splits: bool = True, **columns: Any) -> Path:
        rows = {
            "image": [png(row) for row in range(ROWS)],
            "kind": [row % 3 for row in range(ROWS)],
            "age": [float(row) for row in range(ROWS)],
            "who": [f"00{row % 5}" for row in range(ROWS)],
        } | columns
        made = datasets.Dataset.from_dict(rows)
        made = made.cast_column("image", datasets.Image())
        made = made.cast_column("kind", datasets.ClassLabel(names=CLASSES))
        made = made.select(range(ROWS - 1, -1, -1))  # as a shuffled dataset is: rows by indices
        if splits:
            made = datasets.DatasetDict({"train": made, "test": made.select(range(7))})
        made.save_to_disk(str(tmp_path / "pets"))
        return tmp_path / "pets"

    return write
