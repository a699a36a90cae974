"""The model's file of a fine-tuning run against its ledger: what is frozen is bound as well."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsys.audit import audit_run
from fedsys.audit.weights import weights_digest
from fedsys.config import load
from fedsys.errors import LedgerError
from fedsys.release.formats import as_safetensors
from fedsys.release.model import ReleasedModel
from fedsys.tasks import DataSource, Examples, FederatedData, Origin, init_model, seeded
from fedsys.tasks.classification import Classification
from simulations import harness


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", torch.sin(torch.arange(6.0)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.get_buffer("waves")


class FineTuned(Classification):
    """Far more frozen numbers than trained ones, a shared layer, a buffer, a frozen BatchNorm, a
    layer whose size comes from an example."""

    name = "fine-tuned"

    def init_model(self, seed: int) -> nn.Module:
        with seeded(seed):
            backbone = _Still(nn.Linear(6, 200), nn.BatchNorm1d(200), nn.Linear(200, 6))
            for parameter in backbone.parameters():
                parameter.requires_grad_(False)
            shared = nn.Linear(6, 6)
            return nn.Sequential(Positions(), backbone, shared, nn.Tanh(), shared, nn.LazyLinear(2))

    def clients(self, source: DataSource) -> FederatedData:
        with seeded(5):
            x = torch.randn(300, 6)
        some = Examples(x=x, y=(x[:, 0] > 0).long())
        return FederatedData(train=some, test=some)


class _Still(nn.Sequential):
    """Stays in evaluation mode."""

    def train(self, mode: bool = True) -> _Still:
        super().train(False)
        return self


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    changes = [
        "population.clients=40",
        "population.partition=iid",
        "cohort.expected=20",
        "rounds.count=2",
        "privacy.mechanism=none",
        "aggregation.protocol=ideal",
        "engine.processes=1",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSYS_HOME", str(folder / "home"))
        origin = Origin.of(FineTuned)
        config = load("quickstart", [*changes, f'task.name="{origin.name}"'])
        return harness.run(config, out=folder / "run", origin=origin).folder


def weights_claim(run: Path) -> tuple[bool | None, str]:
    (claim,) = (each for each in audit_run(run).claims if each.name == "Model weights")
    return claim.holds, claim.rederived


def test_its_own_audit_holds_and_its_model_is_released(finished: Path) -> None:
    holds, words = weights_claim(finished)
    assert holds, words
    assert "of 56 weights, and " in words
    released = ReleasedModel.of(finished)
    task = FineTuned()
    model: Any = released.fill(init_model(task, 0, task.clients(DataSource()).test))
    before: Any = init_model(task, released.config.job.seed, task.clients(DataSource()).test)
    assert not torch.equal(model[2].weight, before[2].weight)
    assert torch.equal(model[1][0].weight, before[1][0].weight)
    assert model[4].weight is model[2].weight
    assert len(as_safetensors(released.state, {})) > 4 * 6 * 200


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda state: state["1.0.weight"].mul_(1.001), "frozen numbers give"),
        (lambda state: state["0.waves"].zero_(), "frozen numbers give"),
        (lambda state: state.update(extra=torch.zeros(5)), "frozen numbers give"),
        (lambda state: state["2.weight"].add_(1.0), "of 56 weights"),
    ],
)
def test_another_backbone_is_noticed(
    change: Callable[[dict[str, Tensor]], object], word: str, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    state = torch.load(run / "model.pt")
    change(state)
    torch.save(state, run / "model.pt")
    holds, words = weights_claim(run)
    assert holds is False
    assert word in words


def test_a_directory_of_many_records_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(40_000):
            archive.writestr(f"{number:080}", b"")
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(LedgerError, match="a directory of"):
        weights_digest(path, 1)
