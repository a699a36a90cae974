"""A local procedure trains each client on a model of its own, and what leaves is declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training import LocalConfig, Trainer
from client.training.procedure.visit import Visit
from fedsys.config.sections import Local as LocalSection
from fedsys.errors import ConfigError, FedsysError, TrainingError
from fedsys.tasks import DataSource, FederatedData, load, read_data

OWN = "tests.client.training.procedure.own"
ROWS = [np.arange(30), np.arange(30, 75)]


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return read_data(load("digits"), DataSource())


def train(data: FederatedData, *, visit: Visit | None = None, **local: Any) -> NDArray[np.float32]:
    trainer = Trainer(load("digits"), LocalConfig(**local))
    start = trainer.initial_weights()
    return trainer.train(start, data.train, ROWS, [1, 2], visit=visit)


@pytest.mark.parametrize(
    "local",
    [
        {"momentum": 0.5, "weight_decay": 0.01, "proximal_mu": 0.1, "epochs": 2},
        {"optimizer": "adam", "learning_rate": 0.01},
    ],
)
def test_the_plain_procedure_is_the_loop_path(data: FederatedData, local: dict[str, Any]) -> None:
    expected = train(data, **local)
    assert np.abs(train(data, procedure="train", **local) - expected).max() < 1e-6


def test_schedules_and_clipping_are_what_they_say(data: FederatedData) -> None:
    """One batch of all examples each, so that the update is -rate times the gradient."""
    whole: dict[str, Any] = {"batch_size": 100, "learning_rate": 0.5}
    plain = train(data, **whole)
    last = Visit(round=11, rounds=11)
    decayed = train(data, schedule="cosine", final_factor=0.2, visit=last, **whole)
    assert np.allclose(decayed, 0.2 * plain, atol=1e-7)
    warmed = train(data, warmup_steps=3, **whole)
    assert np.allclose(warmed, 0.25 * plain, atol=1e-7)
    clipped = train(data, gradient_clip=0.01, **whole)
    assert np.allclose(np.linalg.norm(clipped, axis=1), 0.5 * 0.01, rtol=1e-3)
    assert not np.allclose(train(data, optimizer="AdamW", learning_rate=0.01), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "local",
    [
        {"gradient_clip": 1.0},
        {"warmup_steps": 3},
        {"optimizer": "adamw"},
        {"procedure": "scaffold"},
    ],
)
def test_parameters_of_16_bits_are_refused_for_their_steps_would_be_rounded_away(
    dtype: torch.dtype, local: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load("digits")
    made = task.init_model(0).to(dtype)
    monkeypatch.setattr(task, "init_model", lambda seed: made)
    Trainer(task, LocalConfig())
    with pytest.raises(ConfigError, match=r"parameter '.*weight' is torch\.b?float16.*leave out"):
        Trainer(task, LocalConfig(**local))


class Kept:
    """States in memory."""

    def __init__(self) -> None:
        self.of: dict[tuple[Any, int], dict[str, Tensor]] = {}

    def load(self, client: Any, round: int) -> dict[str, Tensor]:
        earlier = [number for who, number in self.of if who == client and number < round]
        return dict(self.of[client, max(earlier)]) if earlier else {}

    def save(self, client: Any, round: int, state: Mapping[str, Tensor]) -> None:
        self.of[client, round] = dict(state)


def test_blocks_follow_the_update_and_state_stays_with_its_client(data: FederatedData) -> None:
    kept = Kept()
    rows = [
        train(data, procedure=f"{OWN}:Counted", visit=Visit(round=number, states=kept))
        for number in (1, 2, 2, 5)
    ]
    assert rows[0].shape == (2, 651)
    assert [row[:, -1].tolist() for row in rows] == [[1, 1], [2, 2], [2, 2], [3, 3]]
    assert (rows[1] == rows[2]).all()  # a round that is trained again starts where it started
    assert sorted(number for who, number in kept.of if who == 0) == [1, 2, 5]
    assert not torch.equal(kept.of[0, 5]["bias"], kept.of[1, 5]["bias"])
    alone = train(data, procedure=f"{OWN}:Counted", visit=Visit(round=1))
    assert (alone == rows[0]).all()


def test_nothing_in_the_model_reaches_the_next_client(data: FederatedData) -> None:
    both = train(data, procedure=f"{OWN}:thaws_and_writes")
    trainer = Trainer(load("digits"), LocalConfig(procedure=f"{OWN}:thaws_and_writes"))
    alone = trainer.train(trainer.initial_weights(), data.train, ROWS[1:], [2])
    assert (both[1] == alone[0]).all()


def test_generators_depend_on_the_client_s_seed_alone(data: FederatedData) -> None:
    first, again = (train(data, procedure=f"{OWN}:draws") for _ in range(2))
    assert (first == again).all()
    assert (first[0] != first[1]).all()


@pytest.mark.parametrize(
    ("procedure", "message"),
    [
        (f"{OWN}:sends_undeclared", r"client 0: local\.send\('surprise'.*declared: none"),
        (f"{OWN}:keeps_no_tensor", r"client 0: local\.state has to be a dict of names to tensors"),
        (f"{OWN}:exits", r"client 0: .* on its \d+ examples failed: SystemExit: 0"),
        (f"{OWN}:replaces_the_model", "is not in the model any more"),
        (f"{OWN}:remembers_others", "changes by up to"),
        (f"{OWN}:nothing", "cannot be loaded"),
        ("no_such_module:f", "cannot be loaded"),
        ("scaffolt", "built in are train, scaffold, fednova"),
    ],
)
def test_mistakes_are_one_line(data: FederatedData, procedure: str, message: str) -> None:
    with pytest.raises(FedsysError, match=message) as caught:
        train(data, procedure=procedure)
    assert "\n" not in str(caught.value)


def test_optimizers_are_those_of_torch(data: FederatedData) -> None:
    with pytest.raises(ConfigError, match=r"'lbfgs': allowed are adadelta"):
        train(data, optimizer="lbfgs")
    with pytest.raises(TrainingError, match=r"cannot be made with lr, momentum"):
        train(data, optimizer="adagrad", momentum=0.5)
    with pytest.raises(ConfigError, match=r"engine\.path = 'batched'"):
        Trainer(load("digits"), LocalConfig(procedure="train"), path="batched")


def test_the_optimizers_that_a_configuration_may_name_are_torchs() -> None:
    allowed = get_args(LocalSection.model_fields["optimizer"].annotation)
    found = {
        name.lower()
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    assert set(allowed) == found - {"lbfgs", "sparseadam", "optimizer"}
