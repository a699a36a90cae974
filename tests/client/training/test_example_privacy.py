"""DP-SGD inside a client: Opacus' clipped gradients, the noise's size, entropy from outside."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from client.training import LocalConfig, Trainer
from client.training.example_privacy import ExamplePrivacy, ExamplePrivateTrainer, _chosen
from fedsys.errors import ConfigError, TrainingError
from fedsys.privacy.randomness import AesCtrStream
from fedsys.tasks import DataSource, Examples, FederatedData, load

SILENT = ExamplePrivacy(clip=0.5, noise_multiplier=1e-6, example_rate=1.0, steps=1)


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return load("digits").clients(DataSource())


def fixed_entropy(seed: int) -> Callable[[int], bytes]:
    """Reproducible, for tests only."""
    calls = [0]

    def entropy(count: int) -> bytes:
        calls[0] += 1
        return hashlib.shake_256(f"{seed}/{calls[0]}".encode()).digest(count)

    return entropy


def trainer(privacy: ExamplePrivacy, rate: float = 1.0, hidden: int = 6) -> ExamplePrivateTrainer:
    return ExamplePrivateTrainer(
        load("digits", {"hidden": hidden}), LocalConfig(learning_rate=rate), privacy, seed=1
    )


def start(hidden: int = 6) -> NDArray[np.float32]:
    model = load("digits", {"hidden": hidden}).init_model(1)
    parts = [p.detach().numpy().ravel() for p in model.parameters()]
    return np.concatenate(parts).astype(np.float32)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_without_noise_a_step_is_opacus_step(data: FederatedData) -> None:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    task, rows = load("digits", {"hidden": 6}), np.arange(40)
    model = GradSampleModule(task.init_model(1), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=SILENT.clip,
        expected_batch_size=len(rows),
    )
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    task.loss(model(data.train.x[rows]), data.train.y[rows]).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    expected = (after - before).numpy()
    found = trainer(SILENT).train(start(), data.train, [rows], fixed_entropy(1))[0]
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_each_example_moves_the_sum_by_at_most_the_clip(data: FederatedData) -> None:
    sharp = replace(SILENT, clip=1e-3)
    one = trainer(sharp).train(start(), data.train, [np.array([5])], fixed_entropy(1))[0]
    norm = float(np.linalg.norm(one.astype(np.float64)))
    assert 0.95e-3 < norm <= 1e-3 * (1 + 1e-6)


def test_the_noise_has_the_promised_size(data: FederatedData) -> None:
    """One step over 4 examples with z = 3: d = 460 coordinates of standard deviation z C / 4."""
    noisy = replace(SILENT, noise_multiplier=3.0)
    quiet = trainer(SILENT).train(start(), data.train, [np.arange(4)], fixed_entropy(1))[0]
    loud = trainer(noisy).train(start(), data.train, [np.arange(4)], fixed_entropy(1))[0]
    scaled = (loud - quiet).astype(np.float64) / (3.0 * 0.5 / 4)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], df=len(scaled))
    assert low < float((scaled**2).sum()) < high


def test_batches_are_poisson_samples() -> None:
    coins = _chosen(AesCtrStream(bytes(32)), 20_000, 0.3)
    low, high = stats.binom.ppf([5e-7, 1 - 5e-7], 20_000, 0.3)
    assert low <= int(coins.sum()) <= high
    assert _chosen(AesCtrStream(bytes(32)), 7, 1.0).all()


def test_batches_and_noise_follow_the_entropy_alone(data: FederatedData) -> None:
    privacy = ExamplePrivacy(clip=0.5, noise_multiplier=1.0, example_rate=0.5, steps=3)
    rows = [np.arange(30), np.arange(30), np.array([], dtype=np.int64)]
    one = trainer(privacy).train(start(), data.train, rows, fixed_entropy(1))
    same = trainer(privacy).train(start(), data.train, rows, fixed_entropy(1))
    other = trainer(privacy).train(start(), data.train, rows, fixed_entropy(2))
    assert (one == same).all()
    assert (one[0] != other[0]).any()
    assert (one[0] != one[1]).any(), "each client has its own stream"
    assert not one[2].any()


def test_it_learns(data: FederatedData) -> None:
    privacy = ExamplePrivacy(clip=1.0, noise_multiplier=1.0, example_rate=0.2, steps=40)
    weights = start(32)
    private = ExamplePrivateTrainer(
        load("digits", {"hidden": 32}), LocalConfig(learning_rate=2.0), privacy, seed=1
    )
    update = private.train(weights, data.train, [np.arange(1437)], fixed_entropy(3))[0]
    plain = Trainer(load("digits", {"hidden": 32}), LocalConfig())
    assert plain.evaluate(weights + update, data.test)["accuracy"] > 0.7


def test_an_example_that_is_not_finite_counts_as_zero(data: FederatedData) -> None:
    x = data.train.x.clone()
    x[3] = math.nan
    damaged = Examples(x=x, y=data.train.y)
    found = trainer(SILENT).train(start(), damaged, [np.array([2, 3])], fixed_entropy(1))[0]
    alone = trainer(SILENT).train(start(), damaged, [np.array([2])], fixed_entropy(1))[0]
    np.testing.assert_allclose(2 * found, alone, atol=1e-5)


def test_wrong_parameters_and_failing_clients_are_one_clear_line(data: FederatedData) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.clip = 0"):
        replace(SILENT, clip=0)
    with pytest.raises(ConfigError, match=r"example_rate = 1\.5"):
        replace(SILENT, example_rate=1.5)
    with pytest.raises(ConfigError, match="steps = 0"):
        replace(SILENT, steps=0)
    with pytest.raises(TrainingError, match="client ann: example-private training failed"):
        trainer(SILENT).train(
            start(), data.train, [np.array([5000])], fixed_entropy(1), names=["ann"]
        )
