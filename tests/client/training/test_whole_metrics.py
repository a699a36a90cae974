"""Figures over a whole test set agree with scikit-learn's."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor

from client.training import LocalConfig, Trainer
from client.training.whole_metrics import whole_metrics
from fedsys.errors import ConfigError
from fedsys.tasks import DataSource, load, read_data


def half(outputs: Tensor, targets: Tensor) -> float:
    return len(targets) / len(outputs) / 2


def test_they_are_scikit_learns() -> None:
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (300,), generator=draw)
    outputs = torch.randn(300, 4, generator=draw) + 1.5 * torch.nn.functional.one_hot(targets, 4)
    found = whole_metrics(["macro-f1", "auc"])
    guessed = outputs.argmax(1)
    assert found["macro_f1"](outputs, targets) == pytest.approx(
        f1_score(targets, guessed, average="macro")
    )
    assert found["auc"](outputs, targets) == pytest.approx(
        roc_auc_score(targets, outputs.softmax(1), multi_class="ovr", average="macro")
    )
    two = (targets > 1).long()
    tied = (outputs[:, 3] * 2).round()  # one score each, many of them equal
    assert found["auc"](tied, two) == pytest.approx(roc_auc_score(two, tied))


def test_an_evaluation_has_them_and_the_means() -> None:
    task = load("digits")
    trainer = Trainer(task, LocalConfig())
    test = read_data(task, DataSource()).test
    names = ["macro-f1", f"{__name__}:half"]
    found = trainer.evaluate(trainer.initial_weights(), test, names)
    assert set(found) == {"loss", "accuracy", "macro_f1", "half"}
    assert found["half"] == 0.5


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["f1"], "allowed are macro-f1, auc"),
        (["auc", "auc"], "two figures would be called auc"),
        (["no_such_module:f"], "cannot be loaded"),
    ],
)
def test_mistakes_are_named(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        whole_metrics(names)
