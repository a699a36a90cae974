"""A released model leaves the house whole, with what it cost; a hostile one does not come in."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors import safe_open
from torch import Tensor, nn
from typer.testing import CliRunner

from fedsys import tasks
from fedsys.audit import audit_run
from fedsys.cli import extras
from fedsys.cli.app import app
from fedsys.config import load
from fedsys.errors import ConfigError, FedsysError, RunFolderError
from fedsys.release import model as release_model
from fedsys.release.formats import METADATA_FILE, as_onnx, as_pt2
from fedsys.release.model import ReleasedModel
from fedsys.release.publication import publish_run
from simulations import harness

SMALL = ["rounds.count=2", "cohort.expected=30", "aggregation.protocol=ideal"]
FAST = [*SMALL, "engine.path=batched", "engine.chunk=64", "engine.processes=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(folder / "home"))
        return harness.run(load("quickstart", FAST), out=folder / "run").folder


@pytest.fixture(scope="module")
def digits() -> Any:
    """Test examples; more than the exporter saw."""
    return tasks.load("digits").clients(tasks.DataSource()).test.x[:17]


def trained(run: Path, x: Tensor) -> np.ndarray[Any, Any]:
    """What the model says, without any of the code under test."""
    model = tasks.load("digits").init_model(0)
    model.load_state_dict(torch.load(run / "model.pt", weights_only=True))
    with torch.no_grad():
        return np.asarray(model(x))


def export(*words: object) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, words)])


def check_facts(facts: dict[str, str], run: Path) -> None:
    audit, summary = audit_run(run), json.loads((run / "summary.json").read_text())
    assert float(facts["fedsys.epsilon"]) == audit.curve[-1].spent.outsider
    assert float(facts["fedsys.delta"]) == 1e-5
    assert facts["fedsys.ledger_head"] == summary["ledger_head"]
    assert facts["fedsys.model_sha256"] == summary["model_sha256"]
    assert not any("participant" in value or "server" in value for value in facts.values())


def test_safetensors_hold_the_weights_of_a_published_run(finished: Path, tmp_path: Path) -> None:
    publish_run(finished, tmp_path / "public")
    result = export(tmp_path / "public", tmp_path / "model.safetensors")
    assert result.exit_code == 0, result.output
    state = torch.load(finished / "model.pt", weights_only=True)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(state)
        assert all(torch.equal(file.get_tensor(name), state[name]) for name in state)
        check_facts(file.metadata(), finished)


def test_a_program_gives_the_models_outputs(finished: Path, digits: Tensor, tmp_path: Path) -> None:
    result = export(finished, tmp_path / "model.pt2")
    assert result.exit_code == 0, result.output
    facts = {METADATA_FILE: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=facts)
    with torch.no_grad():
        given = np.asarray(program.module()(digits))
    assert np.abs(given - trained(finished, digits)).max() <= 1e-5
    check_facts(json.loads(facts[METADATA_FILE]), finished)


def test_onnx_gives_the_models_outputs(finished: Path, digits: Tensor, tmp_path: Path) -> None:
    result = export(finished, tmp_path / "model.onnx")
    assert result.exit_code == 0, result.output
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    (given,) = ReferenceEvaluator(model).run(None, {"input": digits.numpy()})
    assert np.abs(given - trained(finished, digits)).max() <= 1e-5
    check_facts({one.key: one.value for one in model.metadata_props}, finished)


@pytest.mark.slow
@pytest.mark.parametrize("write", [as_onnx, as_pt2])
def test_a_convolutional_model_on_bytes_is_exported(write: Callable[..., bytes]) -> None:
    model = tasks.load("mnist", {"model": "cnn"}).init_model(3).eval()
    x = torch.randint(0, 256, (9, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    x = x.to(torch.uint8)
    content = write(model, x[:3], {})
    with torch.no_grad():
        expected = model(x).numpy()
        if write is as_pt2:
            given = torch.export.load(io.BytesIO(content)).module()(x).numpy()
        else:
            session = ReferenceEvaluator(onnx.load_from_string(content))
            (given,) = session.run(None, {"input": x.numpy()})
    assert np.abs(given - expected).max() <= 1e-5


def test_a_model_that_cannot_be_traced_is_one_line() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ConfigError, match=r"torch\.export cannot trace this model") as caught:
        as_pt2(Branching(), torch.ones(3, 2), {})
    assert "\n" not in str(caught.value)


def refusal(result: Any) -> str:
    assert isinstance(result.exception, FedsysError), result.output
    assert result.exception.exit_code == 2
    text = str(result.exception)
    assert "\n" not in text
    return text


def test_a_smaller_model_is_written_with_figures_and_the_run_stays(
    finished: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    out = tmp_path / "small.safetensors"
    said = export(finished, out, "--quantize", "int8", "--prune", "0.5")
    assert said.exit_code == 0, said.output
    for line in ("loss ", "accuracy ", "bytes ", "bytes, compressed ", "latency "):
        assert any(each.startswith(line) and " -> " in each for each in said.output.splitlines())
    with safe_open(out, "pt") as file:
        facts = file.metadata()
        weight, scale = file.get_tensor("weight"), file.get_tensor("weight.scale")
    check_facts({k: v for k, v in facts.items() if k.startswith("fedsys.")}, finished)
    assert facts["fedsys.pruned"] == "0.5"
    assert weight.dtype == torch.int8
    assert int((weight == 0).sum()) >= 320
    model = torch.load(finished / "model.pt", weights_only=True)["weight"]
    kept = weight != 0
    assert torch.allclose((weight * scale)[kept], model[kept], atol=float(scale.max()))
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for words, reason in (
        (["--quantize", "int4"], "allowed is int8"),
        (["--prune", "1"], "above 0 and below 1"),
    ):
        wrong = export(finished, tmp_path / "wrong.safetensors", *words)
        assert isinstance(wrong.exception, ConfigError)
        assert reason in str(wrong.exception)
        assert not (tmp_path / "wrong.safetensors").exists()


def test_a_changed_model_is_not_read(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    torch.save({"weight": torch.zeros(3)}, run / "model.pt")
    assert "its audit fails (Model file" in refusal(export(run, tmp_path / "a.safetensors"))
    (run / "model.pt").unlink()
    assert "holds no finished model" in refusal(export(run, tmp_path / "a.safetensors"))
    assert not (tmp_path / "a.safetensors").exists()


def test_code_that_a_run_names_is_imported_only_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSYS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_task.py").write_text(
        "from fedsys.tasks.digits import Digits\ndef Mine():\n    return Digits({})\n"
    )
    harness.run(load("quickstart", [*FAST, "task.name=my_own_task:Mine"]), out=tmp_path / "run")
    monkeypatch.delitem(sys.modules, "my_own_task")
    assert "names custom code; if you trust it, add --task my_own_task:Mine" in refusal(
        export("run", "model.pt2")
    )
    assert export("run", "model.safetensors").exit_code == 0
    assert "my_own_task" not in sys.modules
    assert export("run", "model.pt2", "--task", "my_own_task:Mine").exit_code == 0
    monkeypatch.delitem(sys.modules, "my_own_task")


def test_bad_arguments_are_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.onnx").write_text("mine")
    assert "the suffix selects the format" in refusal(export(finished, tmp_path / "model.h5"))
    assert "already exists" in refusal(export(finished, tmp_path / "a.onnx"))
    assert "there is no folder" in refusal(export(finished, tmp_path / "b" / "a.onnx"))
    assert "no such run folder" in refusal(export(tmp_path / "no", tmp_path / "b.pt2"))
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    assert "pip install --require-hashes -r requirements.lock" in refusal(
        export(finished, tmp_path / "b.onnx")
    )
    assert (tmp_path / "a.onnx").read_text() == "mine"


class Payload:
    """Unpickled, it would run."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("taken-over",)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def inflating() -> bytes:
    source, target = zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(1 << 16)}))), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            archive.writestr(entry.filename, source.read(entry))
    return target.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "code": lambda: saved({"weight": Payload()}),
    "no archive": lambda: b"\x80\x04.",
    "cut off": lambda: saved({"w": torch.zeros(100)})[:200],
    "a list": lambda: saved([torch.zeros(1)]),
    "empty": lambda: saved({}),
    "no tensor": lambda: saved({"w": 3}),
    "no name": lambda: saved({3: torch.zeros(1)}),
    "sparse": lambda: saved({"w": torch.eye(3).to_sparse()}),
    "bomb": inflating,
    "more than it holds": lambda: saved({"w": torch.zeros(1).expand(1 << 40)}),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_hostile_model_file_is_refused_and_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFolderError) as caught:
        release_model._tensors(HOSTILE[name](), "run: model.pt")
    assert str(caught.value).startswith("run: model.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "taken-over").exists()


def test_weights_of_another_model_are_named(finished: Path) -> None:
    released = ReleasedModel.of(finished)
    with pytest.raises(RunFolderError, match="is this the task that the run was made with"):
        released.fill(nn.Linear(3, 4))
