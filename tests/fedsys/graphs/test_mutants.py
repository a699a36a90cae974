"""Graphs that were tampered with: no crash, no file, no socket, bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from client.graphs.process import peak_of
from fedsys.graphs import encode
from fedsys.tasks import Examples
from fedsys.tasks.classification import Classification
from fedsys.tasks.export import export_task
from tests.fedsys.graphs.mutants import MEMORY
from tests.fedsys.graphs.samples import softmax_regression

_ROOT = Path(__file__).parents[3]
_INTERPRETER = 150 << 20
"""Python with numpy, protobuf and the mutator, at most."""


class _Everything(Classification):
    """Convolutions of all kinds, pooling, norms, dropout and an embedding in one small model."""

    name = "everything"

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(600, 4)
            self.first = nn.Conv2d(4, 4, 3, stride=2, padding=1, dilation=1)
            self.deep = nn.Conv2d(4, 8, 3, padding=1, groups=4)
            self.norm = nn.GroupNorm(2, 8)
            self.drop = nn.Dropout(0.3)
            self.out = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x).permute(0, 3, 1, 2)
            x = nn.functional.max_pool2d(nn.functional.gelu(self.first(x)), 3, 1, 1)
            x = nn.functional.avg_pool2d(self.norm(self.deep(x)), 2)
            found: torch.Tensor = self.out(self.drop(x.amax((2, 3))))
            return found

    def init_model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.Net()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("graphs")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        examples = Examples(x=torch.randint(0, 600, (8, 8, 8)), y=torch.randint(0, 3, (8,)))
        task: Any = _Everything()
        made = export_task(task, examples, name="everything", options={}, batch_size=4)
    graphs = {"everything": made.encoded, "sample": encode(softmax_regression(dropout=True))}
    for name, raw in graphs.items():
        (folder / name).write_bytes(raw)
    return [str(folder / name) for name in graphs]


def _run(count: int, seed: int, originals: list[str]) -> dict[str, Any]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fedsys.graphs.mutants", str(count), str(seed), *originals],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        found: dict[str, Any] = json.loads(process.stdout.readline() or "null")
        found["peak"] = peak_of(process.pid)
        process.stdin.close()
    assert process.returncode == 0
    return found


def _check(found: dict[str, Any], count: int) -> None:
    assert found["failed"] == []
    assert found["tried"] == []
    assert found["refused"] + found["ran"] + found["index"] == count
    assert found["ran"] > count / 50  # mutants that do run are the ones that matter
    assert found["peak"] is None or found["peak"] < _INTERPRETER + 2 * MEMORY


def test_two_thousand_mutants(originals: list[str]) -> None:
    _check(_run(2000, 0, originals), 2000)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_mutants(originals: list[str]) -> None:
    _check(_run(100_000, 1, originals), 100_000)
