"""What other processes get of the examples: shared bytes, or the file that holds them."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsys.errors import TrainingError
from fedsys.tasks import Examples
from simulations.engine.pool import SharedPool, mapped_file

ROWS, WIDTH = 3000, 500
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 255, (ROWS, WIDTH), dtype=np.uint8)
    np.save(tmp_path / "x.npy", values)
    return tmp_path / "x.npy"


def through_pickle(examples: Examples) -> tuple[Examples, int]:
    """The examples as another process has them, and how many bytes it was sent."""
    found: list[pickle.PickleBuffer] = []
    text = pickle.dumps(SharedPool.of(examples), protocol=5, buffer_callback=found.append)
    raw = [bytes(each.raw()) for each in found]
    return pickle.loads(text, buffers=raw).examples(), len(text) + sum(map(len, raw))  # noqa: S301


@linux
def test_mapped_arrays_are_mapped_and_not_sent(file: Path) -> None:
    x = np.load(file, mmap_mode="r")
    y = torch.arange(ROWS)
    part = Examples(x=x[500:], y=y[500:])  # a view, as a split into training and test is
    found, sent = through_pickle(part)
    assert torch.equal(found.x, torch.from_numpy(np.array(x[500:])))
    assert torch.equal(found.y, y[500:])
    assert sent < 8 * ROWS + 2000
    assert mapped_file(found.x) == mapped_file(part.x)
    read = torch.from_file(str(file), shared=True, size=ROWS * WIDTH, dtype=torch.uint8)
    assert mapped_file(read) is not None


@linux
def test_only_what_the_file_still_holds_counts_as_mapped(file: Path) -> None:
    own = torch.from_numpy(np.load(file, mmap_mode="c"))
    assert mapped_file(own) is not None
    own[1000, 3] += 1
    assert mapped_file(own) is None, "it was written in this process alone"
    found, _ = through_pickle(Examples(x=own, y=torch.arange(ROWS)))
    assert torch.equal(found.x, own)
    shared = Examples(x=np.load(file, mmap_mode="r"), y=torch.arange(ROWS)).x
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    os.replace(other, file)
    assert mapped_file(shared) is None, "the name stands for another file now"


@linux
def test_a_file_that_changes_or_is_missing_is_named(file: Path) -> None:
    pool = SharedPool.of(Examples(x=np.load(file, mmap_mode="r"), y=torch.arange(ROWS)))
    os.utime(file, (1, 1))
    with pytest.raises(TrainingError, match=r"x\.npy: has changed since the data were read"):
        pool.examples()
    file.unlink()
    with pytest.raises(TrainingError, match=r"x\.npy: no such file .* every machine needs it"):
        pool.examples()


def test_every_form_and_dtype_arrives(file: Path) -> None:
    x: dict[str, Tensor] = {
        "half": torch.randn(9, 2).bfloat16(),
        "mask": torch.rand(9, 3) > 0.5,
        "wide": torch.randn(9, 1, 2, dtype=torch.float64),
        "turned": torch.randn(2, 9).t(),
        "none": torch.zeros(9, 0),
    }
    y = (torch.arange(9), torch.randn(9))
    found, _ = through_pickle(Examples(x=x, y=y))
    assert list(found.x) == list(x)
    assert isinstance(found.y, tuple)
    for one, two in zip(found.parts, (*x.values(), *y), strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
