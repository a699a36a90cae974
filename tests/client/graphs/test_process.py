"""The training process: same bits as in this one, nothing of torch, bounded in all it does."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from client.graphs import process
from client.graphs.engine import check_engine, check_installed, engine_of
from client.graphs.process import SharedExamples, train
from client.graphs.trainer import GraphTrainer
from client.training.local import LocalConfig
from fedsys.errors import ConfigError, TrainingError
from fedsys.graphs import Vetted, encode, vet
from tests.fedsys.graphs.samples import node, softmax_regression

_ROOT = Path(__file__).parents[3]
LOCAL = LocalConfig(batch_size=4, learning_rate=0.5, epochs=2)


def _graph() -> Vetted:
    return vet(encode(softmax_regression(dropout=True)))


def _data() -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((11, 6)).astype(np.float32)
    y = rng.integers(0, 3, 11)
    return x, y, rng.standard_normal(18).astype(np.float32), np.array([0, 3, 4, 7, 10, 2])


def test_the_process_gives_the_bits_that_this_one_would() -> None:
    x, y, weights, rows = _data()
    graph = _graph()
    examples = SharedExamples(x, y)
    found = train(graph, examples, LOCAL, weights=weights, rows=rows, seed=5)
    examples.close()
    here = GraphTrainer(graph.graph, engine_of("numpy", graph), LOCAL, x, y)
    expected, losses = here.update(weights, rows, 5)
    assert found.update.tobytes() == expected.tobytes()
    assert found.losses == (losses[0], losses[-1])
    assert found.peak is None or found.peak < 80 << 20


def test_no_rows_give_a_zero_update() -> None:
    x, y, weights, _ = _data()
    nothing = np.zeros(0, dtype=np.int64)
    found = train(_graph(), SharedExamples(x, y), LOCAL, weights=weights, rows=nothing, seed=5)
    assert not found.update.any()
    assert found.losses == ()


def test_a_graph_that_fails_on_the_data_sends_zeros_and_tells_the_owner() -> None:
    x, y, weights, rows = _data()
    graph = softmax_regression()
    picked = (
        node("Gather", "weights y", "row", axis=0),
        node("ReduceSum", "row c_first", "gradient_of", keepdims=0),
    )
    made = vet(encode(dataclasses.replace(graph, nodes=(*picked, *graph.nodes))))
    examples = SharedExamples(x, y + 20)
    found = train(made, examples, LOCAL, weights=weights, rows=np.arange(3), seed=5)
    assert not found.update.any()
    assert found.failed.startswith("2 times, first with IndexError: ")
    assert "\n" not in found.failed
    fine = train(_graph(), SharedExamples(x, y), LOCAL, weights=weights, rows=rows, seed=5)
    assert fine.failed == ""


def test_what_does_not_fit_is_an_error_in_one_line() -> None:
    x, y, weights, rows = _data()
    with pytest.raises(
        TrainingError, match=r"training from the graph failed: ConfigError: the data"
    ):
        train(_graph(), SharedExamples(x[:, 1:], y), LOCAL, weights=weights, rows=rows, seed=5)


def test_a_process_that_dies_is_named_and_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y, weights, rows = _data()
    monkeypatch.setattr(process, "_START", "import os; os.abort()")
    before = {each.pid for each in psutil.Process().children()}
    with pytest.raises(TrainingError, match="ended early: signal 6"):
        train(_graph(), SharedExamples(x, y), LOCAL, weights=weights, rows=rows, seed=5)
    assert {each.pid for each in psutil.Process().children()} <= before


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00" * 7 + b"\xff" + b"\x00" * 300,
        b"\xff" * 8,
        b"\x00" * 7 + b"\x02{}",
        b"\x00" * 7 + b"\x02[]",
    ],
)
def test_an_answer_that_is_none_is_an_error(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, weights, rows = _data()
    start = f"import sys; sys.stdin.buffer.read(8); sys.stdout.buffer.write({answer!r})"
    monkeypatch.setattr(process, "_START", start)
    with pytest.raises(TrainingError, match=r"nonsense|ended early"):
        train(_graph(), SharedExamples(x, y), LOCAL, weights=weights, rows=rows, seed=5)


def test_a_process_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, weights, rows = _data()
    monkeypatch.setattr(process, "_START", "import time; time.sleep(600)")
    with pytest.raises(TrainingError, match="signal 9"):
        train(_graph(), SharedExamples(x, y), LOCAL, weights=weights, rows=rows, seed=5, seconds=1)


def test_the_agents_variables_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, weights, rows = _data()
    monkeypatch.setenv("SECRET", "s3cret")
    monkeypatch.setattr(
        process, "_START", "import os, sys; sys.exit(str(sorted(os.environ.items())))"
    )
    with pytest.raises(TrainingError, match="ended early") as caught:
        train(_graph(), SharedExamples(x, y), LOCAL, weights=weights, rows=rows, seed=5)
    assert "OPENBLAS_NUM_THREADS" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_neither_torch_nor_scipy_is_imported() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'scipy', 'onnx', 'pandas', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "import client.graphs.child, client.graphs.process, client.graphs.data\n"
        "import fedsys.cli.agent_graph\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=_ROOT, check=True)


def test_onnxruntime_gives_the_same_in_the_same_process_walls() -> None:
    pytest.importorskip("onnxruntime", reason="needs `pip install onnxruntime`")
    x, y, weights, rows = _data()
    examples = SharedExamples(x, y)
    ours = train(_graph(), examples, LOCAL, weights=weights, rows=rows, seed=5)
    theirs = train(_graph(), examples, LOCAL, weights=weights, rows=rows, seed=5, engine="ort")
    np.testing.assert_allclose(theirs.update, ours.update, rtol=0, atol=5e-6)
    assert theirs.walls == ours.walls


def test_an_engine_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed("numpy")
    with pytest.raises(ConfigError, match="run `pip install onnxruntime`"):
        check_installed("ort")
    with pytest.raises(ConfigError, match="--engine tvm: allowed are numpy, ort"):
        check_engine("tvm")
