"""What other processes get of the examples: shared bytes, or the file that holds them."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsys.config import load
from fedsys.errors import TrainingError
from fedsys.tasks import DataSource, Examples, FederatedData, Origin, seeded
from fedsys.tasks.classification import Classification
from simulations.engine.pool import SharedPool, mapped_file
from simulations.engine.processes import Processes
from simulations.setting import prepare
from tests.simulations.engine.works import work_of

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


FILE = 500 << 20


class Large(Classification):
    """500 MB of bytes in a file."""

    name = "large"

    def __init__(self, path: str) -> None:
        self.path = path

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(Scaled(), nn.Linear(4096, 2))

    def clients(self, source: DataSource) -> FederatedData:
        x = np.memmap(self.path, np.uint8, "r").reshape(-1, 4096)
        y = torch.arange(len(x)) % 2
        train, test = Examples(x=x, y=y), Examples(x=x[:100], y=y[:100])
        return FederatedData(train=train, test=test, natural=torch.arange(len(x)) % 2000)


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() / 255


def own_memory(pid: int) -> int:
    """Bytes of a process that are in no file."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kept = [line for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    return 1024 * sum(int(line.split()[1]) for line in kept)


@linux
@pytest.mark.slow
def test_the_file_is_in_memory_once_however_many_processes_train(tmp_path: Path) -> None:
    """A process of its own memory alone: a copy would be half a gigabyte more in one of them."""
    with (tmp_path / "x").open("wb") as file:
        file.truncate(FILE)
    origin = Origin.of(Large(str(tmp_path / "x")))
    changes = [
        f'task.name="{origin.name}"',
        "privacy.mechanism=none",
        "aggregation.protocol=ideal",
        "population.partition=by-column",
        "cohort.expected=100",
        "engine.path=loop",
        "engine.chunk=8",
        "engine.processes=2",
    ]
    before = own_memory(os.getpid())
    setting = prepare(load("quickstart", changes), origin=origin)
    with setting.engine as engine:
        assert isinstance(engine, Processes)
        chunks = setting.population.chunks(range(0, 2000, 10), 8)
        length = setting.plan.build_mechanism().length
        engine.total(work_of(setting), chunks, length)
        assert own_memory(os.getpid()) - before < FILE // 5
        assert max(own_memory(pid) for pid in engine.pids) < FILE


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
